"""The precision that a forward pass computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from prismcap.configs.schema.stage import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Forward passes under it compute in `precision`, over weights in fp32 (and frozen ones in `precision`).

    Raises ValueError for auto: train/precision.py settles it before anything is computed.
    """
    if precision == "auto":
        raise ValueError("precision: auto must be settled before the model runs (train/precision.py)")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
