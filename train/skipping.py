"""Steps that must not reach the weights: which they are, and how many a stage may pass over."""

from __future__ import annotations

import math
import statistics
from collections import deque

# a spike is a loss far above the median of the last so many steps, once there are half as many
_COMPARED_STEPS = 32


class SkipBudget:
    """What a stage has skipped so far, and the losses that the next one is held against.

    max_skipped: in the whole stage, resumed or not; 0 stops at the first. max_loss_ratio: a loss of more
    than so many times the median of the last 32 steps is a spike; None: no loss is too high.
    """

    def __init__(self, max_skipped: int, max_loss_ratio: float | None = None) -> None:
        self.max_skipped = max_skipped
        self.max_loss_ratio = max_loss_ratio
        self.num_skipped = 0
        self.recent_losses: deque[float] = deque(maxlen=_COMPARED_STEPS)

    def max_loss(self) -> float:
        """Above it the next step is a spike."""
        if self.max_loss_ratio is None or len(self.recent_losses) < _COMPARED_STEPS // 2:
            return math.inf
        return self.max_loss_ratio * statistics.median(self.recent_losses)

    def note(self, loss: float) -> None:
        """The loss of a step that was made."""
        if self.max_loss_ratio is not None:
            self.recent_losses.append(loss)

    def spend(self) -> bool:
        """Count a skipped step, if one more is allowed; whether it is."""
        allowed = self.num_skipped < self.max_skipped
        self.num_skipped += allowed
        return allowed
