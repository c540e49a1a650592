"""Which beginnings of cells are trained once, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablation_axes import FIRST, SECOND, axis

from prismcap.configs.load import load_config, to_yaml
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.train.ablate.expand import expand
from prismcap.train.ablate.units import Plan, Unit, plan_units, plan_values

# a third stage between the two, a copy of the second
MIDDLE = {
    "train": {"connector": {"lr": 0.01}},
    "template": {"name": "plain"},
    "schedule": {"max_steps": 2},
    "batch": {"samples_per_step": 6, "row_tokens": 96},
}


def planned(config: AblationConfig) -> Plan:
    return plan_units(config, expand(config))


def shared(plan: Plan) -> list[Unit]:
    return [unit for unit in plan.units.values() if not unit.is_cell]


def test_a_stage_is_trained_once_when_only_the_next_differs(make_ablation: Any) -> None:
    config = make_ablation({"second": axis(**SECOND)}, seeds=[0, 1])
    plan = planned(config)
    units = shared(plan)
    assert len(units) == 2 and {unit.config.seed for unit in units} == {0, 1}
    assert all((unit.stages, unit.wave, unit.after) == (("align",), 0, ()) for unit in units)
    by_seed = {unit.config.seed: unit.id for unit in units}
    for cell in plan.cells:
        unit = plan.units[cell.unit]
        assert (unit.stages, unit.wave) == (("instruct",), 1)
        assert unit.takes == {"align": by_seed[cell.seed]} and unit.after == (by_seed[cell.seed],)
    assert list(plan.units)[:2] == [unit.id for unit in units], "what others need comes first"
    for unit in units:
        folder = Path(unit.config.output_dir) / unit.config.name
        assert folder == Path(config.output_dir) / "abl" / unit.id


def test_another_first_stage_model_or_seed_shares_nothing(make_ablation: Any) -> None:
    assert shared(planned(make_ablation({"first": axis(**FIRST)}))) == []
    model = axis(mlp={}, linear={"model": {"connector": {"name": "linear"}}})
    assert shared(planned(make_ablation({"model": model}))) == []
    without = axis(both={}, one={"stages": {"align": None}})
    plan = planned(make_ablation({"stages": without}))
    assert shared(plan) == [] and {unit.wave for unit in plan.units.values()} == {0}


def test_what_changes_no_weight_does_not_part_cells(make_ablation: Any) -> None:
    workers = [*SECOND["high"], "stages.align.data.num_workers=3", "stages.align.checkpoint.keep=9"]
    assert len(shared(planned(make_ablation({"second": axis(low={}, high=workers)})))) == 1


def test_a_beginning_of_one_cell_is_no_unit(make_ablation: Any) -> None:
    plan = planned(make_ablation({"first": axis(**FIRST), "second": axis(**SECOND)}))
    # baseline and second.high begin alike; first.long is alone
    assert [unit.stages for unit in shared(plan)] == [("align",)]
    alone = plan.units["cells/first.long-second.low-seed.0"]
    assert (alone.stages, alone.takes, alone.wave) == (("align", "instruct"), {}, 0)


def with_middle(world: Path, tmp_path: Path) -> str:
    config = load_config(world / "config.yaml")
    values = config.model_dump(mode="json", exclude_none=True)
    stages = values["stages"]
    middle = MIDDLE | {"data": stages["align"]["data"]}
    values["stages"] = {"align": stages["align"], "middle": middle, "instruct": stages["instruct"]}
    path = tmp_path / "three.yaml"
    path.write_text(to_yaml(type(config).model_validate(values)))
    return str(path)


def test_beginnings_are_nested(make_ablation: Any, world: Path, tmp_path: Path) -> None:
    """align of all four; middle of each two that have it equal."""
    middle = axis(a={}, b=["stages.middle.schedule.max_steps=3"])
    axes = {"middle": middle, "second": axis(**SECOND)}
    plan = planned(make_ablation(axes, combine="grid", run=with_middle(world, tmp_path)))
    first, *nested = shared(plan)
    assert (first.stages, first.wave) == (("align",), 0)
    assert [(unit.stages, unit.wave, unit.after, dict(unit.takes)) for unit in nested] == [
        (("middle",), 1, (first.id,), {"align": first.id})
    ] * 2
    for cell in plan.cells:
        unit = plan.units[cell.unit]
        assert (unit.stages, unit.wave) == (("instruct",), 2)
        assert unit.takes == {"align": first.id, "middle": unit.after[0]}
    assert plan.num_waves == 3 and [unit.wave for unit in plan.units.values()].count(1) == 2


def test_what_all_go_on_with_is_one_unit(make_ablation: Any, world: Path, tmp_path: Path) -> None:
    plan = planned(make_ablation({"second": axis(**SECOND)}, run=with_middle(world, tmp_path)))
    assert [unit.stages for unit in shared(plan)] == [("align", "middle")]


def test_cells_that_only_measure_otherwise_share_all_training(make_ablation: Any) -> None:
    split = {"source": {"name": "llava_json", "path": "a.json"}}
    measured = axis(few={}, many={"evaluation": {"splits": {"held_out": {"num_items": 9}}}})
    config = make_ablation(
        {"items": measured}, launch={}, set={"evaluation": {"splits": {"held_out": split}}}
    )
    plan = planned(config)
    [unit] = shared(plan)
    assert unit.stages == ("align", "instruct") and not unit.measured
    cells = [plan.units[cell.unit] for cell in plan.cells]
    assert [cell.stages for cell in cells] == [(), ()] and all(cell.measured for cell in cells)
    training, measuring = zip(*(cell.hash.split(".") for cell in cells), strict=True)
    assert len(set(training)) == 1 and len(set(measuring)) == 2


def test_a_shared_config_is_one_that_loads(make_ablation: Any, tmp_path: Path) -> None:
    """All stages stay in it: image_newline may belong to a later one than those that are trained."""
    anyres = {
        "model": {"image_newline": True},
        "stages": {"instruct": {"data": {"geometry": "anyres", "max_tiles": 2}}},
    }
    [unit] = shared(planned(make_ablation({"second": axis(**SECOND)}, set=anyres)))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(unit.config))
    assert load_config(path) == unit.config


def test_the_plan_says_all_that_readers_need(make_ablation: Any) -> None:
    config = make_ablation({"second": axis(**SECOND)})
    plan = planned(config)
    values = plan_values(config, plan)
    [unit] = shared(plan)
    assert values["cells"][1] == {
        "id": "second.high-seed.0",
        "levels": {"second": "high"},
        "seed": 0,
        "unit": "cells/second.high-seed.0",
        "kind": "train",
        "diff": {"stages.instruct.train.connector.lr": 0.02},
        "shares": {"align": unit.id},
    }
    assert values["units"][0] == {
        "id": unit.id,
        "wave": 0,
        "after": [],
        "hash": unit.hash,
        "stages": ["align"],
    }
    assert values["axes"] == {"second": {"question": "What?", "levels": ["low", "high"], "cumulative": False}}


def test_the_same_config_gives_the_same_units(make_ablation: Any) -> None:
    one, two = (planned(make_ablation({"second": axis(**SECOND)}, name=name)) for name in ("one", "two"))
    assert [(unit.id, unit.hash) for unit in one.units.values()] == [
        (unit.id, unit.hash) for unit in two.units.values()
    ]
