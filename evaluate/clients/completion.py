"""The body of a chat completion, as an Answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.clients.thoughts import without_thoughts


class MalformedReply(Exception):
    """The body is no chat completion; says what is wrong with it."""


def read_completion(body: str, *, latency_s: float, retries: int) -> Answer:
    """The first choice's text; its thoughts (`reasoning_content`, or in <think>) are left out.

    An empty text is a failure that says why. A refusal that the endpoint sends in a field of its own is the
    text. Raises MalformedReply.
    """
    try:
        reply = json.loads(body)
    except ValueError as error:
        raise MalformedReply(f"invalid JSON: {body[:80]!r}") from error
    if isinstance(reply, Mapping) and reply.get("error"):
        raise MalformedReply(f"an error with status 200: {reply['error']}")
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        said = message.get("content")
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise MalformedReply(f"no chat completion: {body[:80]!r}") from error
    text = without_thoughts(_text(said)) or _text(refusal).strip()
    usage = reply.get("usage")
    finish_reason = choice.get("finish_reason")
    finish_reason = finish_reason if isinstance(finish_reason, str) else None
    return Answer(
        text=text,
        status="ok" if text else "failed",
        error=None if text else _why_empty(finish_reason),
        finish_reason=finish_reason,
        tokens_in=_count(usage, "prompt_tokens"),
        tokens_out=_count(usage, "completion_tokens"),
        latency_s=latency_s,
        retries=retries,
    )


def _text(content: Any) -> str:
    """Of a string, or of a list of parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _count(usage: Any, key: str) -> int | None:
    value = usage.get(key) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) else None


def _why_empty(finish_reason: str | None) -> str:
    if finish_reason == "length":
        return "empty reply: the token limit was spent on thinking: raise thinking_tokens or max_new_tokens"
    if finish_reason == "content_filter":
        return "empty reply: held back by the endpoint's content filter"
    return f"empty reply (finish_reason {finish_reason})"
