"""LLaVA-format JSON: an array of rows, or one row per line (JSONL).

A row is `{id, image, conversations: [{from: human|gpt, value}]}`. `id` may be `idx` or absent (then
the row number), `image` may be absent (text only), one path or several; `<image>` marks in the human
text say where the pictures stand. Rows of LCS-558K, CC595K, LLaVA-Instruct, mix665K, ALLaVA,
Evol-Instruct and ShareGPT4V have this shape, and so has ScienceQA as LLaVA's convert_sqa_to_llava.py writes
it (`llava_{split}_{format}.json`: the mark after the question, pictures at `{id}/image.png`).
Only the position of each row is kept in memory; a row is parsed when it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Role, Sample, SampleRejected
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._rows import JsonRows, short
from prismcap.data.sources._turns import check_text, image_file, image_paths, place_images

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class Options(Section):
    """path: the JSON or JSONL file. image_root: folder that the rows' image paths are relative to
    (none: the file's own folder); pictures outside of it are refused. limit: only the first rows."""

    path: str
    image_root: str | None = None
    limit: int | None = Field(default=None, ge=1)


class LlavaJson:
    """Random access to the rows of one file. Raises DataError at once for a file that is no such JSON."""

    def __init__(self, path: Path, image_root: Path, limit: int | None, max_image_pixels: int) -> None:
        self.rows = JsonRows(path, "conversations", "{id, image, conversations}", limit)
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
        images = image_paths(row.get("image"), where)
        messages = _messages(row, len(images), where)
        at = f"{where}, key 'image'"
        return Sample(
            id=str(row.get("id", row.get("idx", index))),
            images=tuple(image_file(self.image_root, value, self.max_image_pixels, at) for value in images),
            messages=messages,
            source=self.rows.path.name,
        )


def _messages(row: dict[str, Any], num_images: int, where: str) -> tuple[Message, ...]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = short(turns) if "conversations" in row else f"only the keys {sorted(map(str, row))}"
        raise SampleRejected(
            "no_conversations",
            f"{where}, key 'conversations': expected a list of turns {{from, value}}, found {found}",
        )
    parsed = [_turn(turn, f"{where}, key 'conversations.{i}'") for i, turn in enumerate(turns)]
    # some ShareGPT conversations open in the middle, with an answer: LLaVA leaves that answer out
    first = next((i for i, (role, _) in enumerate(parsed) if role != "system"), len(parsed))
    if first < len(parsed) and parsed[first][0] == "assistant":
        del parsed[first]
    return place_images(parsed, num_images, where)


def _turn(turn: Any, where: str) -> tuple[Role, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise SampleRejected(
            "row_malformed", f"{where}: expected {{from, value}} with text, found {short(turn)}"
        )
    role = ROLES.get(str(turn.get("from")))
    if role is None:
        message = f"{where}, key 'from': unknown role {short(turn.get('from'))}; known: {', '.join(ROLES)}"
        raise SampleRejected("unknown_role", message)
    check_text(turn["value"], role, f"{where}, key 'value'")
    return role, turn["value"]


def build(options: Options, context: SourceContext) -> LlavaJson:
    """Raises DataError naming the file when it is missing or no LLaVA JSON."""
    path = resolve_path(options.path)
    root = resolve_path(options.image_root) if options.image_root is not None else path.parent
    return LlavaJson(path, root, options.limit, context.max_image_pixels)
