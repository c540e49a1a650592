"""Linear4bit and its weight, which is quantized by its first move to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .functional import QuantState, dequantize_4bit, quantize_4bit


class Params4bit(torch.nn.Parameter):
    quant_state: QuantState | None
    compress_statistics: bool
    quant_type: str

    def __new__(
        cls,
        data: Tensor,
        requires_grad: bool = False,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
    ) -> Params4bit:
        self: Params4bit = torch.Tensor._make_subclass(cls, data, requires_grad)
        self.quant_state, self.compress_statistics, self.quant_type = None, compress_statistics, quant_type
        return self

    def to(self, *_: Any, **__: Any) -> Params4bit:
        if self.quant_state is None and not self.is_meta:
            self.data, self.quant_state = quantize_4bit(self.data)
        return self


class Linear4bit(torch.nn.Linear):
    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        device: Any = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.compute_dtype = compute_dtype
        self.weight = Params4bit(self.weight.data, False, compress_statistics, quant_type)

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize_4bit(self.weight.data, self.weight.quant_state)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        output = torch.nn.functional.linear(x.to(self.compute_dtype), weight.to(self.compute_dtype), bias)
        return output.to(x.dtype)


class Linear8bitLt(torch.nn.Linear):
    """Never made here; peft asks whether a layer is one."""
