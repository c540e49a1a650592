"""`bench rows`: our step at several row lengths, on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.train.bench.cases import TrainCase
from prismcap.train.bench.race import Figures, alternate
from prismcap.train.bench.table import spread, text_table
from prismcap.train.bench.train import peak, spec_of, total


@dataclass
class RowsOutcome:
    """The measured steps by row length in tokens."""

    case: dict[str, Any]
    steps: dict[int, list[Figures]]


def run_rows(case: TrainCase, row_lengths: Sequence[int], repeats: int) -> RowsOutcome:
    """Raises ConfigError when a sample would not fit into a row, BenchError when a child dies."""
    case = case.model_copy(update={"num_steps": 1 + repeats})
    if min(row_lengths) < case.longest_sample:
        raise ConfigError(
            f"--row-tokens {min(row_lengths)}: samples have up to {case.longest_sample} tokens, and each "
            "must fit into a row: take longer rows, or lower --max-tokens"
        )
    lengths = {str(length): length for length in row_lengths}
    specs = {
        name: spec_of(case.model_copy(update={"row_tokens": length}), "ours")
        for name, length in lengths.items()
    }
    _, steps = alternate(specs, 0, range(1, 1 + repeats), case.num_threads)
    return RowsOutcome(case.model_dump(), {lengths[name]: figures for name, figures in steps.items()})


def rows_report(outcome: RowsOutcome) -> str:
    """What `bench rows` prints."""
    case = TrainCase.model_validate(outcome.case)
    title = (
        f"{case.mix} · {case.stage} · {case.size} · {case.precision} · {case.samples_per_step} samples a "
        f"step of up to {case.longest_sample} tokens · one row a micro-batch · {case.num_threads} threads"
    )
    rows: list[tuple[str, ...]] = [("row tokens", "samples/s", "padding", "peak MB")]
    for length, steps in outcome.steps.items():
        rates = [step["num_samples"] / step["time_s"] for step in steps]
        padding = 1 - total(steps, "num_tokens") / total(steps, "num_positions")
        rows.append((f"{length:,}", spread(rates), f"{100 * padding:.1f} %", f"{peak(steps):,.0f}"))
    terms = "Each length in a child process of its own, in turns, on the same samples."
    return "\n".join([title, "", text_table(rows), "", terms])
