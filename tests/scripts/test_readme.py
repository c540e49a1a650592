"""README: what it names is there, and each row of what was run has its day and command."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
# what runs write lies in checkpoints/
FOLDERS = ("configs", "data", "docs", "evaluate", "model", "scripts", "tests", "train")


def test_every_path_exists() -> None:
    paths = set(re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*", TEXT))
    paths |= set(re.findall(r"\]\(([^):]+)\)", TEXT))
    assert len(paths) > 30
    assert not [path for path in paths if not (ROOT / path.rstrip(".")).exists()]


def test_every_row_of_what_was_run_has_its_day_and_command() -> None:
    section = TEXT.partition("## What was run on what")[2].partition("What only a GPU can show")[0]
    _, *rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    for what, how, day, command in rows:
        assert re.match("run on a CPU|simulated: |never run", how), what
        assert date.fromisoformat(day)
        assert re.fullmatch(
            r"`(scripts/(demo(_prism)?\.sh|test\.sh -- tests/[\w/.]+)|prismcap ablate ablations/\w+)`",
            command,
        ), what
        if command.startswith("`prismcap ablate"):
            assert (ROOT / "configs" / f"{command.strip('`').split()[-1]}.yaml").is_file(), what
