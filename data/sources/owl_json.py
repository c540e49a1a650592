"""mPLUG-Owl's instruction data: JSON lines of `{"image": [...], "text": "...", "task_type": "..."}`.

`text` is a whole conversation as the template `owl` writes it: a system text, then turns that begin with
`Human: ` and `AI: ` on lines of their own; an `<image>` mark is a human line too. Rows without `image` are
text only. `task_type` chose a processor in the released code and is not read.
Where that code differs (pipeline/data_utils/xgpt3_dataset.py): it splits at `AI: ` within a line as well, so
an answer that says `OpenAI: ` begins a new one there, and stays whole here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Role, Sample, SampleRejected, TextPart
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._rows import JsonRows, short
from prismcap.data.sources._turns import check_text, image_file, image_paths, place_images

_TURN = re.compile(r"(?:^|\n)(Human|AI): ")
_ROLES: dict[str, Role] = {"Human": "user", "AI": "assistant"}


class Options(Section):
    """path: the JSONL file. image_root: folder that the rows' image paths are relative to (none: the file's
    own folder); pictures outside of it are refused. limit: only the first rows."""

    path: str
    image_root: str | None = None
    limit: int | None = Field(default=None, ge=1)


class OwlJson:
    """Random access to the rows of one file. Raises DataError at once for a file that is no such JSON."""

    def __init__(self, path: Path, image_root: Path, limit: int | None, max_image_pixels: int) -> None:
        self.rows = JsonRows(path, "text", "{image, text, task_type}", limit)
        self.image_root = image_root
        self.max_image_pixels = max_image_pixels

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """See FileSource.fingerprint."""
        return f"{self.rows.fingerprint()} {self.image_root.resolve()}"

    def __getitem__(self, index: int) -> Sample:
        """Row `index`, counted from 0. Raises SampleRejected naming file, row and key."""
        row, where = self.rows[index], self.rows.where(index)
        # text-only rows have no key, an empty list or an empty text
        images = image_paths(row.get("image") or None, where)
        messages = _messages(row, len(images), where)
        at = f"{where}, key 'image'"
        return Sample(
            id=str(row.get("id", index)),
            images=tuple(image_file(self.image_root, value, self.max_image_pixels, at) for value in images),
            messages=messages,
            source=self.rows.path.name,
        )


def _messages(row: dict[str, Any], num_images: int, where: str) -> tuple[Message, ...]:
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
    path = resolve_path(options.path)
    root = resolve_path(options.image_root) if options.image_root is not None else path.parent
    return OwlJson(path, root, options.limit, context.max_image_pixels)
