"""How many operations a device can make in a second: what MFU is a share of.

GPUs: the dense matrix rates that their makers publish. CPUs publish none that means anything: their rate is
measured, at the shapes and in the dtype of the model itself.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prismcap.configs.schema.stage import Precision
from prismcap.model.captioner import Captioner


@dataclass(frozen=True)
class GpuPeak:
    """Dense (not sparse) matrix FLOP/s with fp32 accumulation. bf16 is None where there is no such unit, tf32
    where there is none."""

    name: str
    bf16: float | None
    tf32: float | None
    fp32: float


_T = 1e12
# NVIDIA's data sheets (A100, H100, H200, B200, L4, L40S, T4, V100) and architecture white papers (GA102,
# Ada), read for dense rates: where a sheet gives a rate "with sparsity", half of it.
GPU_PEAKS = (
    GpuPeak("V100", None, None, 15.7 * _T),
    GpuPeak("T4", None, None, 8.1 * _T),
    GpuPeak("A100", 312 * _T, 156 * _T, 19.5 * _T),
    GpuPeak("RTX A6000", 154.8 * _T, 77.4 * _T, 38.7 * _T),
    GpuPeak("RTX 3090", 71 * _T, 35.6 * _T, 35.6 * _T),
    GpuPeak("RTX 4090", 165.2 * _T, 82.6 * _T, 82.6 * _T),
    GpuPeak("L4", 121 * _T, 60 * _T, 30.3 * _T),
    GpuPeak("L40S", 362 * _T, 183 * _T, 91.6 * _T),
    GpuPeak("H100 PCIE", 756 * _T, 378 * _T, 51 * _T),
    GpuPeak("H100 NVL", 835 * _T, 417.5 * _T, 60 * _T),
    GpuPeak("H100", 989 * _T, 494 * _T, 67 * _T),
    GpuPeak("H200 NVL", 835 * _T, 417.5 * _T, 60 * _T),
    GpuPeak("H200", 989 * _T, 494 * _T, 67 * _T),
    GpuPeak("B200", 2250 * _T, 1100 * _T, 75 * _T),
)

# a measurement stops early enough that nobody waits for it
_BUDGET_S = 0.2
# and no single product takes longer than about a tenth of that on a slow core
_LARGEST_PRODUCT_FLOPS = 2e9


@dataclass(frozen=True)
class DeviceRate:
    """source: where the figure comes from, in words."""

    flops_per_s: float
    source: str


def gpu_peak(name: str) -> GpuPeak | None:
    """The entry for a name as CUDA or people write it ("NVIDIA A100-SXM4-80GB", "A100-80G"); None if there is
    none. An entry fits when all of its words occur; the one of most words is taken."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if "LAPTOP" in words:  # namesakes of the desktop cards, and slower
        return None
    fitting = [peak for peak in GPU_PEAKS if set(peak.name.split()) <= words]
    return max(fitting, key=lambda peak: len(peak.name.split()), default=None)


def published_rate(name: str, precision: Precision, tf32: bool = False) -> float | None:
    """The peak of a GPU in a precision; fp32 by TF32 units where torch is told to use them.

    Raises ValueError for auto, which is no precision yet (train/precision.py).
    """
    _refuse_auto(precision)
    peak = gpu_peak(name)
    if peak is None:
        return None
    if precision == "bf16":
        return peak.bf16
    return peak.tf32 if tf32 and peak.tf32 else peak.fp32


def _refuse_auto(precision: Precision) -> None:
    if precision == "auto":
        raise ValueError("precision: auto has no rate: it must be settled first (train/precision.py)")


def matrix_shapes(captioner: Captioner, num_positions: int) -> dict[tuple[int, int, int], int]:
    """The products [m, k] x [k, n] of the LLM's layers over `num_positions`: how often each occurs in a
    forward pass. Before the engine is built: ZeRO-3 leaves weights without a shape."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    for module in captioner.llm.base_model.modules():
        if isinstance(module, nn.Linear):
            shapes[num_positions, module.in_features, module.out_features] += 1
        elif isinstance(module, Conv1D):
            shapes[num_positions, module.nx, module.nf] += 1
    return dict(shapes)


def measured_rate(
    shapes: Mapping[tuple[int, int, int], int],
    dtype: torch.dtype,
    device: torch.device,
    budget_s: float = _BUDGET_S,
) -> float:
    """FLOP/s of these products [m, k] x [k, n], each as often as given: the best of the repeats that fit into
    `budget_s` (two at least). m is cut where a product would take too long."""
    products = []
    for (m, k, n), count in shapes.items():
        rows = max(1, min(m, int(_LARGEST_PRODUCT_FLOPS // (2 * k * n))))
        first = torch.full((rows, k), 0.5, dtype=dtype, device=device)
        # as a linear layer holds its weight
        second = torch.full((n, k), 0.5, dtype=dtype, device=device)
        products.append((first, second.t(), count * m / rows))
    total = sum(2.0 * m * k * n * count for (m, k, n), count in shapes.items())
    best = [math.inf] * len(products)
    started_s, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - started_s < budget_s:
        for i, (first, second, _) in enumerate(products):
            before_s = time.perf_counter()
            first @ second
            _wait_for(device)
            best[i] = min(best[i], time.perf_counter() - before_s)
        rounds += 1
    return total / sum(times * best_s for (_, _, times), best_s in zip(products, best, strict=True))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_rate(
    captioner: Captioner, device: torch.device, precision: Precision, num_positions: int
) -> DeviceRate:
    """Published for a GPU that is in the table, else measured here, within a second. Raises ValueError for
    auto."""
    _refuse_auto(precision)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tf32 = torch.get_float32_matmul_precision() != "highest"
        published = published_rate(name, precision, tf32)
        if published is not None:
            return DeviceRate(published, f"published peak of {name}, {precision}")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rate = measured_rate(matrix_shapes(captioner, num_positions), dtype, device)
    return DeviceRate(rate, f"measured at the LLM's own shapes, {precision}")
