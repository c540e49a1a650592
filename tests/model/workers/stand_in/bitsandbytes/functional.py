"""NormalFloat 4: quantiles of a normal distribution (arXiv 2305.14314, appendix E)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
NF4_BELOW = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
NF4_ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = torch.tensor([*NF4_BELOW, *NF4_ABOVE])


@dataclass
class QuantState:
    absmax: Tensor
    shape: torch.Size
    dtype: torch.dtype


def quantize_4bit(weight: Tensor) -> tuple[Tensor, QuantState]:
    """Two codes in a byte, [n / 2, 1]."""
    blocks = weight.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(1, keepdim=True)
    code = (blocks / absmax)[..., None].sub(NF4).abs().argmin(-1).flatten().to(torch.uint8)
    return (code[::2] * 16 + code[1::2])[:, None], QuantState(absmax, weight.shape, weight.dtype)


def dequantize_4bit(packed: Tensor, quant_state: QuantState) -> Tensor:
    codes = torch.stack([packed.flatten() // 16, packed.flatten() % 16], dim=1)
    blocks = NF4[codes.long()].reshape(-1, BLOCK) * quant_state.absmax
    return blocks.reshape(quant_state.shape).to(quant_state.dtype)
