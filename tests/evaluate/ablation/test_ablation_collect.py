"""results.json, table.csv and table.arrow: whole, alike each time, and there for an unfinished ablation."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ablation_folder import FIGURE, ablation_folder, cell_id, write_json, write_lines, write_status

from prismcap.configs.errors import DataError
from prismcap.evaluate.ablation.collect import collect
from prismcap.evaluate.statistics.clustered import clustered_rate

AXES = {"connector": ("linear", "mlp"), "seed": ("old", "new")}  # an axis may be named as a column


def right(levels: Mapping[str, str], seed: int) -> dict[str, float]:
    rng = random.Random(f"{levels} {seed}")
    return {f"item{number}": float(rng.random() < 0.6) for number in range(30)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ablation_folder(tmp_path / "tiny", AXES, right, share_align=True)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_hold_what_the_page_and_others_read(folder: Path) -> None:
    found = collect(folder)
    assert json.loads((folder / "results.json").read_text()) == found
    assert set(found) == {"about", "axes", "cells", "effects", "by_level"}
    assert found["about"]["complete"] and found["about"]["states"] == {"done": 9}
    assert found["about"]["seeds"] == [0, 1, 2] and found["about"]["figures"] == [FIGURE]
    keys = {"axis", "level", "against", "figure", "difference", "low", "high", "n_seeds", "n_items", "p"}
    for effect in found["effects"]:
        assert keys | {"p_holm", "minimum_detectable", "sentence"} <= effect.keys()
    text = (folder / "results.json").read_text()
    collect(folder)
    assert (folder / "results.json").read_text() == text


def test_the_table_has_a_row_per_cell_and_figure(folder: Path) -> None:
    write_json(
        folder / "cells" / cell_id({"connector": "mlp", "seed": "old"}, 1) / "metrics.json",
        {"about": {}, "held_out": {"all_right": {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 30}},
         "align": {"caption_loss": {"true": {"mean": 1.5}}}},
    )  # fmt: skip
    collect(folder)
    rows = rows_of(folder)
    assert " ".join(rows[0]) == (
        "cell seed connector axis_seed figure value n device_hours tokens supervised_tokens diff state"
    )
    by_cell = {(row["cell"], row["figure"]): row for row in rows}
    assert len(rows) == 10 and len(by_cell) == 10, "nine cells, and one with another figure"
    one = by_cell[cell_id({"connector": "mlp", "seed": "old"}, 1), FIGURE]
    assert (one["value"], one["n"], one["connector"], one["axis_seed"]) == ("0.5", "30", "mlp", "old")
    assert json.loads(one["diff"]) == {"model.connector.name": "mlp"} and one["tokens"] == "1600"
    other = by_cell[cell_id({"connector": "linear", "seed": "new"}, 2), FIGURE]
    values = list(right({"connector": "linear", "seed": "new"}, 2).values())
    assert float(other["value"]) == pytest.approx(sum(values) / 30)


def test_the_arrow_file_says_the_same_as_the_csv(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    found = collect(folder)
    assert found["about"]["tables"] == ["table.csv", "table.arrow"]
    table = pyarrow.ipc.open_file(folder / "table.arrow").read_all()
    assert str(table.schema.field("value").type) == "double"
    as_text = [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in table.to_pylist()
    ]
    assert as_text == rows_of(folder)


def test_without_pyarrow_there_is_no_stale_arrow_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (folder / "table.arrow").write_bytes(b"of other cells")
    assert collect(folder)["about"]["tables"] == ["table.csv"]
    assert not (folder / "table.arrow").exists()


def test_an_unfinished_ablation_has_results_too(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    for cell in plan["cells"][2:]:
        write_status(folder, cell["unit"], "waiting")
    write_status(folder, plan["cells"][1]["unit"], "failed", error="CUDA out of memory")
    write_status(folder, "shared/seed0", "failed", error="disk full")
    found = collect(folder)
    assert not found["about"]["complete"]
    assert found["about"]["states"] == {"done": 1, "waiting": 7, "failed": 1}
    assert found["cells"][1]["error"] == "CUDA out of memory"
    assert found["about"]["shared_failed"] == {"shared/seed0": "disk full"}
    assert all(effect["difference"] is None and effect["why_not"] for effect in found["effects"])
    assert [row["value"] for row in rows_of(folder)].count("") == 8


def test_prism_cells_are_read_from_their_items(tmp_path: Path) -> None:
    """One question in two wordings to a picture: right or wrong by <benchmark>.<perceiver>.…"""
    figure = "scenes.captioner.generic.llm"
    axes = {"instruction": ("human1", "cot")}
    folder = ablation_folder(tmp_path, axes, right, seeds=(0,), figures=[figure])
    plan = json.loads((folder / "plan.json").read_text())
    flags = {"human1": [True, False, False, True, False, True], "cot": [True, True, True, True, False, True]}
    for cell in plan["cells"]:
        cell["kind"] = "prism"
        run = folder / cell["unit"]
        names = {"benchmark": "scenes", "perceiver": "captioner", "instruction": "generic", "reasoner": "llm"}
        write_json(run / "results.json", {"about": {}, "benchmarks": {"scenes": {"checksum": "c"}}})
        write_lines(
            run / "items.jsonl",
            [
                {**names, "id": f"q{number}", "cluster": f"picture{number // 2}", "right": flag,
                 "description": "", "status": "ok"}
                for number, flag in enumerate(flags[cell["levels"]["instruction"]])
            ],
        )  # fmt: skip
    write_json(folder / "plan.json", plan)
    found = collect(folder)
    [effect] = found["effects"]
    assert effect["difference"] == pytest.approx(2 / 6) and effect["share"]
    assert (effect["n_items"], effect["n_clusters"], effect["n_seeds"]) == (6, 3, 1)
    values = [float(flag) for flag in flags["human1"]]
    rate = clustered_rate(values, [f"picture{number // 2}" for number in range(6)])
    cell = found["cells"][0]
    assert cell["figures"][figure]["low"] == rate.low and cell["cost"]["device_hours"] is None


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"plan.json: missing. Is .* the folder of an ablation"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": None}, "key 'axes' is missing or is no dict"),
        ({"cells": [{"id": "a"}]}, r"cells\[0\] has no key 'levels'"),
    ],
)
def test_a_plan_without_what_is_needed_is_refused(folder: Path, change: Any, message: str) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    write_json(folder / "plan.json", plan | change)
    with pytest.raises(DataError, match=message):
        collect(folder)


def test_an_unknown_state_is_refused(folder: Path) -> None:
    write_status(folder, "shared/seed0", "sleeping")
    with pytest.raises(DataError, match="state 'sleeping' is none of done, running, waiting, failed"):
        collect(folder)
