"""mPLUG-Owl's instruction data: JSON lines of `{"image": [...], "text": "...", "task_type": "..."}`.

`text` is a whole conversation as the template `owl` writes it: a system text, then turns that begin with
`Human: ` and `AI: ` on lines of their own; an `<image>` mark is a human line too. Rows without `image` are
text only. `task_type` chose a processor in the released code and is not read.
Where that code differs (pipeline/data_utils/xgpt3_dataset.py): it splits at `AI: ` within a line as well, so
an answer that says `OpenAI: ` begins a new one there, and stays whole here.
"""

from __future__ import annotations

import re
from typing import Any

from prismcap.data.schema import Message, Role, SampleRejected, TextPart
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._conversations import Conversations, Options
from prismcap.data.sources._rows import short
from prismcap.data.sources._turns import check_text, place_images

_TURN = re.compile(r"(?:^|\n)(Human|AI): ")
_ROLES: dict[str, Role] = {"Human": "user", "AI": "assistant"}


class OwlJson(Conversations):
    """Random access to the rows of one file."""

    key = "text"
    shape = "{image, text, task_type}"

    def image(self, row: dict[str, Any]) -> Any:
        """Rows of text alone have no key, an empty list or an empty text."""
        return row.get("image") or None

    def messages(self, row: dict[str, Any], num_images: int, where: str) -> tuple[Message, ...]:
        """See Conversations.messages."""
        text = row.get("text")
        if not isinstance(text, str):
            found = short(text) if "text" in row else f"only the keys {sorted(map(str, row))}"
            raise SampleRejected(
                "row_malformed", f"{where}, key 'text': expected a conversation as text, found {found}"
            )
        system, turns = _split(text)
        if not any(role == "assistant" for role, _ in turns):
            raise SampleRejected(
                "no_conversations",
                f"{where}, key 'text': no answer: expected lines that begin with 'Human: ' and 'AI: ', found "
                f"{short(text)}",
            )
        check_text(system, "system", f"{where}, key 'text'")
        for role, words in turns:
            check_text(words, role, f"{where}, key 'text'")
        messages = place_images(turns, num_images, f"{where}, key 'text'")
        if messages[-1].role == "user":
            messages = messages[:-1]  # a question without an answer teaches nothing
        return (Message("system", (TextPart(system),)), *messages) if system else messages


def _split(text: str) -> tuple[str, list[tuple[Role, str]]]:
    """The text before the first turn, and the turns in order, human and assistant by turns.

    Several lines of one role are one turn. An answer that nobody asked for, at the beginning, is left out.
    """
    system, *rest = _TURN.split(text)
    turns: list[tuple[Role, str]] = []
    for name, words in zip(rest[::2], rest[1::2], strict=True):
        role = _ROLES[name]
        if turns and turns[-1][0] == role:
            turns[-1] = role, f"{turns[-1][1]}\n{words}"
        else:
            turns.append((role, words))
    if turns and turns[0][0] == "assistant":
        del turns[0]
    return system, turns


def build(options: Options, context: SourceContext) -> OwlJson:
    """Raises DataError naming the file when it is missing or no JSON lines."""
    return OwlJson.of(options, context)
