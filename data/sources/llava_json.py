"""LLaVA-format JSON: an array of rows, or one row per line (JSONL).

A row is `{id, image, conversations: [{from: human|gpt, value}]}`. `id` may be `idx` or absent (then
the row number), `image` may be absent (text only), one path or several; `<image>` marks in the human
text say where the pictures stand. Rows of LCS-558K, CC595K, LLaVA-Instruct, mix665K, ALLaVA,
Evol-Instruct and ShareGPT4V have this shape, and so has ScienceQA as LLaVA's convert_sqa_to_llava.py writes
it (`llava_{split}_{format}.json`: the mark after the question, pictures at `{id}/image.png`).
Only the position of each row is kept in memory; a row is parsed when it is asked for.
"""

from __future__ import annotations

from typing import Any

from prismcap.data.schema import Message, Role, SampleRejected
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._conversations import Conversations, Options
from prismcap.data.sources._rows import short
from prismcap.data.sources._turns import check_text, place_images

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class LlavaJson(Conversations):
    """Random access to the rows of one file."""

    key = "conversations"
    shape = "{id, image, conversations}"
    id_keys = ("id", "idx")

    def messages(self, row: dict[str, Any], num_images: int, where: str) -> tuple[Message, ...]:
        """See Conversations.messages."""
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
    return LlavaJson.of(options, context)
