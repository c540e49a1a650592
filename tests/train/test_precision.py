"""`precision: auto` is settled once, by what the device is fast in, and stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import Precision
from prismcap.model.precision import autocast
from prismcap.train import precision as module
from prismcap.train.distributed import Ranks
from prismcap.train.precision import fastest_precision, warn_if_slow, with_precision
from prismcap.train.run import run_training
from prismcap.train.settle import ROW_TOKENS, settle, with_row_tokens

Make = Callable[..., RunConfig]
CPU = torch.device("cpu")
AUTO = "stages.*.precision=auto"


def precisions(config: RunConfig) -> list[Precision]:
    return [stage.precision for stage in config.stages.values()]


def faster(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """bf16 products are so many times faster than those in fp32."""
    rates = {torch.bfloat16: ratio * 1e9, torch.float32: 1e9}
    monkeypatch.setattr(module, "measured_rate", lambda shapes, dtype, device: rates[dtype])  # noqa: ARG005


@pytest.mark.parametrize(("ratio", "expected"), [(0.01, "fp32"), (1.1, "fp32"), (2.0, "bf16")])
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch, ratio: float, expected: str) -> None:
    faster(monkeypatch, ratio)
    assert fastest_precision(CPU) == expected


def test_this_machine_can_say() -> None:
    assert fastest_precision(CPU) in ("bf16", "fp32")


def test_only_auto_is_replaced(make_config: Make) -> None:
    config = make_config("stages.align.precision=auto", "stages.instruct.precision=fp32")
    assert precisions(with_precision(config, "bf16")) == ["bf16", "fp32"]
    assert config.stages["align"].precision == "auto"


def test_nothing_is_computed_in_auto() -> None:
    with pytest.raises(ValueError, match="must be settled"):
        autocast(CPU, "auto")
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, name):  # type: ignore[arg-type]
            assert (left @ right).dtype == dtype


def test_a_run_goes_on_in_the_precision_it_began_with(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(AUTO)
    faster(monkeypatch, 2.0)
    run_dir: Path = run_training(config)
    assert precisions(load_config(run_dir / "config.yaml")) == ["bf16", "bf16"]
    faster(monkeypatch, 0.01)  # another machine
    assert precisions(settle(config, Ranks())) == ["bf16", "bf16"]
    assert run_training(config, resume="auto") == run_dir
    other = make_config(AUTO, "name=other")
    assert precisions(settle(other, Ranks())) == ["fp32", "fp32"]


def row_tokens(config: RunConfig) -> list[int]:
    return [stage.batch.row_tokens for stage in config.stages.values()]


def test_an_open_row_length_is_the_devices(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("stages.align.batch.row_tokens=0", "stages.instruct.batch.row_tokens=99")
    assert row_tokens(with_row_tokens(config, "cuda")) == [ROW_TOKENS["cuda"], 99]
    assert row_tokens(settle(config, Ranks())) == [ROW_TOKENS["cpu"], 99]
    long = make_config("stages.*.batch.row_tokens=0", "stages.*.data.max_tokens=9000")
    assert row_tokens(with_row_tokens(long, "cuda")) == [9000, 9000]
    before = ROW_TOKENS["cpu"]
    run_training(config)
    monkeypatch.setitem(ROW_TOKENS, "cpu", before + 8)  # as in a later version
    assert row_tokens(settle(config, Ranks())) == [before, 99]


@pytest.mark.parametrize(
    ("precision", "ratio", "warned"), [("bf16", 0.01, True), ("bf16", 2.0, False), ("fp32", 0.01, False)]
)
def test_a_device_without_units_for_the_precision_of_a_run_is_named(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: Precision,
    ratio: float,
    warned: bool,
) -> None:
    faster(monkeypatch, ratio)
    warn_if_slow(precision, CPU)
    assert ("this cpu is slow in" in caplog.text) == warned
