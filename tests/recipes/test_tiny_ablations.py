"""The tiny twins of the ablations run whole: cells, table, effects, report; a second call repeats nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prismcap.configs.load import load_ablation
from prismcap.data.scenes.objects import objects_root
from prismcap.scripts.cli import cli
from prismcap.train.ablate.expand import expand

PREFIX = "ablations/tiny/"
DRAWINGS = objects_root()  # of the real cache: there is no tiny set
# the other tiny twins are expanded and checked by tests/configs/test_ablation_presets.py
NAMES = ["stage1_skipped", "prism_instructions"]


def call(*words: str) -> str:
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def files(folder: Path) -> dict[str, int]:
    """When every file of the cells and of what they share was written, in ns."""
    found = [path for part in ("cells", "shared") for path in (folder / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_ablation_runs_whole(
    name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (DRAWINGS / "tuxpaint" / "index.json").is_file():
        pytest.skip("no Tux Paint drawings: run `prismcap fetch stamps`")
    link = tiny_data.parent / "objects"
    if not link.exists():
        link.symlink_to(DRAWINGS)
    monkeypatch.chdir(tmp_path)
    ablation = load_ablation(PREFIX + name)
    made = expand(ablation)
    if made[0].kind == "prism":
        call("train", "recipes/tiny/prismcaptioner_2b")
    call("ablate", PREFIX + name)
    folder = tmp_path / "checkpoints" / "tiny" / ablation.name
    ids = {cell.id for cell in made}
    assert {path.name for path in (folder / "cells").iterdir()} == ids
    states = [json.loads(path.read_text())["state"] for path in (folder / "status").glob("*.json")]
    assert set(states) == {"done"} and len(states) >= len(ids)
    with (folder / "table.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["figure"] == ablation.figures[0]]
    assert sorted(row["cell"] for row in rows) == sorted(ids)
    assert all(float(row["value"]) >= 0 and int(row["n"]) > 0 for row in rows)
    effects = json.loads((folder / "results.json").read_text())["effects"]
    compared = {(effect["axis"], effect["level"]) for effect in effects}
    assert compared == {
        (axis, level) for axis, of_axis in ablation.axes.items() for level in list(of_axis.levels)[1:]
    }
    assert all(effect["sentence"] for effect in effects)
    assert ablation.question in (folder / "report.html").read_text()
    before = files(folder)
    call("ablate", PREFIX + name)
    assert files(folder) == before
