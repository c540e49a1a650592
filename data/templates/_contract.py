"""What a conversation template is: messages in, segments of text, marks and images out.

A template is one file of this folder: `class Options(Section)` and `build(options) -> Template`.
Two rules that encoding builds on, tested for every file here:
- render(messages[:k], generation=True) is a prefix of render(messages), k being the number of messages
  before any assistant turn: what the model is asked is what it was trained on, token for token;
- `train` covers exactly the text of the assistant turns that train, and the sign that ends each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prismcap.data.schema import ImagePart, Message, SampleRejected, Segment, TemplateSpec


class Template(Protocol):
    @property
    def spec(self) -> TemplateSpec: ...

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """Segments of the whole conversation; generation=True ends with what opens the assistant's turn.

        Raises SampleRejected("bad_turns") when the roles are not in an order the template knows.
        """


def split_system(messages: Sequence[Message], generation: bool) -> tuple[str | None, list[Message]]:
    """The text of a leading system message, if any, and the turns: user, assistant, user, ...

    Training conversations end with the assistant, generation prompts with the user.
    Raises SampleRejected("bad_turns") otherwise.
    """
    turns = list(messages)
    system = turns.pop(0).text() if turns and turns[0].role == "system" else None
    in_turn = all(turn.role == ("assistant" if i % 2 else "user") for i, turn in enumerate(turns))
    whole = len(turns) % 2 == (1 if generation else 0)
    if not turns or not in_turn or not whole:
        end = "user (a prompt)" if generation else "assistant"
        roles = ", ".join(message.role for message in messages) or "none"
        raise SampleRejected(
            "bad_turns",
            f"roles are [{roles}]: expected an optional system message, then user and assistant in turn, "
            f"ending with {end}",
        )
    return system, turns


def user_segments(
    message: Message, beside_image: str = "\n", around_image: tuple[str, str] = ("", "")
) -> list[Segment]:
    """A message's parts where they stand, for any number of pictures at any place.

    `beside_image` stands between a picture and each neighbour, `around_image` right before and after every
    picture. By default each is on a line of its own, `<image>\\nquestion`: LLaVA's form.
    """
    before, after = around_image
    segments: list[Segment] = []
    previous: object = None
    for part in message.parts:
        image_beside = isinstance(part, ImagePart) or isinstance(previous, ImagePart)
        if previous is not None and image_beside:
            segments.append(Segment(text=beside_image))
        if isinstance(part, ImagePart):
            segments += [Segment(text=before), Segment(image=part.index), Segment(text=after)]
        else:
            segments.append(Segment(text=part.text))
        previous = part
    return [segment for segment in segments if segment.text or segment.image is not None]


def answer_text(message: Message) -> str:
    """The text of an assistant turn. Raises SampleRejected("bad_turns") when it holds a picture."""
    if any(isinstance(part, ImagePart) for part in message.parts):
        raise SampleRejected("bad_turns", "an assistant turn holds a picture: move it to the user's turn")
    return message.text()
