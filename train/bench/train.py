"""`bench train`, the parent's side: check, choose, race, sum up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.data.length_mixes import load_length_mix
from prismcap.train.bench.cases import TrainCase, model_config
from prismcap.train.bench.race import BenchError, Figures, UnfitContender, alternate, started

Say = Callable[[str], None]

OURS = ("ours", "ours_compiled")
LLAVA, LLAVA_TUNED = "llava", "llava_tuned"
REFERENCES = (LLAVA, LLAVA_TUNED)
CONTENDERS = (*OURS, *REFERENCES)
# relative; the losses of one fp32 step from equal weights differ by the order of sums alone
LOSS_TOLERANCE = 1e-4
_CHECKED_SAMPLES = 4
_CHECKED_ROWS = 2
_RATES = "rates"
_LEAST_TEXT_TOKENS = 8


@dataclass(frozen=True)
class Plan:
    """How a comparison is made. rows: sizes of a padded micro-batch to choose from. try_compile: whether the
    tuned reference may use torch.compile."""

    contenders: tuple[str, ...] = ("ours", LLAVA, LLAVA_TUNED)
    repeats: int = 3
    rows: tuple[int, ...] = (1, 2, 4, 8)
    try_compile: bool = True


@dataclass
class Outcome:
    """Everything that one case gave; `summary` is what the table shows, by contender."""

    case: dict[str, Any]
    checked_losses: dict[str, float] = field(default_factory=dict)
    pilots: dict[str, list[Figures]] = field(default_factory=dict)
    rates: list[Figures] = field(default_factory=list)
    warm_up: dict[str, Figures] = field(default_factory=dict)
    steps: dict[str, list[Figures]] = field(default_factory=dict)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_case(case: TrainCase, plan: Plan, say: Say) -> Outcome:
    """Compare the contenders of `plan` on one case.

    Raises BenchError when a child dies or the losses differ, ConfigError for a bad case.
    """
    case = case.model_copy(update={"num_steps": 1 + plan.repeats})
    outcome = Outcome(case.model_dump())
    say("checking that all contenders compute the same loss (fp32)")
    outcome.checked_losses = check_losses(case, plan.contenders)
    for name in plan.contenders:
        if name in REFERENCES:
            say(f"{name}: choosing the size of its micro-batch")
            outcome.specs[name], outcome.pilots[name] = choose(case, plan, name, say)
        else:
            outcome.specs[name] = spec_of(case, name)
    say(f"racing: {', '.join(plan.contenders)}; {plan.repeats} repeats")
    steps = range(1, 1 + plan.repeats)
    rates = {"job": "rates", "case": case.model_dump()}
    specs = {**outcome.specs, _RATES: rates}
    outcome.warm_up, outcome.steps = alternate(specs, 0, steps, case.num_threads)
    del outcome.warm_up[_RATES]
    outcome.rates = outcome.steps.pop(_RATES)
    return outcome


def check_case(case: TrainCase) -> None:
    """Raises ConfigError or DataError for a case that no contender could run."""
    load_length_mix(case.mix)
    model_config(case.size, case.visual_tokens)
    if case.row_tokens < case.visual_tokens + _LEAST_TEXT_TOKENS:
        raise ConfigError(
            f"--row-tokens {case.row_tokens}: a row must hold a picture of {case.visual_tokens} tokens and "
            f"{_LEAST_TEXT_TOKENS} tokens of text: raise it, or lower --visual-tokens"
        )


def spec_of(case: TrainCase, name: str, rows: int = 1, compiled: bool = False) -> dict[str, Any]:
    """What a child is told."""
    common = {"job": "train", "case": case.model_dump()}
    if name in OURS:
        return common | {"contender": "ours", "compiled": name == "ours_compiled"}
    return common | {"contender": "llava", "rows": rows, "tuned": name == LLAVA_TUNED, "compiled": compiled}


def check_losses(case: TrainCase, contenders: Sequence[str]) -> dict[str, float]:
    """The loss of the first step, fp32 and eager, by contender. Raises BenchError unless they agree."""
    few = {"precision": "fp32", "samples_per_step": min(_CHECKED_SAMPLES, case.samples_per_step)}
    small = case.model_copy(update=few | {"num_steps": 1})
    losses: dict[str, float] = {}
    for name in dict.fromkeys("ours" if name in OURS else name for name in contenders):
        with started(name, spec_of(small, name, rows=_CHECKED_ROWS), case.num_threads) as child:
            losses[name] = child.run(0)["loss"]
    require_equal(losses)
    return losses


def require_equal(losses: Mapping[str, float]) -> None:
    """Raises BenchError unless these fp32 losses, by contender, are one loss."""
    lowest, highest = min(losses.values()), max(losses.values())
    if not highest - lowest <= LOSS_TOLERANCE * abs(highest):  # NaN must not pass either
        shown = ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items())
        raise BenchError(f"the contenders do not compute the same loss ({shown}): nothing to compare")


def choose(case: TrainCase, plan: Plan, name: str, say: Say) -> tuple[dict[str, Any], list[Figures]]:
    """The fastest way to run a reference, each tried on one step in a process of its own, and all tries.

    Raises BenchError when none can run.
    """
    tries: list[Figures] = []

    def attempt(rows: int, compiled: bool) -> float | None:
        spec = spec_of(case, name, rows, compiled)
        figures: Figures = {"rows": rows, "compiled": compiled}
        try:
            with started(f"{name}, {rows} rows", spec, case.num_threads) as child:
                figures["time_s"] = child.run(0)["time_s"]
        except UnfitContender as error:
            figures["unfit"] = str(error)
        tries.append(figures)
        took = f"{figures['time_s']:.2f} s" if "time_s" in figures else figures["unfit"]
        say(f"  {rows} rows{', compiled' if compiled else ''}: {took}")
        return figures.get("time_s")

    times = {rows: time for rows in plan.rows if (time := attempt(rows, False)) is not None}
    if not times:
        raise BenchError(f"{name}: no size of micro-batch can run here: {tries[-1]['unfit']}")
    rows = min(times, key=lambda size: times[size])
    if name == LLAVA_TUNED and plan.try_compile:
        compiled = attempt(rows, True)
        if compiled is not None and compiled < times[rows]:
            return spec_of(case, name, rows, compiled=True), tries
    return spec_of(case, name, rows), tries


@dataclass(frozen=True)
class Ratio:
    """Ours over a reference, per repeat: median and spread. memory: ours as a share of the reference's."""

    ours: str
    reference: str
    speed: float
    lowest: float
    highest: float
    memory: float


def ratios(steps: Mapping[str, Sequence[Figures]]) -> list[Ratio]:
    """Every contender of ours over every reference."""
    found = []
    for name in (name for name in OURS if name in steps):
        for reference in (other for other in REFERENCES if other in steps):
            each = [
                theirs["time_s"] / own["time_s"]
                for own, theirs in zip(steps[name], steps[reference], strict=True)
            ]
            memory = peak(steps[name]) / peak(steps[reference])
            found.append(Ratio(name, reference, median(each), min(each), max(each), memory))
    return found


def peak(steps: Sequence[Figures]) -> float:
    """MB over all measured steps."""
    return float(max(step["peak_memory_mb"] for step in steps))


def total(steps: Sequence[Figures], key: str) -> float:
    """The sum of a figure over steps."""
    return float(sum(step[key] for step in steps))
