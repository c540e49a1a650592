"""The shell scripts: a mistake is named at once, before anything is made or fetched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["scripts/demo.sh", "--quik"], "'--quik'"),
        (["scripts/demo.sh", "--objects", "clipart"], "'clipart'"),
        (["scripts/demo.sh", "--objects"], "tuxpaint or openmoji"),
        (["scripts/test.sh", "slow"], "'slow'"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_starts(command: list[str], words: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh")))
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=True)
