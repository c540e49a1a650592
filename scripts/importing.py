"""Released weights as the folder of a run whose one stage, `imported`, has finished.

    DST/config.yaml                  model and stage, as of any run; name and output_dir name DST itself
    DST/imported/final/              what the layout hands over as weights of a stage, with its manifest
    DST/llm/, DST/vision_encoder/    where the released files hold them; else config.yaml names other ones

So `prismcap export DST` works at once, then `prismcap caption DST`; `prismcap evaluate DST` with a section
`evaluation` in config.yaml; and training goes on with a config of `base: DST/config.yaml` and further stages,
by `--resume auto`. config.yaml holds absolute paths: after a move of DST, change them, and the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.files import replace_text
from prismcap.configs.load import apply_override, checked_run, to_yaml
from prismcap.configs.registry import available, component_module, describe
from prismcap.configs.schema.run import RUN_NAME, RunConfig
from prismcap.model.build import build_captioner
from prismcap.model.hf.files import whole_folder, write_json
from prismcap.model.imports._contract import Imported, ImportedRun
from prismcap.model.shapes import shapes_only
from prismcap.model.trainable import check_trainable_state, prepare_stage
from prismcap.model.weights import save_weights
from prismcap.train.checkpoint import FINAL, Manifest, save_checkpoint
from prismcap.train.distributed import Ranks
from prismcap.train.runfolder import CONFIG, comparable

STAGE = "imported"
MARKER = "prismcap_import.json"
NO_DATA = "trained-elsewhere.json"  # the stage has finished: nothing reads it
PARTS = ("vision_encoder", "llm")
HEAD = (
    "# Released weights, written by `prismcap import {layout}`. The stage below was trained elsewhere:\n"
    "# its data is not here, and its rates are those of the original.\n"
)


def import_weights(layout: str, source: Path, destination: Path, overrides: Sequence[str] = ()) -> Imported:
    """Write `destination`, whole or not at all. overrides: `key=value` of the layout's options.

    Raises ConfigError for an unknown layout or option, files of another layout, weights that are unknown or
    missing, parts that do not fit together, and a destination that is not empty; OSError when it cannot be
    written.
    """
    name = layout.replace("-", "_")
    if name not in available("import"):
        known = [other.replace("_", "-") for other in available("import")]
        raise ConfigError(f"no layout {layout!r}.{nearest(layout, known)}")
    module = component_module("import", name)
    options = _options(module.Options, overrides, layout)
    source, destination = source.expanduser(), destination.expanduser().resolve()
    if not source.exists():
        raise ConfigError(f"{source}: no such file or directory")
    _check_destination(destination)
    with whole_folder(destination, MARKER) as folder:
        imported: Imported = module.build(options, source, folder)
        if imported.run is not None:
            _write_run(imported.run, layout, folder, destination)
        write_json(folder / MARKER, {"layout": layout, "notes": list(imported.notes)})
    return imported


def _options(options_type: type[BaseModel], overrides: Sequence[str], layout: str) -> BaseModel:
    values: dict[str, Any] = {}
    for override in overrides:
        apply_override(values, override)
    try:
        return options_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, f"{layout}.", options_type)) from error


def _check_destination(destination: Path) -> None:
    if re.fullmatch(RUN_NAME, destination.name) is None:
        raise ConfigError(
            f"{destination}: {destination.name!r} is no name of a run: letters, digits, dots, underscores "
            "and hyphens, of which the first is a letter or digit"
        )
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists():
        raise ConfigError(f"{destination}: is there already, and not empty; name another folder")


def _write_run(run: ImportedRun, layout: str, folder: Path, destination: Path) -> None:
    """config.yaml and the stage, for the place where `folder` will lie."""
    config = _config(run, destination, destination)
    _check_fit(_config(run, folder, destination), run, str(destination))

    def write(aside: Path) -> None:
        save_weights(aside / "weights.safetensors", run.weights)

    manifest = Manifest(
        stage=STAGE,
        step=1,
        world_size=1,
        engine=config.stages[STAGE].engine.name,
        config=comparable(config, STAGE),
        rejected={},
        stages=[STAGE],
    )
    (folder / STAGE).mkdir()
    needed_bytes = sum(value.nbytes for value in run.weights.values())
    save_checkpoint(folder / STAGE, FINAL, manifest, write, Ranks(), needed_bytes)
    replace_text(folder / CONFIG, HEAD.format(layout=layout) + to_yaml(config))


def _config(run: ImportedRun, place: Path, destination: Path) -> RunConfig:
    """The run's config with the directories of the import in `place`. Raises ConfigError."""
    values: dict[str, Any] = {
        "name": destination.name,
        "output_dir": str(destination.parent),
        "model": {key: dict(component) for key, component in run.model.items()},
        "stages": {STAGE: _stage(run)},
    }
    for part in PARTS:
        if "path" not in values["model"][part]:
            values["model"][part]["path"] = str(place / part)
    if run.prompt is not None:
        values["prompt"] = run.prompt
    return checked_run(destination, values)


def _stage(run: ImportedRun) -> Mapping[str, Any]:
    """precision and row_tokens are not left open: a training that goes on would settle them, and the stage
    would no longer be the one of its manifest."""
    return {
        "train": {group: dict(values) for group, values in run.train.items()},
        "data": {
            "mix": [{"name": "llava_json", "path": NO_DATA}],
            "geometry": run.geometry,
            "max_tokens": 2048,
        },
        "template": dict(run.template),
        "batch": {"row_tokens": 2048},
        "schedule": {"max_steps": 1},
        "precision": "fp32",
    }


def _check_fit(config: RunConfig, run: ImportedRun, where: str) -> None:
    """The captioner of the config, without values, takes exactly these weights. Raises ConfigError."""
    with shapes_only():
        captioner = build_captioner(config.model, where)
        prepare_stage(captioner, config.stages[STAGE].train)
    check_trainable_state(captioner, run.weights)
