"""What a config leaves to the device is settled once in the life of a run: precision and row length."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.train.distributed import Ranks
from prismcap.train.precision import fastest_precision, with_precision
from prismcap.train.runfolder import CONFIG, run_folder

log = logging.getLogger(__name__)

# Row lengths by device. cpu: of 1,024 to 4,096 the one with the least memory, since all are as fast
# (`prismcap bench rows`, docs/bench.md). cuda: chosen, and not measured yet.
ROW_TOKENS = {"cpu": 1024, "cuda": 4096}


def with_row_tokens(config: RunConfig, device_type: str) -> RunConfig:
    """The config with the device's row length wherever a stage leaves it open (0); a sample still fits."""
    stages = {name: _with_row_tokens(stage, device_type) for name, stage in config.stages.items()}
    return config.model_copy(update={"stages": stages})


def _with_row_tokens(stage: StageConfig, device_type: str) -> StageConfig:
    if stage.batch.row_tokens:
        return stage
    row_tokens = max(ROW_TOKENS[device_type], stage.data.max_tokens)
    return stage.model_copy(update={"batch": stage.batch.model_copy(update={"row_tokens": row_tokens})})


def settle(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The config with nothing left open. A run that was started before keeps what it has, on whatever machine
    it goes on: its numbers would change otherwise. Collective."""
    return ranks.on_first(lambda: _settled(config, ranks))


def _settled(config: RunConfig, ranks: Ranks) -> RunConfig:
    before = run_folder(config) / CONFIG
    if before.is_file():
        config = as_before(config, before)
    config = with_row_tokens(config, ranks.device.type)
    open_stages = [name for name, stage in config.stages.items() if stage.precision == "auto"]
    if not open_stages:
        return config
    precision = fastest_precision(ranks.device)
    log.info("precision auto (%s) is %s on this %s", ", ".join(open_stages), precision, ranks.device.type)
    return with_precision(config, precision)


def as_before(config: RunConfig, before: Path, only: Collection[str] | None = None) -> RunConfig:
    """What is open now is taken from the config that a run wrote to `before`; only: in these stages alone."""
    stages = dict(config.stages)
    for name, then in load_config(before).stages.items():
        if name not in stages or (only is not None and name not in only):
            continue
        if stages[name].precision == "auto":
            stages[name] = stages[name].model_copy(update={"precision": then.precision})
        if not stages[name].batch.row_tokens:
            batch = stages[name].batch.model_copy(update={"row_tokens": then.batch.row_tokens})
            stages[name] = stages[name].model_copy(update={"batch": batch})
    return config.model_copy(update={"stages": stages})
