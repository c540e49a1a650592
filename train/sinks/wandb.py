"""Weights & Biases. WANDB_MODE=offline keeps all in the run folder; the key stays in the environment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismcap.configs.errors import MissingExtraError
from prismcap.configs.schema.run import RunConfig
from prismcap.train.figures import figure_values


def build(config: RunConfig, run_dir: Path) -> WandbSink:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError("wandb", "wandb", "logging.sinks: [wandb]") from error
    # the same folder is the same run: a resumed one goes on in the same charts
    run_id = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=8).hexdigest()
    run = wandb.init(
        project=config.logging.project,
        name=config.name,
        group=config.logging.group,
        tags=list(config.logging.tags) or None,
        id=run_id,
        resume="allow",
        dir=str(run_dir),
        config=config.model_dump(mode="json"),
    )
    return WandbSink(run, config.logging.every_steps)


class WandbSink:
    """Charts `<stage>/<key>` over `<stage>/step`: the step is an axis, since a resumed run repeats some.
    Of evaluations the key is eval/<split>.<figure>."""

    def __init__(self, run: Any, every_steps: int) -> None:
        self.run = run
        self.every_steps = every_steps

    def start_stage(self, stage: str, total_steps: int, step: int) -> None:  # noqa: ARG002
        self.run.define_metric(f"{stage}/step")
        self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, record: Mapping[str, Any]) -> None:
        if record["step"] % self.every_steps == 0:
            stage = record["stage"]
            self.run.log({f"{stage}/{key}": value for key, value in record.items() if key != "stage"})

    def write_evaluation(self, record: Mapping[str, Any]) -> None:
        stage, values = record["stage"], figure_values(record["figures"])
        charts = {f"{stage}/eval/{name}": value for name, value in values.items()}
        self.run.log({f"{stage}/step": record["step"], **charts})

    def close(self) -> None:
        self.run.finish()
