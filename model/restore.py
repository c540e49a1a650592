"""A trained run, loaded again from its folder."""

from __future__ import annotations

from pathlib import Path

import torch

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import finish_stage, load_trainable_state, prepare_stage
from prismcap.model.weights import load_weights


def load_trained(
    run_dir: Path,
    device: str | torch.device = "cpu",
    last_stage: str | None = None,
    merge_last: bool = True,
) -> tuple[Captioner, RunConfig]:
    """The captioner after its last stage (or after `last_stage`), in eval mode, and the run's config.

    Every stage is replayed in order from `run_dir/<stage>/final/weights.safetensors`, its LoRA merged, except
    in the last one where `merge_last` is false.
    Raises ConfigError when the folder is no run or a stage has not finished.
    """
    run_dir = Path(run_dir)
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        raise ConfigError(f"{run_dir} is not the folder of a run: it has no config.yaml")
    config = load_config(config_path)
    if last_stage is not None and last_stage not in config.stages:
        raise ConfigError(f"{config_path}: no stage {last_stage!r}.{nearest(last_stage, config.stages)}")
    captioner = build_captioner(config.model, str(config_path), seed=config.seed)
    last = last_stage or list(config.stages)[-1]
    for name, stage in config.stages.items():
        weights = run_dir / name / "final" / "weights.safetensors"
        if not weights.is_file():
            raise ConfigError(
                f"{run_dir}: stage {name!r} has not finished (no {weights.relative_to(run_dir)}); "
                "go on with `prismcap train … --resume auto`"
            )
        prepare_stage(captioner, stage.train, seed=config.seed)
        load_trainable_state(captioner, load_weights(weights))
        if name != last or merge_last:
            finish_stage(captioner)
        if name == last:
            break
    return captioner.to(device).eval(), config
