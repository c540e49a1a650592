"""Liger's own kernels without a GPU, in Triton's interpreter: loss and gradients of eager layers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).parent / "workers" / "liger_interpreted.py"


def interpreted(*arguments: str) -> dict[str, Any]:
    if importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed (it needs Triton, so Linux)")
    done = subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_liger_is_equal_to_eager_in_the_interpreter() -> None:
    found = interpreted()
    assert sorted(found["kernels"]) == 5 * ["LigerRMSNorm"] + 2 * ["LigerSwiGLUMLP"]
    assert found["rotary"] == "liger_rotary_pos_emb"
    expected, loss = found["losses"]
    assert loss == pytest.approx(expected, rel=1e-6)
    assert len(found["gradients"]) > 15
    assert 0 < max(found["gradients"].values()) < 1e-5


@pytest.mark.slow
def test_a_fault_in_a_kernel_is_seen() -> None:
    found = interpreted("fault")  # RMSNorm is off by 1%
    assert found["losses"][1] != pytest.approx(found["losses"][0], rel=1e-4)
    assert max(found["gradients"].values()) > 1e-3
