"""What a child process does for its parent (train/bench/child.py)."""

from __future__ import annotations

from typing import Any, Protocol

Spec = dict[str, Any]
Figures = dict[str, Any]


class Job(Protocol):
    """A contender that is set up."""

    def run(self, step: int) -> Figures:
        """One timed step."""


class UnfitError(RuntimeError):
    """This contender cannot run on this machine, for instance for want of memory."""
