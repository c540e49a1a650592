"""The table of the shipped recipes: data, what trains, memory and time, a row for each stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.load import load_config, presets
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.length_mixes.published import published_set
from prismcap.data.schema import DataError
from prismcap.model.trainable import GROUPS, group_of
from prismcap.train.plan.duration import lengths_of_published
from prismcap.train.plan.memory import StageMemory, configured_sharding
from prismcap.train.plan.report import Machine, stage_duration
from prismcap.train.precision import with_precision
from prismcap.train.settle import with_row_tokens

FOLDER = "recipes/"
TINY = f"{FOLDER}tiny/"
HEADS = ("recipe", "stage", "data", "what trains", "GB of a GPU", "hours")


@dataclass(frozen=True)
class RecipeStage:
    """data: names of the sets. trains: number of weights by group, in words. hours: None where the length of
    its samples is not known. fits: into the GPU."""

    recipe: str
    stage: str
    data: str
    trains: str
    memory_bytes: int
    fits: bool
    hours: float | None

    def cells(self) -> tuple[str, ...]:
        """By HEADS."""
        memory = f"{self.memory_bytes / 1e9:.0f}{'' if self.fits else ' !'}"
        hours = "?" if self.hours is None else f"{self.hours:.1f}" if self.hours > 0.1 else "< 0.1"
        return self.recipe, self.stage, self.data, self.trains, memory, hours


def recipe_names() -> list[str]:
    """The shipped recipes, without `recipes/` and without the tiny twins."""
    names = [name for name in presets() if name.startswith(FOLDER) and not name.startswith(TINY)]
    return [name.removeprefix(FOLDER) for name in names]


def recipe_stages(names: Sequence[str], machine: Machine) -> Iterator[RecipeStage]:
    """A row for each stage of the recipes (none given: all), as they are made: each takes about ten seconds.

    Raises ConfigError at once, before the first row is asked for, when a name is no recipe.
    """
    known = recipe_names()
    for name in names:
        if name not in known:
            raise ConfigError(f"no recipe is called {name!r}.{nearest(name, known)}")
    return _stages(names or known, machine)


def _stages(names: Sequence[str], machine: Machine) -> Iterator[RecipeStage]:
    for name in names:
        config = load_config(f"{FOLDER}{name}")
        config = with_row_tokens(with_precision(config, machine.gpu.fastest_precision), "cuda")
        for stage_name, stage in config.stages.items():
            memory = StageMemory(config.model, stage)
            total = memory.of(configured_sharding(stage, machine.num_gpus)).total
            yield RecipeStage(
                recipe=name,
                stage=stage_name,
                data=_data(stage),
                trains=_trains(memory),
                memory_bytes=total,
                fits=total <= machine.gpu.usable_bytes,
                hours=_hours(memory, machine),
            )


def _data(stage: StageConfig) -> str:
    names: dict[str, None] = {}
    for item in stage.data.mix:
        try:
            name = published_set(item).name
        except DataError:
            name = str(item.options.get("path", item.name))
        names[f"{item.repeat} x {name}" if item.repeat > 1 else name] = None
    return ", ".join(names)


def _trains(memory: StageMemory) -> str:
    counts = dict.fromkeys(GROUPS, 0)
    for key, value in memory.captioner.named_parameters():
        counts[group_of(key)] += value.numel() if value.requires_grad else 0
    words = []
    for group, config in memory.stage.train.items():
        kind = f" ({config.lora.kind})" if config.lora else " (a part)" if config.only else ""
        words.append(f"{group.replace('_', ' ')}{kind} {counts[group]:,}")
    return ", ".join(words)


def _hours(memory: StageMemory, machine: Machine) -> float | None:
    try:
        lengths = lengths_of_published(memory.captioner, memory.stage)
    except DataError:
        return None
    return stage_duration(memory, lengths, machine).hours


def table_lines(stages: Iterable[RecipeStage]) -> Iterator[str]:
    """The rows as a table of Markdown; the name of a recipe once."""
    yield _line(HEADS)
    yield _line(["---"] * len(HEADS))
    before = None
    for stage in stages:
        name, *others = stage.cells()
        yield _line(["" if name == before else f"`{name}`", *others])
        before = name


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
