"""Which precision a device is faster in: what `precision: auto` becomes."""

from __future__ import annotations

import logging

import torch

from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import Precision
from prismcap.train.device_rate import measured_rate

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


def warn_if_slow(precision: Precision, device: torch.device) -> None:
    """Of a run that was trained in bf16, and is used on a device that is not faster in it than in fp32."""
    if precision == "bf16" and fastest_precision(device) != "bf16":
        log.warning(
            "the run was trained in bf16, which this %s is slow in (it has no units for it): expect to wait",
            device.type,
        )


def with_precision(config: RunConfig, precision: Precision) -> RunConfig:
    """The config with `precision` wherever a stage says auto."""
    stages = {
        name: stage.model_copy(update={"precision": precision}) if stage.precision == "auto" else stage
        for name, stage in config.stages.items()
    }
    return config.model_copy(update={"stages": stages})
