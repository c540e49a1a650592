"""A template as the Jinja text that Hugging Face's `apply_chat_template` wants, for exports.

It is read off what `render` does to marked messages, and then held against `render` on whole
conversations: a new template needs no second description, and a wrong one is never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImagePart, Message, Part, Role, SampleRejected, TextPart
from prismcap.data.templates._contract import Template

IMAGE = "<image>"
# private-use characters: in no template's own text
SYSTEM, USER, ANSWER = "\ue000", "\ue001", "\ue002"


@dataclass(frozen=True)
class _Form:
    """The fixed text of a template: what stands before the first user's content, with and without a
    system message (None: such a message is dropped), after a user's content, before an answer, after
    one, before a later user's content, right before and after a picture, and between it and a neighbour."""

    opening: str
    system: tuple[str, str] | None
    after_user: str
    before_answer: str
    after_answer: str
    between_turns: str
    around_image: tuple[str, str]
    beside_image: str
    user_text: bool
    many_turns: bool


def chat_template(template: Template) -> str:
    """Jinja of messages in the form of transformers, `content` being a text or a list of parts.

    Raises ConfigError when the template cannot be said in this way.
    """
    form = _read(template)
    source = _write(form)
    for messages, generation in _conversations(form.many_turns):
        expected = _text(template, messages, generation)
        found = render_jinja(source, messages, generation)
        if found != expected:
            raise ConfigError(
                f"template {template.spec.name!r} cannot be exported: as a chat template it gives {found!r}, "
                f"in training it gives {expected!r}"
            )
    return source


def render_jinja(source: str, messages: Sequence[Message], generation: bool) -> str:
    """What transformers makes of a chat template (same settings of Jinja, same sandbox)."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    values = [
        {"role": message.role, "content": [_part(part) for part in message.parts]} for message in messages
    ]
    return environment.from_string(source).render(messages=values, add_generation_prompt=generation)


def _part(part: Part) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}


def _text(template: Template, messages: Sequence[Message], generation: bool) -> str:
    segments = template.render(messages, generation)
    return "".join(IMAGE if segment.image is not None else segment.text for segment in segments)


def _message(role: Role, *parts: str) -> Message:
    """Texts, and "" for a picture (numbered from 0)."""
    made: list[Part] = []
    for part in parts:
        picture = ImagePart(sum(isinstance(other, ImagePart) for other in made))
        made.append(TextPart(part) if part else picture)
    return Message(role, tuple(made), train=role == "assistant")


def _read(template: Template) -> _Form:
    picture, answer = _message("user", ""), _message("assistant", ANSWER)
    user_text = USER in _text(template, [_message("user", USER)], True)
    content = USER if user_text else IMAGE
    user = _message("user", USER) if user_text else picture
    opening, _, after_user = _text(template, [user], True).partition(content)
    start, _, after_answer = _text(template, [user, answer], False).partition(ANSWER)
    between = ""
    try:
        longer = _text(template, [user, answer, user], True)
        between = longer.partition(ANSWER)[2].removeprefix(after_answer).partition(content)[0]
        many_turns = True
    except SampleRejected:
        many_turns = False
    with_system = _text(template, [_message("system", SYSTEM), user], True).partition(content)[0]
    before, found, after = with_system.partition(SYSTEM)

    def shown(*parts: str) -> str:
        text = _text(template, [_message("user", *parts)], True)
        return text.removeprefix(opening).removesuffix(after_user)

    before_image, _, after_image = shown("").partition(IMAGE)
    return _Form(
        opening=opening,
        system=(before, after) if found else None,
        after_user=after_user,
        before_answer=start.removeprefix(opening + content + after_user),
        after_answer=after_answer,
        between_turns=between,
        around_image=(before_image, after_image),
        beside_image=shown("", "").removeprefix(shown("")).removesuffix(shown("")),
        user_text=user_text,
        many_turns=many_turns,
    )


# AROUND and BESIDE are filled in; see data/templates/_contract.py: user_segments
_ALL_CONTENT = """\
{%- macro content(message) -%}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if not loop.first and 'image' in [part['type'], loop.previtem['type']] -%}BESIDE{%- endif -%}
      {%- if part['type'] == 'image' -%}AROUND{%- else -%}{{- part['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
_PICTURES_ALONE = """\
{%- macro content(message) -%}
  {%- if message['content'] is not string -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
_WORDS = """\
{%- macro words(message) -%}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
_ONE_TURN = """\
{%- if turns | length > 2 -%}
  {{- raise_exception('this model was trained on one turn: a picture, then its caption') -}}
{%- endif -%}
"""


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _say(*parts: str) -> str:
    """A tag that writes the parts, Jinja expressions each; empty texts are left out."""
    filled = [part for part in parts if part != "''"]
    return f"{{{{- {' ~ '.join(filled)} -}}}}" if filled else ""


def _content(form: _Form) -> str:
    """The macro that writes a user's content."""
    if not form.user_text:
        return _PICTURES_ALONE
    before, after = form.around_image
    picture = _say(_quote(before), _quote(IMAGE), _quote(after))
    return _ALL_CONTENT.replace("BESIDE", _say(_quote(form.beside_image))).replace("AROUND", picture)


def _write(form: _Form) -> str:
    """The Jinja of a form; every tag trims the white space around it, so that lines are only for people."""
    opening = _say(_quote(form.opening))
    system = opening
    if form.system is not None:
        before, after = form.system
        system = _say(_quote(before), "words(messages[0])", _quote(after))
    return f"""{_content(form)}{_WORDS}\
{{%- if messages[0]['role'] == 'system' -%}}
  {{%- set turns = messages[1:] -%}}
  {system}
{{%- else -%}}
  {{%- set turns = messages -%}}
  {opening}
{{%- endif -%}}
{"" if form.many_turns else _ONE_TURN}\
{{%- for message in turns -%}}
  {{%- if message['role'] == 'user' -%}}
    {{%- if not loop.first -%}}{_say(_quote(form.between_turns))}{{%- endif -%}}
    {_say("content(message)", _quote(form.after_user))}
  {{%- else -%}}
    {_say(_quote(form.before_answer), "words(message)", _quote(form.after_answer))}
  {{%- endif -%}}
{{%- endfor -%}}
"""


def _conversations(many_turns: bool) -> list[tuple[list[Message], bool]]:
    """What every export is checked on: pictures before, between and after words, and several turns."""
    openings = [
        _message("user", "", "What is this?"),
        _message("user", "What is this?", ""),
        _message("user", "", "", "Compare."),
        _message("user", "First", "", "then", "", "last."),
        _message("user", "No 'picture'\nat all."),
    ]
    answer, question = _message("assistant", 'A "red" apple.'), _message("user", "Which colour?", "")
    system = _message("system", "Be brief.")
    found: list[tuple[list[Message], bool]] = [([opening], True) for opening in openings]
    found.append(([openings[0], answer], False))
    found.append(([system, openings[0]], True))
    if many_turns:
        found.append(([openings[0], answer, question], True))
        found.append(([system, openings[0], answer, question, answer], False))
    return found
