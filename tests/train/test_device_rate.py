"""Rates: the published ones are found by name, and a measured one weighs products as the model does."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from prismcap.configs.schema.run import RunConfig
from prismcap.model.build import build_captioner
from prismcap.train import device_rate as rates
from prismcap.train.device_rate import (
    GPU_PEAKS,
    device_rate,
    gpu_peak,
    matrix_shapes,
    measured_rate,
    published_rate,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("A100-80G", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIE"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L400", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_by_name(name: str, expected: str | None) -> None:
    peak = gpu_peak(name)
    assert (peak.name if peak else None) == expected


def test_every_peak_is_found_by_its_own_name_and_is_plausible() -> None:
    for peak in GPU_PEAKS:
        assert gpu_peak(peak.name) is peak
        matrix = [rate for rate in (peak.bf16, peak.tf32) if rate is not None]
        assert all(1 <= rate / peak.fp32 < 35 for rate in matrix), peak


def test_precision_picks_the_unit() -> None:
    assert published_rate("A100", "bf16") == 312e12
    assert published_rate("A100", "fp32") == 19.5e12
    assert published_rate("A100", "fp32", tf32=True) == 156e12
    assert published_rate("V100", "fp32", tf32=True) == 15.7e12
    assert published_rate("V100", "bf16") is None


def test_auto_has_no_rate(make_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(ValueError, match="auto has no rate"):
        published_rate("A100", "auto")
    with pytest.raises(ValueError, match="auto has no rate"):
        device_rate(build_captioner(make_config().model), CPU, "auto", 10)


def test_the_shapes_are_those_of_the_layers(make_config: Callable[..., RunConfig]) -> None:
    captioner = build_captioner(make_config().model)
    shapes = matrix_shapes(captioner, 10)
    # two layers: query and output; key and value; gate and up; down. The head is not among them.
    assert shapes == {(10, 32, 32): 4, (10, 32, 16): 4, (10, 32, 48): 4, (10, 48, 32): 2}
    linear = [module for module in captioner.llm.base_model.modules() if isinstance(module, nn.Linear)]
    assert sum(k * n * count for (_, k, n), count in shapes.items()) == sum(
        module.weight.numel() for module in linear
    )


def test_a_rate_weighs_products_by_how_often_they_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the test moves: the first shape takes 1 s, the second 3 s, and slower at times."""
    ticks = itertools.cycle([1.0, 3.0, 2.0, 5.0])
    now = [0.0]

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return now[0]

    def wait(_: torch.device) -> None:
        now[0] += next(ticks)

    monkeypatch.setattr(rates, "time", Clock)
    monkeypatch.setattr(rates, "_wait_for", wait)
    shapes = {(4, 8, 16): 5, (4, 16, 8): 1}
    found = measured_rate(shapes, torch.float32, CPU, budget_s=6.0)
    assert found == pytest.approx(6 * 2 * 4 * 8 * 16 / (5 * 1.0 + 1 * 3.0))
    # a product that would take too long is cut, and its time scaled up
    monkeypatch.setattr(rates, "_LARGEST_PRODUCT_FLOPS", 2 * 2 * 8 * 16)
    found = measured_rate(shapes, torch.float32, CPU, budget_s=6.0)
    assert found == pytest.approx(6 * 2 * 4 * 8 * 16 / (2 * (5 * 1.0 + 1 * 3.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_measurement_ends_and_is_a_rate(dtype: torch.dtype) -> None:
    assert measured_rate({(64, 64, 64): 1}, dtype, CPU, budget_s=0.0) > 1e6
