"""The training loop of one stage."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import torch

from prismcap.data.loader import RejectionTally, StepData
from prismcap.train.distributed import Ranks
from prismcap.train.engines._contract import BadStepError, Engine, StepResult
from prismcap.train.mfu import MfuMeter
from prismcap.train.random_state import RandomState
from prismcap.train.signals import StoppedError, StopRequest
from prismcap.train.sinks._contract import Sink
from prismcap.train.skipping import SkipBudget

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepEvent:
    """What a callback hears after each step. `record` is what the sinks get; see make_record."""

    stage: str
    step: int
    total_steps: int
    engine: Engine
    sample_ids: tuple[str, ...]  # of this rank
    record: Mapping[str, Any]


class StepCallback(Protocol):
    def __call__(self, event: StepEvent) -> None:
        """Called on every rank after every step; work on the weights belongs in engine.eval_context()."""


def fit(
    stage: str,
    engine: Engine,
    steps: Iterator[StepData],
    total_steps: int,
    tally: RejectionTally,
    ranks: Ranks,
    sinks: Sequence[Sink] = (),
    callbacks: Sequence[StepCallback] = (),
    save: Callable[[int], None] | None = None,
    save_every: int | None = None,
    meter: MfuMeter | None = None,
    budget: SkipBudget | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Take steps from `engine.step` to `total_steps`. `steps` starts at the step that comes next.

    `save(step)` is called after every `save_every`-th step but the last, which its caller saves as
    final. A step that must not reach the weights is skipped while `budget` lasts (none: never). Raises
    BadStepError naming stage, step and samples, DataError when too many were rejected, StoppedError, after
    a save, when `stop` has come on any rank.
    """
    budget, stop = budget or SkipBudget(0), stop or StopRequest()
    for sink in sinks:
        sink.start_stage(stage, total_steps, engine.step)
    warned_of_cut = False
    saved_step = engine.step
    while engine.step < total_steps:
        stopped_by = stop.agreed(ranks)
        if stopped_by is not None:
            if save is not None and engine.step > saved_step:
                save(engine.step)
            raise StoppedError(stopped_by, stage, engine.step, total_steps)
        started_s = time.perf_counter()
        data = next(steps)
        waited_s = time.perf_counter() - started_s
        tally.add(of_all_ranks(data, ranks))
        rates = engine.learning_rates()
        step = engine.step + 1
        result = step_or_skip(stage, engine, data, budget, ranks)
        record = make_record(stage, step, result, rates, data, waited_s, started_s, ranks, meter)
        record["rejected"] = dict(tally.by_reason)
        if record["cut_tokens"] and not warned_of_cut and ranks.is_first:
            warned_of_cut = True
            log.warning(
                "stage %s, step %d: %d tokens were cut off samples longer than data.max_tokens or "
                "data.max_text_tokens (said once; cut_tokens in log.jsonl counts them for every step)",
                *(stage, step, record["cut_tokens"]),
            )
        if ranks.is_first:
            for sink in sinks:
                sink.write(record)
        for callback in callbacks:
            callback(StepEvent(stage, step, total_steps, engine, data.sample_ids, record))
        if save is not None and save_every is not None and step % save_every == 0 and step < total_steps:
            save(step)
            saved_step = step


def step_or_skip(stage: str, engine: Engine, data: StepData, budget: SkipBudget, ranks: Ranks) -> StepResult:
    """One step; or, in place of one that must not reach the weights, none: step number and schedule go on,
    weights, optimiser and random generators are as before. Collective.

    Raises BadStepError, naming stage, step, samples and remedy, once `budget` is used up.
    """
    step, before = engine.step + 1, RandomState.take()
    try:
        result = engine.train_step(data.micro_batches, budget.max_loss())
    except BadStepError as error:
        if not budget.spend():
            raise type(error)(_explain(error, stage, step, budget), error.sample_ids) from error
        before.put_back()
        engine.advance()
        result = StepResult(0.0, 0.0, 0, 0.0, skipped=True, reason=error.what, sample_ids=error.sample_ids)
    else:
        if result.skipped:
            result = replace(result, sample_ids=tuple(chain.from_iterable(ranks.gather(data.sample_ids))))
        else:
            budget.note(result.loss)
    if result.skipped and ranks.is_first:
        names = _named(result.sample_ids)
        log.warning("stage %s, step %d skipped: %s. Samples: %s", stage, step, result.reason, names)
    return result


