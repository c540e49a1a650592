"""What a model, local or behind an endpoint, gave back for one request: a text, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed"]


@dataclass(frozen=True)
class Answer:
    """One reply. A failure is a status with its error, never an empty text.

    finish_reason: `stop`, `length` (cut off at the token limit), `content_filter`, or None when not known.
    latency_s: of a batch, the batch's time divided by its size. retries: attempts beyond the first.
    """

    text: str = ""
    status: Status = "ok"
    error: str | None = None
    finish_reason: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    latency_s: float = 0.0
    retries: int = 0

    @property
    def cut_off(self) -> bool:
        return self.finish_reason == "length"


def failed(error: str, latency_s: float = 0.0, retries: int = 0) -> Answer:
    """A request without a reply; `error` says why in one line, without secrets."""
    return Answer(status="failed", error=error, latency_s=latency_s, retries=retries)
