"""Frozen linear layers in 4 bits while a stage trains adapters beside them (QLoRA, arXiv 2305.14314).

The numbers are those of the paper's section 3: NormalFloat 4 in blocks of 64 weights, whose scales are
quantized to 8 bits in blocks of 256. The work is bitsandbytes', on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.model.shapes import is_shapes_only

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # of a weight, scales included


def quantizable(module: nn.Module, head: nn.Module | None) -> dict[str, nn.Linear]:
    """The frozen linear layers of an LLM by name, without its head (bitsandbytes' own custom)."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and layer is not head and not layer.weight.requires_grad
    }


def quantize_linear(
    module: nn.Module, head: nn.Module | None, compute_dtype: torch.dtype, where: str
) -> None:
    """Replace the layers of quantizable by bitsandbytes' Linear4bit, in place and on the GPU.

    In shapes_only nothing changes: memory is counted by train/plan/static.py. Raises ConfigError without a
    GPU, MissingExtraError without bitsandbytes.
    """
    if is_shapes_only():
        return
    device = nf4_device(where)
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "gpu", f"{where}: nf4") from error
    how = {"quant_type": "nf4", "compress_statistics": True}
    for name, layer in quantizable(module, head).items():
        # without values first: they come from the layer
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            device="meta",
            **how,
        )
        small.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, **how)
        small.bias = layer.bias
        module.set_submodule(name, small.to(device))  # which is where it quantizes


def nf4_device(where: str) -> torch.device:
    """The GPU of this process. Raises ConfigError where there is none."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{where}: nf4 needs a GPU (bitsandbytes), and there is none: take it out, or train, evaluate "
            "and export where torch.cuda.is_available()"
        )
    return torch.device("cuda", torch.cuda.current_device())


def is_quantized(layer: Any) -> bool:
    return hasattr(layer.weight, "quant_state")


def dequantized(layer: Any, device: torch.device) -> nn.Linear:
    """A plain frozen layer in fp32 with the values that the quantized one computes with."""
    import bitsandbytes as bnb

    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(device, torch.float32), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data.to(device), requires_grad=False)
    return plain


def dequantize_all(module: nn.Module, device: torch.device) -> None:
    """The reverse of quantize_linear, but for what rounding took. After adapters are merged."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "weight") and is_quantized(layer):
            module.set_submodule(name, dequantized(layer, device))