def make_record(
    stage: str,
    step: int,
    result: StepResult,
    rates: Mapping[str, float],
    data: StepData,
    waited_s: float,
    started_s: float,
    ranks: Ranks,
    meter: MfuMeter | None = None,
) -> dict[str, Any]:
    """One step as the sinks see it. Collective: counts are sums over ranks, times and memory maxima.

    loss, accuracy/token and grad_norm are None for a skipped step, which has skipped_for and skipped_samples
    instead. accuracy/token: the share of supervised tokens that were the likeliest at their place.
    padding_share: of the positions computed. data_wait_share: of the step's time. cut_tokens: what did not
    fit into data.max_tokens or data.max_text_tokens. mfu: model FLOPs (train/flops.py) over the time and the
    devices' rates (train/device_rate.py); None without a meter.
    """
    time_s, waited_s, peak_mb = ranks.max([time.perf_counter() - started_s, waited_s, peak_memory_mb()])
    batches = data.micro_batches
    samples, tokens, positions, cut_tokens, flops = ranks.sum(
        [
            len(data.sample_ids),
            sum(batch.num_tokens for batch in batches),
            sum(batch.input_ids.numel() for batch in batches),
            data.num_cut_tokens,
            meter.flops(batches) if meter else 0.0,
        ]
    )
    why = {"skipped_for": result.reason, "skipped_samples": result.sample_ids} if result.skipped else {}
    return {
        "stage": stage,
        "step": step,
        "loss": None if result.skipped else result.loss,
        "accuracy/token": None if result.skipped else result.accuracy,
        **{f"lr/{name}": rate for name, rate in rates.items()},
        "grad_norm": None if result.skipped else result.grad_norm,
        "supervised_tokens": result.num_target_tokens,
        "cut_tokens": int(cut_tokens),
        "samples_per_s": samples / time_s,
        "tokens_per_s": tokens / time_s,
        "supervised_tokens_per_s": result.num_target_tokens / time_s,
        "mfu": flops / time_s / meter.flops_per_s if meter and not result.skipped else None,
        "padding_share": 1 - tokens / positions if positions else 0.0,
        "data_wait_share": waited_s / time_s,
        "peak_memory_mb": peak_mb,
        "time_s": time_s,
        "skipped": result.skipped,
        **why,
    }


def of_all_ranks(data: StepData, ranks: Ranks) -> StepData:
    """The step with the rejections of every rank, so that all decide alike whether to go on. Collective."""
    rejected, samples = ranks.sum([sum(data.num_rejected.values()), data.num_samples])
    if not rejected:
        return replace(data, num_samples=int(samples))
    by_reason: Counter[str] = Counter()
    messages: list[str] = []
    for counts, texts in ranks.gather((data.num_rejected, data.messages)):
        by_reason.update(counts)
        messages.extend(texts)
    return replace(data, num_samples=int(samples), num_rejected=dict(by_reason), messages=tuple(messages))


def peak_memory_mb() -> float:
    """The most memory this process has held: of the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _explain(error: BadStepError, stage: str, step: int, budget: SkipBudget) -> str:
    return (
        f"stage {stage}, step {step}: {error.what}. Samples: {_named(error.sample_ids)}. The weights are as "
        f"before this step; {budget.num_skipped} steps of this stage were skipped before it, as many as "
        f"optimizer.max_skipped_steps={budget.max_skipped} allows. Look at these samples (prismcap data "
        "inspect), lower the learning rate, train in fp32, or allow more; the last checkpoint is good: "
        "--resume auto goes on from it."
    )


def _named(sample_ids: Sequence[str]) -> str:
    return ", ".join(sample_ids[:20]) + (" …" if len(sample_ids) > 20 else "")
