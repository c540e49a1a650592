"""The cells of an ablation: its run under every combination of levels, with every seed, checked whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.load import apply_override, checked, kind_of, merge, read_config
from prismcap.configs.schema.ablation import AblationConfig, Overlay
from prismcap.configs.schema.prism import PrismConfig
from prismcap.configs.schema.run import MAX_TAG, RunConfig
from prismcap.train.runfolder import flat

CELLS = "cells"
# what the ablation sets itself in every cell, and where its own file says it
SET_HERE = {"name": "name", "output_dir": "output_dir", "seed": "seeds"}
# longest name of a file on common systems is 255 bytes; a status file has a few more than the cell
MAX_ID = 200

Levels = Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One run of an ablation. levels: by axis. diff: dotted keys in which the config differs from that of the
    first cell, with this one's value (none: not there), the seed aside."""

    id: str
    levels: Levels
    seed: int
    config: RunConfig | PrismConfig
    diff: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """Its folder below the ablation's."""
        return f"{CELLS}/{self.id}"

    @property
    def kind(self) -> Literal["train", "prism"]:
        return "prism" if isinstance(self.config, PrismConfig) else "train"


def ablation_folder(config: AblationConfig) -> Path:
    """Where everything of an ablation lies."""
    return resolve_path(config.output_dir) / config.name


def expand(config: AblationConfig, where: str | Path | None = None) -> list[Cell]:
    """Every cell, in the order of the axes' levels, seeds last. `where` starts errors: the ablation's file.

    Raises ConfigError naming the file, axis, level and key for a cell that cannot be, and for two levels that
    are the same.
    """
    where = config.name if where is None else str(where)
    values = _run_values(config, where)
    configs = [(levels, _config(config, levels, values, where)) for levels in _combinations(config)]
    _check_all_differ(configs, where)
    first = _compared(configs[0][1])
    return [
        Cell(
            id=_cell_id(levels, seed),
            levels=levels,
            seed=seed,
            config=_as_cell(config, made, levels, seed),
            diff=_diff(first, _compared(made)),
        )
        for levels, made in configs
        for seed in config.seeds
    ]


def _run_values(config: AblationConfig, where: str) -> dict[str, Any]:
    """The keys of the run that all cells start from, `set` included."""
    path, values = read_config(config.run)
    if kind_of(values) == "ablation":
        raise ConfigError(f"{where}: run: {path} is an ablation itself; name a run of training or of Prism")
    values = {key: value for key, value in values.items() if key not in SET_HERE}
    return _laid_over(values, config.set, f"{where}: set")


def _combinations(config: AblationConfig) -> Iterator[Levels]:
    """Which levels meet; the first has every axis at its first level."""
    levels = {axis: list(of_axis.levels) for axis, of_axis in config.axes.items()}
    if config.combine == "grid":
        yield from (dict(zip(levels, names, strict=True)) for names in itertools.product(*levels.values()))
    elif config.combine == "paired":
        yield from (dict(zip(levels, names, strict=True)) for names in zip(*levels.values(), strict=True))
    else:
        baseline = {axis: names[0] for axis, names in levels.items()}
        yield baseline
        yield from ({**baseline, axis: name} for axis, names in levels.items() for name in names[1:])


def _config(
    config: AblationConfig, levels: Levels, values: dict[str, Any], where: str
) -> RunConfig | PrismConfig:
    """The run at these levels, with the first seed."""
    for axis, level in levels.items():
        of_axis = config.axes[axis]
        names = list(of_axis.levels)
        steps = names[: names.index(level) + 1] if of_axis.cumulative else [level]
        for step in steps:
            values = _laid_over(values, of_axis.levels[step], f"{where}: axes.{axis}.levels.{step}")
    cell_id = _cell_id(levels, config.seeds[0])
    if len(cell_id) > MAX_ID:
        raise ConfigError(
            f"{where}: axes: cells are folders, and {cell_id!r} has {len(cell_id)} characters, more than "
            f"{MAX_ID}: shorten the names of axes and levels"
        )
    at = f"{where}: {_named(config, levels)}"
    made = checked(at, {**deepcopy(values), "name": cell_id, "seed": config.seeds[0]})
    _check_figures(config, made, where)
    return made


