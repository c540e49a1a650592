"""The folder of an ablation as its results are read from: plan.json, the units' states, the cells' figures.

Only files are read: results can be collected while cells still run, and on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prismcap.configs.errors import DataError
from prismcap.evaluate.ablation.cost import Cost, Costs
from prismcap.evaluate.ablation.outcomes import Measured, read_prism_run, read_trained
from prismcap.evaluate.report.read import Record, read_object

PLAN, CONFIG = "plan.json", "ablation.yaml"
STATES = ("done", "running", "waiting", "failed")
PLAN_AGAIN = "`prismcap ablate CONFIG` writes it anew."
_NOTHING = Measured({}, {})


@dataclass(frozen=True)
class Axis:
    name: str
    question: str
    levels: tuple[str, ...]
    cumulative: bool


@dataclass(frozen=True)
class Cell:
    """One run of the ablation. measured: empty unless it is done. cost: as if it had been run alone.

    diff: dotted key -> value, where its config differs from the first cell's. error: last words, of a cell
    that failed. status: as the engine keeps it. owners: stage -> folder of the unit that trained it.
    shared_cost: the part of cost that other cells share.
    """

    id: str
    levels: dict[str, str]
    seed: int
    kind: str
    folder: Path
    diff: Record
    state: str
    error: str | None
    status: Record
    measured: Measured
    owners: dict[str, Path]
    cost: Cost
    shared_cost: Cost


@dataclass(frozen=True)
class Ablation:
    """figures: those that count, the one that decides first. spent: by all units together, what is shared
    once. shared_failed: unit -> last words, of shared stages that failed."""

    folder: Path
    name: str
    question: str
    combine: str
    cost: str
    figures: tuple[str, ...]
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    spent: Cost
    shared_failed: dict[str, str]


def read_ablation(folder: Path, seed: int = 0) -> Ablation:
    """Read all of it. seed: of resampled intervals of single cells.

    A cell whose files are damaged counts as failed, with the reason as its last words; the others stand.
    Raises DataError when the folder holds no plan, or a plan without what is needed.
    """
    path = folder / PLAN
    plan = _plan(path)
    costs = Costs(_num_processes(folder / CONFIG))
    hashes = {unit["id"]: unit.get("hash") for unit in plan["units"]}
    cells = tuple(_cell(folder, record, hashes, costs, seed) for record in plan["cells"])
    owned = {(owner, stage) for cell in cells for stage, owner in cell.owners.items()}
    shared = {unit: _status(folder, unit) for unit in hashes if unit.startswith("shared/")}
    return Ablation(
        folder=folder,
        name=plan["name"],
        question=plan["question"],
        combine=plan["combine"],
        cost=plan["cost"],
        figures=tuple(plan["figures"]),
        axes=tuple(
            Axis(name, axis["question"], tuple(axis["levels"]), bool(axis["cumulative"]))
            for name, axis in plan["axes"].items()
        ),
        cells=cells,
        spent=sum((costs.spent(*pair) for pair in sorted(owned)), Cost())
        + sum((cell.cost for cell in cells if cell.kind == "prism"), Cost()),
        shared_failed={
            unit: str(status.get("error") or "no last words")
            for unit, status in shared.items()
            if status.get("state") == "failed"
        },
    )


def _plan(path: Path) -> Record:
    if not path.is_file():
        raise DataError(
            f"{path}: missing. Is {path.parent} the folder of an ablation, <output_dir>/<name>? {PLAN_AGAIN}"
        )
    plan = read_object(path, "written by prismcap ablate", PLAN_AGAIN)
    needed: dict[str, type] = {"name": str, "question": str, "combine": str, "cost": str}
    needed |= {"figures": list, "axes": dict, "cells": list, "units": list}
    for key, kind in needed.items():
        if not isinstance(plan.get(key), kind):
            raise DataError(f"{path}: key {key!r} is missing or is no {kind.__name__}. {PLAN_AGAIN}")
    for number, cell in enumerate(plan["cells"]):
        absent = [key for key in ("id", "levels", "seed", "unit") if key not in cell]
        if absent:
            raise DataError(f"{path}: cells[{number}] has no key {absent[0]!r}. {PLAN_AGAIN}")
    return plan


def _cell(folder: Path, record: Record, hashes: Mapping[str, Any], costs: Costs, seed: int) -> Cell:
    unit, kind = record["unit"], record.get("kind", "train")
    run = folder / unit
    status = _status(folder, unit)
    state = status.get("state", "waiting")
    if status.get("hash") not in (None, hashes.get(unit)):
        state = "waiting"  # what is there is of another plan, and will be run anew
    error = str(status.get("error") or "no last words") if state == "failed" else None
    measured, owners = _NOTHING, {}
    cost = shared = Cost()
    try:
        if kind == "prism":
            cost = costs.prism(run)
        else:
            owners = _owners(folder, record, costs)
            parts = {stage: costs.stage(owner, stage, run) for stage, owner in owners.items()}
            cost = sum(parts.values(), Cost())
            shared = sum((part for stage, part in parts.items() if owners[stage] != run), Cost())
        if state == "done":
            measured = read_prism_run(run, seed) if kind == "prism" else read_trained(run, seed)
    except (DataError, OSError) as damage:
        state, error, measured = "failed", f"its files cannot be read: {damage}", _NOTHING
    return Cell(
        id=record["id"],
        levels={axis: str(level) for axis, level in record["levels"].items()},
        seed=int(record["seed"]),
        kind=kind,
        folder=run,
        diff=record.get("diff") or {},
        state=state,
        error=error,
        status=status,
        measured=measured,
        owners=owners,
        cost=cost,
        shared_cost=shared,
    )


def _owners(folder: Path, record: Record, costs: Costs) -> dict[str, Path]:
    """Stage -> folder of the unit that trained it: a shared one, or the cell itself."""
    own = {stage: folder / record["unit"] for stage in costs.stages(folder / record["unit"])}
    return own | {stage: folder / unit for stage, unit in (record.get("shares") or {}).items()}


def _status(folder: Path, unit: str) -> Record:
    """The unit's state as the engine wrote it; empty before it did."""
    path = folder / "status" / f"{unit.replace('/', '__')}.json"
    if not path.is_file():
        return {}
    status = read_object(path, "written by prismcap ablate", "Start `prismcap ablate` again.")
    if status.get("state") not in STATES:
        raise DataError(f"{path}: state {status.get('state')!r} is none of {', '.join(STATES)}")
    return status


def _num_processes(path: Path) -> int:
    """Ranks of a cell by the ablation's config: of cells that died before a checkpoint could tell."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return int(config["launch"]["num_processes"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 1
