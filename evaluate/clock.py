"""How long the parts of an evaluation take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Seconds spent by part, for metrics.json and for whoever wants it faster.

    earlier_s: those of an earlier call, whose parts are taken over.
    """

    started_s: float = field(default_factory=time.perf_counter)
    parts_s: dict[str, float] = field(default_factory=dict)
    earlier_s: float = 0.0

    def go_on_from(self, about: Mapping[str, Any]) -> None:
        """Add what an earlier call took, by its `about`."""
        self.parts_s.update(about.get("parts_s", {}))
        self.earlier_s = about.get("total_s", 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self.parts_s[name] = self.parts_s.get(name, 0.0) + time.perf_counter() - begun_s

    @property
    def total_s(self) -> float:
        return self.earlier_s + time.perf_counter() - self.started_s
