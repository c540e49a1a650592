"""`prismcap fetch tiny`: made once, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from prismcap.configs.cache import ENVIRONMENT_VARIABLE
from prismcap.scripts.cli import cli


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_made_once_and_the_same(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")  # the command sets it, and here it is put back
    for words in (f"tiny: {tmp_path / 'tiny'}", "already in"):
        done = CliRunner().invoke(cli, ["fetch", "tiny", "--cache", str(tmp_path)], catch_exceptions=False)
        assert done.exit_code == 0 and words in done.output
    assert files(tmp_path / "tiny") == files(tiny_data)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"], "a work folder is left"
