"""Evaluate a stage while it trains: when, for how much of its time, and which weights were best.

What is measured is handed in (scripts/evaluating.py): train and evaluate do not import each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.schema.evaluate import StageEvaluationConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.model.captioner import Captioner
from prismcap.train.best import BestWeights
from prismcap.train.distributed import Ranks
from prismcap.train.figures import Figures, figure_value
from prismcap.train.fit import StepEvent
from prismcap.train.random_state import RandomState
from prismcap.train.sinks._contract import Sink

# Figures of a captioner that trains, the same ones on every rank. Called on all of them, within
# engine.eval_context(); the ranks need not run in step, but must end with something collective.
Measure = Callable[[Captioner], Figures]
# what a stage is measured by; made once, before its first step, on every rank
MeasureOf = Callable[[RunConfig, str, Ranks], Measure]
Clock = Callable[[], float]


@dataclass
class Pace:
    """What share of a stage's time its evaluations take, and whether there is room for another.

    before_s, spent_s, last_s: of earlier starts of the run: time of the stage, of its evaluations together,
    and of the last one. The clock, in seconds, runs on from there.
    """

    max_share: float
    clock: Clock = time.perf_counter
    before_s: float = 0.0
    spent_s: float = 0.0
    last_s: float = 0.0

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], max_share: float, clock: Clock) -> Pace:
        """As the records of the stage's evaluations before, oldest first, have left it."""
        spent_s = sum(record["time_s"] for record in records)
        if not spent_s:
            return cls(max_share, clock)
        last = records[-1]
        # steps after the last evaluation are not known of: they would allow more, not less
        return cls(max_share, clock, spent_s / (last["share"] or 1.0), spent_s, last["time_s"])

    @property
    def elapsed_s(self) -> float:
        return self.before_s + self.clock() - self._started_s

    @property
    def share(self) -> float:
        """Of the stage's time so far, evaluations included."""
        elapsed_s = self.elapsed_s
        return min(1.0, self.spent_s / elapsed_s) if elapsed_s > 0 else 1.0

    def allows_another(self) -> bool:
        """Whether one that takes as long as the last would stay within max_share; the first one may."""
        return self.spent_s + self.last_s <= self.max_share * (self.elapsed_s + self.last_s)

    def note(self, time_s: float) -> None:
        """An evaluation has taken so long."""
        self.last_s = time_s
        self.spent_s += time_s


class StageEvaluations:
    """The StepCallback of a stage's `evaluate`.

    Due every `every_steps` steps; one that is put off stays due. Weights, optimiser, modes and random
    generators are left as they were: the steps are those of a stage without evaluations, bit for bit.
    """

    def __init__(
        self,
        plan: StageEvaluationConfig,
        measure: Measure,
        captioner: Captioner,
        ranks: Ranks,
        sinks: Sequence[Sink] = (),
        best: BestWeights | None = None,
        before: Sequence[Mapping[str, Any]] = (),
        clock: Clock = time.perf_counter,
    ) -> None:
        """before: records of this stage that stand, oldest first; equal on every rank."""
        self.plan = plan
        self.measure = measure
        self.captioner = captioner
        self.ranks = ranks
        self.sinks = sinks
        self.best = best
        self.clock = clock
        self.last_step = int(before[-1]["step"]) if before else 0
        self.pace = Pace.of(before, plan.max_share, clock)

    def __call__(self, event: StepEvent) -> None:
        if self._is_due(event) and self._has_room(event):
            self._evaluate(event)

    def _is_due(self, event: StepEvent) -> bool:
        every = self.plan.every_steps
        return event.step == event.total_steps or event.step // every > self.last_step // every

    def _has_room(self, event: StepEvent) -> bool:
        """As rank 0 finds, whose clock counts."""
        return event.step == event.total_steps or self.ranks.on_first(self.pace.allows_another)

    def _evaluate(self, event: StepEvent) -> None:
        begun_s = self.clock()
        undisturbed = RandomState.take()
        with event.engine.eval_context():
            figures = self.measure(self.captioner)
        undisturbed.put_back()
        is_best = self.best is not None and self.best.offer(
            event.step, figure_value(_named(figures, self.best.figure, event.stage)), event.engine
        )
        self.last_step = event.step
        self.pace.note(self.clock() - begun_s)
        record = {
            "stage": event.stage,
            "step": event.step,
            "figures": {name: dict(figure) for name, figure in figures.items()},
            "time_s": self.pace.last_s,
            "share": self.pace.share,
            "best": is_best,
        }
        for sink in self.sinks if self.ranks.is_first else ():
            sink.write_evaluation(record)


def _named(figures: Figures, name: str, stage: str) -> Mapping[str, Any]:
    if name not in figures:
        raise ConfigError(
            f"stages.{stage}.evaluate.best: no figure {name!r} was measured.{nearest(name, figures)}"
        )
    return figures[name]
