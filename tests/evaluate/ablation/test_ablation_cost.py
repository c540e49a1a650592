"""What cells cost: their own steps and the shared ones in full; and what was spent: each step once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from ablation_folder import ablation_folder, cell_id, steps, write_json, write_lines, write_stage

from prismcap.evaluate.ablation.cost import Cost, Costs
from prismcap.evaluate.ablation.read import read_ablation

CONNECTOR = {"connector": ("linear", "mlp")}


def right(levels: Mapping[str, str], seed: int) -> dict[str, float]:  # noqa: ARG001
    return {"a": 1.0, "b": 0.0}


def test_a_cell_costs_all_its_steps_times_its_processes(tmp_path: Path) -> None:
    """3 + 5 steps of 2 s on 4 processes; 100 tokens a second, 40 of them supervised."""
    folder = ablation_folder(tmp_path, CONNECTOR, right, world_size=4)
    cell = read_ablation(folder).cells[0]
    assert cell.cost.device_hours == pytest.approx(8 * 2 * 4 / 3600)
    assert (cell.cost.tokens, cell.cost.supervised_tokens) == (1600, 640)
    assert cell.shared_cost == Cost()


def test_processes_are_those_of_the_stage(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, right, world_size=4)
    cell = read_ablation(folder).cells[0]
    write_stage(cell.folder, "instruct", 1)
    assert read_ablation(folder).cells[0].cost.device_hours == pytest.approx((3 * 2 * 4 + 5 * 2) / 3600)
    shutil.rmtree(cell.folder / "instruct")
    write_json(cell.folder / "instruct" / "step-000002" / "manifest.json", {"world_size": 2})
    assert read_ablation(folder).cells[0].cost.device_hours == pytest.approx((3 * 2 * 4 + 5 * 2 * 2) / 3600)
    shutil.rmtree(cell.folder / "instruct")  # no checkpoint: as the ablation's config says
    assert read_ablation(folder).cells[0].cost.device_hours == pytest.approx(8 * 2 * 4 / 3600)


def test_shared_stages_count_whole_in_each_cell_and_once_in_all(tmp_path: Path) -> None:
    """Two cells share a seed's first stage of 3 steps, and have its log records among theirs."""
    folder = ablation_folder(tmp_path, CONNECTOR, right, seeds=(0, 1), share_align=True)
    ablation = read_ablation(folder)
    for cell in ablation.cells:
        assert cell.cost.tokens == 8 * 200 and cell.shared_cost.tokens == 3 * 200
    assert ablation.spent.tokens == 4 * (5 * 200) + 2 * (3 * 200)
    assert ablation.spent.device_hours == pytest.approx((4 * 5 + 2 * 3) * 2 / 3600)
    shutil.rmtree(folder / "shared")  # thrown away once the cells have their copies
    for cell in read_ablation(folder).cells:
        assert cell.cost.tokens == 8 * 200


def test_a_step_that_was_done_again_is_spent_twice_and_costs_once(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, right, seeds=(0,))
    run = folder / "cells" / cell_id({"connector": "mlp"}, 0)
    log = [*steps("align", 3), *steps("instruct", 4), *steps("instruct", 5, time_s=1.0)]
    log.insert(3, {"event": "stage", "stage": "instruct"})
    write_lines(run / "log.jsonl", log)
    ablation = read_ablation(folder)
    assert ablation.cells[1].cost.tokens == 3 * 200 + 5 * 100
    assert ablation.spent.tokens == 8 * 200 + 3 * 200 + 4 * 200 + 5 * 100


def test_a_cell_that_has_not_begun_costs_nothing(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, right, seeds=(0,))
    id = cell_id({"connector": "mlp"}, 0)
    shutil.rmtree(folder / "cells" / id)
    (folder / "status" / f"cells__{id}.json").unlink()
    cell = read_ablation(folder).cells[1]
    assert cell.state == "waiting" and cell.cost == Cost(0.0, 0, 0)


def test_answers_that_prism_cells_share_count_once(tmp_path: Path) -> None:
    """One description, read by two reasoners: 100 + 10 tokens, and 20 + 5 for each of them."""
    described = {"tokens_in": 100, "tokens_out": 10}
    names = {"benchmark": "b", "perceiver": "p", "instruction": "i"}
    cells = [
        {**names, "reasoner": reasoner, "cost": {"perceive": described, "reason": answered}}
        for reasoner, answered in (
            ("r", {"tokens_in": 20, "tokens_out": 5}),
            ("s", {"tokens_in": 20, "tokens_out": 5}),
        )
    ]
    write_json(tmp_path / "results.json", {"cells": cells})
    assert Costs().prism(tmp_path) == Cost(None, 160, None)
    cells[0]["cost"]["reason"]["tokens_out"] = None
    write_json(tmp_path / "results.json", {"cells": cells})
    assert Costs().prism(tmp_path).tokens is None, "a partial sum would pass for the whole"
    assert Costs().prism(tmp_path / "absent") == Cost(None, None, None)
