"""Folders of ablations as the engine leaves them, with outcomes that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

FIGURE = "held_out.all_right"
# cell's levels, seed -> values by item id
Measure = Callable[[dict[str, str], int], Mapping[str, float]]


def combinations(axes: Mapping[str, Sequence[str]], combine: str) -> list[dict[str, str]]:
    """As the engine expands axes."""
    first = {axis: levels[0] for axis, levels in axes.items()}
    if combine == "grid":
        return [dict(zip(axes, levels, strict=True)) for levels in product(*axes.values())]
    if combine == "paired":
        return [dict(zip(axes, levels, strict=True)) for levels in zip(*axes.values(), strict=True)]
    changed = [first | {axis: level} for axis, levels in axes.items() for level in levels[1:]]
    return [first, *changed]


def cell_id(levels: Mapping[str, str], seed: int) -> str:
    return "-".join([*(f"{axis}.{level}" for axis, level in levels.items()), f"seed.{seed}"])


def steps(stage: str, number: int, time_s: float = 2.0, **values: Any) -> list[dict[str, Any]]:
    """Log records of a stage: 100 tokens a second, 40 of them supervised."""
    return [
        {
            "stage": stage,
            "step": step,
            "loss": 3.0 / step,
            "time_s": time_s,
            "tokens_per_s": 100.0,
            "supervised_tokens": round(40 * time_s),
            **values,
        }
        for step in range(1, number + 1)
    ]


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_status(folder: Path, unit: str, state: str, **values: Any) -> None:
    status = {"unit": unit, "state": state, "hash": f"hash of {unit}", "attempts": 1, "error": None}
    path = folder / "status" / f"{unit.replace('/', '__')}.json"
    write_json(path, status | {"command": ["prismcap", "train", f"{unit}/config.yaml"], **values})


def write_stage(run: Path, stage: str, world_size: int) -> None:
    write_json(run / stage / "final" / "manifest.json", {"stage": stage, "world_size": world_size})


def outcomes(figure: str, values: Mapping[str, float], per_picture: int = 1) -> list[dict[str, Any]]:
    return [
        {"figure": figure, "id": id, "cluster": f"picture{number // per_picture}", "value": value}
        for number, (id, value) in enumerate(values.items())
    ]


def ablation_folder(
    folder: Path,
    axes: Mapping[str, Sequence[str]],
    measure: Mapping[str, Measure] | Measure,
    *,
    combine: str = "list",
    seeds: Sequence[int] = (0, 1, 2),
    cumulative: Sequence[str] = (),
    figures: Sequence[str] = (),
    share_align: bool = False,
    per_picture: int = 1,
    world_size: int = 1,
) -> Path:
    """All cells done. measure: what a cell's items are worth; by figure, where there are several."""
    measures = measure if isinstance(measure, Mapping) else {FIGURE: measure}
    cells = []
    for levels in combinations(axes, combine):
        for seed in seeds:
            id = cell_id(levels, seed)
            first = {axis: names[0] for axis, names in axes.items()}
            changed = {f"model.{axis}.name": level for axis, level in levels.items() if level != first[axis]}
            shares = {"align": f"shared/seed{seed}"} if share_align else {}
            cells.append(
                {"id": id, "levels": levels, "seed": seed, "unit": f"cells/{id}", "kind": "train"}
                | {"diff": changed, "shares": shares}
            )
            _write_cell(folder / "cells" / id, levels, seed, measures, per_picture, world_size)
            write_status(folder, f"cells/{id}", "done")
    units = [cell["unit"] for cell in cells]
    for unit in sorted({unit for cell in cells for unit in cell["shares"].values()}):
        write_lines(folder / unit / "log.jsonl", steps("align", 3))
        write_stage(folder / unit, "align", world_size)
        write_status(folder, unit, "done")
        units.append(unit)
    plan = {
        "name": "tiny",
        "question": "Which connector, and for how long?",
        "combine": combine,
        "cost": "device_hours",
        "figures": list(figures or measures),
        "cells": cells,
        "units": [{"id": unit, "wave": 0, "after": [], "hash": f"hash of {unit}"} for unit in units],
        "axes": {
            axis: {"question": f"Which {axis}?", "levels": list(levels), "cumulative": axis in cumulative}
            for axis, levels in axes.items()
        },
    }
    write_json(folder / "plan.json", plan)
    config = {"name": "tiny", "output_dir": "checkpoints", "launch": {"num_processes": world_size}}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def _write_cell(
    run: Path,
    levels: dict[str, str],
    seed: int,
    measures: Mapping[str, Measure],
    per_picture: int,
    world_size: int,
) -> None:
    write_lines(run / "log.jsonl", [*steps("align", 3), *steps("instruct", 5)])
    for stage in ("align", "instruct"):
        write_stage(run, stage, world_size)
    config = {"name": run.name, "seed": seed, "stages": {"align": {}, "instruct": {}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    records = []
    for figure, measure in measures.items():
        records += outcomes(figure, measure(levels, seed), per_picture)
    write_lines(run / "outcomes.jsonl", records)
