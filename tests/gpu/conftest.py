"""Claims about GPUs. Each has a case on a GPU; where the CPU can run the same lines, a case on it too.

The first line of a test's docstring is what README's table says of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BOTH = (pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu))


def _of_training() -> Any:
    """The conftest of tests/train: a file of this name cannot be imported beside this one."""
    path = Path(__file__).parents[1] / "train" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_training", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_training = _of_training()
world, launch, torchrun = _training.world, _training.launch, _training.torchrun


@pytest.fixture(autouse=True)
def claim(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Hands the claim to whoever reads the JUnit file; skips what needs a GPU where there is none."""
    assert request.function.__doc__, "a claim needs a docstring"
    record_property("claim", request.function.__doc__.strip().partition("\n")[0])
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says what was measured, for the table."""
    return lambda text: record_property("measured", text)


@pytest.fixture(params=BOTH)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
