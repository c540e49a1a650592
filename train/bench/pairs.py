"""`bench loss` and `bench generate`, the parent's side: two ways of doing the same, taking turns."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from prismcap.train.bench.cases import GenerateCase, LossCase
from prismcap.train.bench.race import Figures, alternate
from prismcap.train.bench.table import spread, text_table
from prismcap.train.bench.train import require_equal


@dataclass
class PairOutcome:
    """The measured steps of each way."""

    case: dict[str, Any]
    steps: dict[str, list[Figures]]


def run_loss(case: LossCase, repeats: int) -> PairOutcome:
    """Our loss and that of all logits. Raises BenchError when a child dies, or fp32 losses differ."""
    outcome = _race("loss", case, ("ours", "full"), repeats)
    if case.precision == "fp32":
        require_equal({way: steps[0]["loss"] for way, steps in outcome.steps.items()})
    return outcome


def run_generate(case: GenerateCase, repeats: int) -> PairOutcome:
    """All prompts in one batch, and one by one. Raises BenchError when a child dies."""
    return _race("generate", case, ("batch", "one_by_one"), repeats)


def _race(job: str, case: LossCase | GenerateCase, ways: tuple[str, str], repeats: int) -> PairOutcome:
    values = case.model_dump()
    specs = {way: {"job": job, "way": way, "case": values} for way in ways}
    _, steps = alternate(specs, 0, range(1, 1 + repeats), case.num_threads)
    return PairOutcome(values, steps)


def loss_report(outcome: PairOutcome) -> str:
    """What `bench loss` prints."""
    case = LossCase.model_validate(outcome.case)
    title = (
        f"vocabulary {case.vocabulary:,}, width {case.hidden}, {case.positions:,} positions, "
        f"{100 * case.supervised_share:.0f} % supervised, {case.precision}, {case.num_threads} threads"
    )
    rows: list[tuple[str, ...]] = [("", "time ms", "extra MB", "loss")]
    for way, label in (("ours", "ours, supervised positions"), ("full", "cross entropy of all logits")):
        steps = outcome.steps[way]
        milliseconds = spread([1000 * step["time_s"] for step in steps], 0)
        extra_mb = max(step["extra_memory_mb"] for step in steps)
        rows.append((label, milliseconds, f"{extra_mb:,.0f}", f"{steps[0]['loss']:.6f}"))
    terms = (
        "Forward and backward through head and loss, each way in a child process of its own, in turns. extra "
        "MB: the peak above what was held before and the gradients of head and hidden states that stay."
    )
    speed = [full["time_s"] / ours["time_s"] for ours, full in _together(outcome, "ours", "full")]
    return "\n".join([title, "", text_table(rows), "", f"Faster by {spread(speed)}", terms])


def generate_report(outcome: PairOutcome) -> str:
    """What `bench generate` prints."""
    case = GenerateCase.model_validate(outcome.case)
    title = (
        f"{case.size}, {case.num_prompts} prompts of {case.visual_tokens} visual and up to "
        f"{case.prompt_tokens} text tokens, {case.max_new_tokens} new tokens each, "
        f"{case.precision}, {case.num_threads} threads"
    )
    rows: list[tuple[str, ...]] = [("", "tokens/s", "peak MB")]
    for way, label in (("batch", f"in a batch of {case.num_prompts}"), ("one_by_one", "one by one")):
        steps = outcome.steps[way]
        rates = [step["num_new_tokens"] / step["time_s"] for step in steps]
        rows.append((label, spread(rates, 1), f"{max(step['peak_memory_mb'] for step in steps):,.0f}"))
    pairs = _together(outcome, "batch", "one_by_one")
    speed = [single["time_s"] / batch["time_s"] for batch, single in pairs]
    terms = (
        "Greedy, from features of pictures that are made already; the time of reading the prompts is in it. "
        "Each way in a child process of its own, in turns; weights are random."
    )
    share = median(_equal_share(batch, single) for batch, single in pairs)
    equal = f"{100 * share:.0f} % of the tokens are equal"
    return "\n".join([title, "", text_table(rows), "", f"Faster by {spread(speed)}; {equal}", terms])


def _together(outcome: PairOutcome, first: str, second: str) -> list[tuple[Figures, Figures]]:
    return list(zip(outcome.steps[first], outcome.steps[second], strict=True))


def _equal_share(first: Figures, second: Figures) -> float:
    pairs = [
        (ours, theirs)
        for row, other in zip(first["tokens"], second["tokens"], strict=True)
        for ours, theirs in zip(row, other, strict=True)
    ]
    return sum(int(ours == theirs) for ours, theirs in pairs) / len(pairs)
