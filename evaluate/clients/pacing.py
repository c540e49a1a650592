"""How long to wait before an attempt is repeated."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Pacing:
    """base_s doubles with every attempt up to longest_s, and a random half of it is taken away, so that
    requests that failed together do not come back together. most_asked_s: how long an endpoint's Retry-After
    is obeyed. wait and clock: for tests."""

    base_s: float = 0.5
    longest_s: float = 60.0
    most_asked_s: float = 600.0
    wait: Callable[[float], Awaitable[object]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic


class Pace:
    """The waiting of all requests to one endpoint: what it asks of one, all obey."""

    def __init__(self, pacing: Pacing) -> None:
        self.pacing = pacing
        self._not_before = 0.0

    async def ready(self) -> None:
        """Until the endpoint takes requests again, as far as it has said."""
        if (left := self._not_before - self.pacing.clock()) > 0:
            # not all at the same instant, and never too early
            await self.pacing.wait(left + random.uniform(0, self.pacing.base_s))

    async def wait(self, attempt: int, retry_after_s: float | None) -> None:
        """Before attempt + 1; attempts count from 0."""
        own = min(self.pacing.base_s * 2**attempt, self.pacing.longest_s) * random.uniform(0.5, 1.0)
        if retry_after_s is not None:
            asked = min(retry_after_s, self.pacing.most_asked_s)
            self._not_before = max(self._not_before, self.pacing.clock() + asked)
            own = max(own, asked + random.uniform(0, self.pacing.base_s))
        await self.pacing.wait(own)

    @staticmethod
    def asked_for(headers: Mapping[str, str]) -> float | None:
        """Seconds of a Retry-After (a number or a date; RFC 9110, 10.2.3); None where there is none."""
        value = headers.get("retry-after", "").strip()
        try:
            return max(0.0, float(value))
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
