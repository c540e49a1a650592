"""What is run for an ablation: its cells, and the stages that several of them have equal, each once.

Cells with the same model, seed and stages up to one share a unit that trains these; they take its stage
folders over and go on. Equal is what a run may go on with (runfolder.comparable): a key that changes no
weight does not count. Units of nested beginnings take over from each other in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismcap.configs.schema.ablation import AblationConfig
from prismcap.configs.schema.prism import PrismConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.train.ablate.expand import Cell, ablation_folder
from prismcap.train.runfolder import comparable

SHARED = "shared"
NOTHING = "none"  # in a hash: nothing is measured


@dataclass(frozen=True)
class Unit:
    """A run folder to fill, below the ablation's folder.

    stages: that it trains itself. takes: stage -> the unit that trained it, whose work it goes on with; the
    folders come from `after`, which has them all. hash: `<of the training>.<of what is measured>`.
    wave: units of one wave need only those of earlier ones.
    """

    id: str
    config: RunConfig | PrismConfig
    hash: str
    stages: tuple[str, ...] = ()
    takes: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    wave: int = 0

    @property
    def is_cell(self) -> bool:
        return not self.id.startswith(f"{SHARED}/")

    @property
    def measured(self) -> bool:
        """Whether figures follow the training."""
        return self.is_cell and not self.hash.endswith(f".{NOTHING}")

    @property
    def all_stages(self) -> tuple[str, ...]:
        """In the order of training, those taken over first."""
        return (*self.takes, *self.stages)


@dataclass(frozen=True)
class Plan:
    """The cells of an ablation and the units that fill them, in an order in which each comes after what it
    needs."""

    cells: Sequence[Cell]
    units: Mapping[str, Unit]

    @property
    def num_waves(self) -> int:
        return 1 + max(unit.wave for unit in self.units.values())

    def followers(self, unit_id: str) -> list[Unit]:
        """The units that go on with this one's work."""
        return [unit for unit in self.units.values() if unit_id in unit.after]


def plan_units(config: AblationConfig, cells: Sequence[Cell]) -> Plan:
    """Shared units first, each wave before the next."""
    chains = {cell.id: _chain(cell.config) for cell in cells if isinstance(cell.config, RunConfig)}
    by_key: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        for key in chains.get(cell.id, ()):
            by_key[key].append(cell)
    shared = {key for key, of_key in by_key.items() if _is_shared(key, of_key, by_key, chains[of_key[0].id])}
    units: dict[str, Unit] = {}
    for key in by_key:  # a chain's keys were put in from its start: what a unit needs is before it
        if key in shared:
            cell = by_key[key][0]
            made = _shared_unit(config, cell, chains[cell.id], key, units)
            units[made.id] = made
    for cell in cells:
        units[cell.unit] = _cell_unit(config, cell, chains.get(cell.id, ()), units)
    in_waves = sorted(units.values(), key=lambda unit: unit.wave)
    return Plan(cells, {unit.id: unit for unit in in_waves})


def _chain(config: RunConfig) -> list[str]:
    """A hash of the run up to each of its stages: the seed, the model and what decides each stage."""
    values: list[Any] = []
    keys = []
    for stage in config.stages:
        values.append([stage, comparable(config, stage)])
        keys.append(_hash(values))
    return keys


def _is_shared(
    key: str, cells: Sequence[Cell], by_key: Mapping[str, Sequence[Cell]], chain: Sequence[str]
) -> bool:
    """Whether several cells begin like this, and part after it: what all of them go on with belongs to it."""
    if len(cells) < 2:
        return False
    after = chain.index(key) + 1
    return after == len(chain) or len(by_key[chain[after]]) < len(cells)


def _shared_unit(
    config: AblationConfig, cell: Cell, chain: Sequence[str], key: str, units: Mapping[str, Unit]
) -> Unit:
    assert isinstance(cell.config, RunConfig)
    stages = list(cell.config.stages)[: chain.index(key) + 1]
    made = cell.config.model_copy(
        update={
            "name": key,
            "output_dir": str(ablation_folder(config) / SHARED),
            "logging": cell.config.logging.model_copy(update={"tags": (SHARED,)}),
        }
    )
    before = _before(units, chain[: len(stages) - 1])
    return _after(before, _shared_id(key), made, f"{key}.{NOTHING}", stages)


def _cell_unit(config: AblationConfig, cell: Cell, chain: Sequence[str], units: Mapping[str, Unit]) -> Unit:
    if isinstance(cell.config, PrismConfig):
        values = cell.config.model_dump(mode="json", exclude={"name", "output_dir"})
        return Unit(cell.unit, cell.config, f"{NOTHING}.{_hash(values)}")
    evaluation = cell.config.evaluation if config.launch.evaluate else None
    measured = NOTHING if evaluation is None else _hash(evaluation.model_dump(mode="json"))
    return _after(
        _before(units, chain), cell.unit, cell.config, f"{chain[-1]}.{measured}", list(cell.config.stages)
    )


def _before(units: Mapping[str, Unit], chain: Sequence[str]) -> Unit | None:
    """The longest beginning that is a unit."""
    return next((units[_shared_id(key)] for key in reversed(chain) if _shared_id(key) in units), None)


def _after(before: Unit | None, unit_id: str, config: RunConfig, key: str, stages: Sequence[str]) -> Unit:
    if before is None:
        return Unit(unit_id, config, key, tuple(stages))
    takes = {**before.takes, **dict.fromkeys(before.stages, before.id)}
    own = tuple(stage for stage in stages if stage not in takes)
    return Unit(unit_id, config, key, own, takes, (before.id,), before.wave + 1)


def _shared_id(key: str) -> str:
    return f"{SHARED}/{key}"


def _hash(values: Any) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def plan_values(config: AblationConfig, plan: Plan) -> dict[str, Any]:
    """What plan.json holds; whoever reads the results needs nothing else of the config."""
    return {
        "name": config.name,
        "question": config.question,
        "cells": [
            {
                "id": cell.id,
                "levels": dict(cell.levels),
                "seed": cell.seed,
                "unit": cell.unit,
                "kind": cell.kind,
                "diff": dict(cell.diff),
                "shares": dict(plan.units[cell.unit].takes),
            }
            for cell in plan.cells
        ],
        "units": [
            {
                "id": unit.id,
                "wave": unit.wave,
                "after": list(unit.after),
                "hash": unit.hash,
                "stages": list(unit.stages),
            }
            for unit in plan.units.values()
        ],
        "axes": {
            name: {"question": axis.question, "levels": list(axis.levels), "cumulative": axis.cumulative}
            for name, axis in config.axes.items()
        },
        "combine": config.combine,
        "figures": list(config.figures),
        "cost": config.cost,
    }
