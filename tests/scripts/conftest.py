"""What tests of commands that run models share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from prismcap.scripts.cli import cli


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch's sums are then the same wherever they are made."""
    import torch  # most tests of commands need no torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """Runs arguments that must fail in an empty folder, where nothing is written; returns what is said."""

    def run(arguments: list[str]) -> str:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code != 0
        assert not list(tmp_path.iterdir()), "nothing is written"
        return done.output + str(done.exception)

    return run
