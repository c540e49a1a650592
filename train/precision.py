"""`precision: auto` becomes bf16 or fp32, once in the life of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import Precision
from prismcap.train.device_rate import measured_rate
from prismcap.train.distributed import Ranks
from prismcap.train.runfolder import CONFIG, run_folder

log = logging.getLogger(__name__)

# a layer of a small LLM over few tokens: without units for bf16 it takes a CPU a tenth of a second
_PRODUCT = {(128, 576, 576): 1}
# autocast casts the weights in every pass: products alone must win by more than that
_WORTHWHILE = 1.3


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where the device has units for it. A CPU is asked by a race: many compute bf16 in software, at a
    hundredth of the rate of fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    rates = {dtype: measured_rate(_PRODUCT, dtype, device) for dtype in (torch.bfloat16, torch.float32)}
    return "bf16" if rates[torch.bfloat16] > _WORTHWHILE * rates[torch.float32] else "fp32"


def with_precision(config: RunConfig, precision: Precision) -> RunConfig:
    """The config with `precision` wherever a stage says auto."""
    stages = {
        name: stage.model_copy(update={"precision": precision}) if stage.precision == "auto" else stage
        for name, stage in config.stages.items()
    }
    return config.model_copy(update={"stages": stages})


def settle_precision(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The config without auto. A run that was started before keeps what it has, on whatever machine it goes
    on: its numbers would change otherwise. Collective."""
    if all(stage.precision != "auto" for stage in config.stages.values()):
        return config
    return ranks.on_first(lambda: _settled(config, ranks.device))


def _settled(config: RunConfig, device: torch.device) -> RunConfig:
    before = run_folder(config) / CONFIG
    if before.is_file():
        config = _as_before(config, before)
    precision = fastest_precision(device)
    for name, stage in config.stages.items():
        if stage.precision == "auto":
            log.info("stage %s: precision auto is %s on this %s", name, precision, device.type)
    return with_precision(config, precision)


def _as_before(config: RunConfig, before: Path) -> RunConfig:
    then = load_config(before).stages
    stages = {
        name: stage.model_copy(update={"precision": then[name].precision})
        if stage.precision == "auto" and name in then
        else stage
        for name, stage in config.stages.items()
    }
    return config.model_copy(update={"stages": stages})
