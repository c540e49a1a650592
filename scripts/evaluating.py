"""What evaluates a stage while it trains: measured by prismcap.evaluate, for the trainer's callback."""

from __future__ import annotations

from prismcap.configs.schema.run import RunConfig
from prismcap.evaluate.live import LiveEvaluation
from prismcap.model.captioner import Captioner
from prismcap.train.distributed import Ranks
from prismcap.train.evaluations import Measure
from prismcap.train.figures import Figures


def measure_of(config: RunConfig, stage: str, ranks: Ranks) -> Measure:
    """The `measure_of` of run_training: the items of a stage's `evaluate`, a part of them on every rank."""
    live = LiveEvaluation.of(config, stage, str(ranks.device))

    def measure(captioner: Captioner) -> Figures:
        return live.figures(captioner, ranks.rank, ranks.world_size, ranks.gather)

    return measure


def check_evaluations(captioner: Captioner, config: RunConfig) -> None:  # noqa: ARG001
    """A hook of run_training, before the first step: raises ConfigError where a stage, also one that comes
    much later, could not be evaluated."""
    for name, stage in config.stages.items():
        if stage.evaluate is not None:
            LiveEvaluation.of(config, name)
