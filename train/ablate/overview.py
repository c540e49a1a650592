"""What an ablation would run, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.data.mix import build_mix
from prismcap.data.sources._contract import SourceContext
from prismcap.train.ablate.status import is_done, read_status
from prismcap.train.ablate.units import Plan, Unit
from prismcap.train.optim import total_steps


def overview(config: AblationConfig, plan: Plan, folder: Path) -> list[str]:
    """A table of the cells, one of the units with their stages, steps and state, and the sums."""
    steps = _steps(plan)
    rows = [("unit", "wave", "takes over", "trains", "steps", "then", "state")]
    for unit in plan.units.values():
        takes = ", ".join(f"{stage} of {of}" for stage, of in unit.takes.items())
        trains = ", ".join(unit.stages) if isinstance(unit.config, RunConfig) else "prism run"
        own = _number(_sum(steps[unit.id, stage] for stage in unit.stages))
        then = "evaluate" if unit.measured and isinstance(unit.config, RunConfig) else "-"
        rows.append((unit.id, str(unit.wave), takes or "-", trains or "-", own, then, _state(folder, unit)))
    cells = [("cell", *config.axes, "seed", "differs from the first in")]
    for cell in plan.cells:
        diff = ", ".join(f"{key}={value}" for key, value in cell.diff.items())
        cells.append((cell.id, *cell.levels.values(), str(cell.seed), _short(diff) or "-"))
    return [*_table(cells), "", *_table(rows), "", _sums(plan, steps)]


def _sums(plan: Plan, steps: Mapping[tuple[str, str], int | None]) -> str:
    shared = [unit for unit in plan.units.values() if not unit.is_cell]
    text = f"{len(plan.cells)} cells and {len(shared)} shared beginnings in {plan.num_waves} waves"
    if steps:
        cells = [plan.units[cell.unit] for cell in plan.cells]
        apart = _sum(
            steps[trained_by, stage]
            for unit in cells
            for stage, trained_by in {**unit.takes, **dict.fromkeys(unit.stages, unit.id)}.items()
        )
        text += f"; {_number(_sum(steps.values()))} steps, {_number(apart)} without sharing"
    return text


def _steps(plan: Plan) -> dict[tuple[str, str], int | None]:
    """By unit and stage that it trains; None where the data is not there to be counted."""
    counted: dict[str, int | None] = {}
    steps: dict[tuple[str, str], int | None] = {}
    for unit in plan.units.values():
        if not isinstance(unit.config, RunConfig):
            continue
        for name in unit.stages:
            stage = unit.config.stages[name]
            key = f"{unit.config.seed} {stage.data!r} {stage.schedule!r} {stage.batch.samples_per_step}"
            if key not in counted:
                counted[key] = _stage_steps(unit.config, name)
            steps[unit.id, name] = counted[key]
    return steps


def _stage_steps(config: RunConfig, name: str) -> int | None:
    stage = config.stages[name]
    if stage.schedule.max_steps is not None:
        return stage.schedule.max_steps
    try:
        context = SourceContext(config.seed, stage.data.max_image_pixels)
        num_samples = len(build_mix(stage.data, context, f"stages.{name}.data"))
    except (ConfigError, DataError, OSError):
        return None
    return total_steps(stage.schedule, num_samples, stage.batch.samples_per_step)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """None where one of them is not known."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _state(folder: Path, unit: Unit) -> str:
    if is_done(folder, unit):
        return "done"
    status = read_status(folder, unit.id)
    return "-" if status is None or status.state == "done" else status.state


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
