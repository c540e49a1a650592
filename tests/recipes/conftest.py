"""The data of the tiny twins, in a cache folder of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prismcap.configs.cache import ENVIRONMENT_VARIABLE
from prismcap.data.fetch.tiny import make_tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prismcap fetch tiny` makes."""
    return make_tiny(tmp_path_factory.mktemp("cache"), lambda _: None)


@pytest.fixture(scope="module")
def tiny_data(tiny_made: Path) -> Iterator[Path]:
    """The same, where `cache:tiny` finds it: in these tests alone, others need what the real cache has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(tiny_made.parent))
        yield tiny_made