def _named(config: AblationConfig, levels: Levels) -> str:
    """The levels to look at when a cell is wrong: of those that are not their axis' first."""
    at = {axis: f"axes.{axis}.levels.{level}" for axis, level in levels.items()}
    other = [at[axis] for axis, level in levels.items() if level != next(iter(config.axes[axis].levels))]
    return " and ".join(other) or f"set, run ({config.run}) or {' or '.join(at.values())}"


def _laid_over(values: dict[str, Any], overlay: Overlay, where: str) -> dict[str, Any]:
    """A copy of `values` with an overlay: keys as of a file over its base, or overrides one after another."""
    result = deepcopy(values)
    try:
        if isinstance(overlay, Mapping):
            result = merge(result, deepcopy(dict(overlay)), whole_file=True)
        else:
            for text in overlay:
                apply_override(result, text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for key, own in SET_HERE.items():
        if key in result:
            raise ConfigError(
                f"{where}: {key}={result[key]!r}: the ablation sets {key!r} in every cell, by its own "
                f"key {own!r}: take it out here"
            )
    return result


def _cell_id(levels: Levels, seed: int) -> str:
    return "-".join([*(f"{axis}.{level}" for axis, level in levels.items()), f"seed.{seed}"])


def _as_cell(
    config: AblationConfig, made: RunConfig | PrismConfig, levels: Levels, seed: int
) -> RunConfig | PrismConfig:
    """With the cell's own name, folder and seed, and found again by them in wandb."""
    update: dict[str, Any] = {
        "name": _cell_id(levels, seed),
        "output_dir": str(ablation_folder(config) / CELLS),
        "seed": seed,
    }
    if isinstance(made, RunConfig):
        tags = (*made.logging.tags, *(f"{axis}.{level}"[:MAX_TAG] for axis, level in levels.items()))
        update["logging"] = made.logging.model_copy(update={"group": config.name, "tags": tags})
    return made.model_copy(update=update)


def _compared(made: RunConfig | PrismConfig) -> dict[str, Any]:
    """What makes a cell another one: not its name, seed or place, nor where records of its steps go."""
    values = made.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in (*SET_HERE, "logging")}


def _diff(first: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    before, after = flat(first), flat(now)
    return {
        key: after.get(key)
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _check_all_differ(configs: list[tuple[Levels, RunConfig | PrismConfig]], where: str) -> None:
    seen: dict[str, Levels] = {}
    for levels, made in configs:
        key = json.dumps(_compared(made), sort_keys=True)
        before = seen.setdefault(key, levels)
        if before is levels:
            continue
        differ = [axis for axis in levels if levels[axis] != before[axis]]
        one, other = (
            " and ".join(f"axes.{axis}.levels.{of[axis]}" for axis in differ) for of in (before, levels)
        )
        raise ConfigError(
            f"{where}: {one} and {other} give the same config: there is nothing to compare. Take one "
            "out, or let them differ."
        )


def _check_figures(config: AblationConfig, made: RunConfig | PrismConfig, where: str) -> None:
    """Each figure starts with the name of something that is measured."""
    if isinstance(made, PrismConfig):
        known, what = list(made.benchmarks), "benchmark"
    elif not config.launch.evaluate:
        return
    elif made.evaluation is None:
        raise ConfigError(
            f"{where}: run: {config.run} has no section 'evaluation', so there is nothing that figures "
            f"({', '.join(config.figures)}) could be of: add one, in the run or in `set`"
        )
    else:
        known, what = [*made.evaluation.splits, *made.evaluation.caption_loss], "split of the evaluation"
    for figure in config.figures:
        if not any(figure.startswith(f"{name}.") for name in known):
            hint = nearest(figure.split(".")[0], known)
            raise ConfigError(f"{where}: figures: {figure!r} names no {what}.{hint}")
