"""What a model card says of the run: recipe and data of each stage, figures with intervals, licences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.data import MixItem
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.fetch import openmoji, tuxpaint
from prismcap.data.scenes.objects import SETS
from prismcap.evaluate.results import ABOUT, METRICS, weights_id
from prismcap.model.convert.checkpoint import read_json
from prismcap.scripts.importing import MARKER, STAGE

DRAWINGS = {about["name"]: about for about in (openmoji.ABOUT, tuxpaint.ABOUT)}


def run_sections(config: RunConfig, run: Path | None = None) -> str:
    """Markdown: training and data of the stages trained here; with the run's folder, its figures too, if they
    are of these weights.

    Raises ConfigError when metrics.json cannot be read.
    """
    stages = trained_here(config, run)
    parts = [_training(config.seed, stages), _data(stages)] if stages else []
    if run is not None:
        parts.append(_figures(config, run))
    return "".join(part for part in parts if part)


def trained_here(config: RunConfig, run: Path | None) -> dict[str, StageConfig]:
    """The stages but the one that `prismcap import` wrote: its recipe and data are not the weights'."""
    imported = _imported_layout(run) is not None
    return {name: stage for name, stage in config.stages.items() if not (imported and name == STAGE)}


def origin(config: RunConfig, run: Path | None) -> str:
    """A sentence on whose weights they are."""
    layout = _imported_layout(run)
    if layout is None:
        return "Trained with prismcap."
    if trained_here(config, run):
        return f"Trained with prismcap from weights released by others, layout {layout}."
    return f"Weights released by others, layout {layout}; not trained here."


def _imported_layout(run: Path | None) -> str | None:
    """Of what `prismcap import` read; None when the run was not begun by it."""
    if run is None or not (run / MARKER).is_file():
        return None
    return str(read_json(run / MARKER).get("layout", "not known"))


def _training(seed: int, stages: Mapping[str, StageConfig]) -> str:
    head = ["stage", "trained (lr)", "template", "pictures", "length", "samples per step", "schedule"]
    rows = [[name, *_recipe(stage)] for name, stage in stages.items()]
    return f"## Training\n\nSeed {seed}; AdamW.\n\n{_table(head, rows)}\n"


def _recipe(stage: StageConfig) -> list[str]:
    schedule = stage.schedule
    epochs = f"{schedule.epochs} epoch{'s' if schedule.epochs != 1 else ''}"
    steps = schedule.warmup_steps
    warmup = f"{schedule.warmup_ratio:g}" if steps is None else f"{steps} steps"
    return [
        "; ".join(f"{group}: {part.how} ({part.lr:g})" for group, part in stage.train.items()),
        stage.template.name,
        stage.data.geometry,
        f"{stage.data.max_tokens} tokens",
        str(stage.batch.samples_per_step),
        f"{epochs if schedule.epochs else f'{schedule.max_steps} steps'}, {schedule.name}, warm-up {warmup}",
    ]


def _data(stages: Mapping[str, StageConfig]) -> str:
    head = ["stage", "source", "options", "licence"]
    rows = [
        [name, item.name, _options(item), _licence(item)]
        for name, stage in stages.items()
        for item in stage.data.mix
    ]
    return f"## Data\n\n{_table(head, rows)}\n"


def _options(item: MixItem) -> str:
    options = dict(item.options)
    if "path" in options:
        paths = [options["path"]] if isinstance(options["path"], str) else options["path"]
        options["path"] = " and ".join(Path(path).name for path in paths)
    # where the pictures lie is of this machine alone
    shown = [f"{key}: {value}" for key, value in options.items() if not key.endswith(("_root", "_dir"))]
    if item.per_step is not None:
        shown.append(f"{item.per_step} of every step")
    return ", ".join([*shown, *([f"taken {item.repeat} times"] if item.repeat > 1 else [])])


def _licence(item: MixItem) -> str:
    """Of the drawings, which say it themselves; files of the user's own do not."""
    if "path" in item.options:
        return "that of the file's publisher"
    if item.name not in ("scenes", "stamps"):
        return "not known"
    sets = SETS[item.options.get("objects", "tuxpaint")]
    return "; ".join(f"{DRAWINGS[name]['license']} ({DRAWINGS[name]['source']})" for name in sets)


def _figures(config: RunConfig, run: Path) -> str:
    """Nothing without metrics.json, or when it is of other weights than the run's."""
    path = run / METRICS
    if not path.is_file():
        return ""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}. Run prismcap evaluate again") from error
    about = metrics.pop(ABOUT, {}) if isinstance(metrics, dict) else None
    if not isinstance(about, dict):
        raise ConfigError(
            f"{path}: expected a mapping, and under {ABOUT!r} another. Run prismcap evaluate again"
        )
    if about.get("weights") != weights_id(run, list(config.stages)[-1]):
        return ""
    rows = [_row(names, value) for names, value in _rates(metrics)]
    if not rows:
        return ""
    notes = "" if about.get("complete", True) else " Not all that the config asks for has been measured."
    few = " These are figures of a first look." if about.get("quick") or about.get("limited") else ""
    head = ["split", "measure", "rate", "95% interval", "items", "blank picture", "another's picture"]
    return (
        "## Figures\n\nShares of held-out items, and caption metrics on that scale, with their 95% "
        f"intervals, and what the model reaches without the picture.{notes}{few}\n\n{_table(head, rows)}\n"
    )


def _rates(value: Mapping[str, Any], names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All {rate, low, high, n} of the file with the keys that lead to them; controls belong to their rate."""
    for key, inner in value.items():
        if not isinstance(inner, Mapping):
            continue
        if {"rate", "low", "high", "n"} <= inner.keys():
            yield (*names, key), inner
        else:
            yield from _rates(inner, (*names, key))


def _row(names: tuple[str, ...], value: Mapping[str, Any]) -> list[str]:
    controls = value.get("controls", {})
    blank, shuffled = (
        f"{controls[name]['rate']:.1%}" if name in controls else "–" for name in ("blank", "shuffled")
    )
    interval = f"{value['low']:.1%} to {value['high']:.1%}"
    return [names[0], " ".join(names[1:]), f"{value['rate']:.1%}", interval, str(value["n"]), blank, shuffled]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
