"""Cells: which levels meet, what their configs are, and what cannot be said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ablation_axes import axis

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.prism import PrismConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.train.ablate.expand import Cell, expand

STEPS = {"a": {}, "b": ["stages.align.schedule.max_steps=5"], "c": ["stages.align.schedule.max_steps=6"]}
SEEN = {"x": [], "y": {"stages": {"instruct": {"data": {"max_tokens": 64}}}}}


def ids(cells: list[Cell]) -> list[str]:
    return [cell.id for cell in cells]


def trained(cell: Cell) -> RunConfig:
    assert isinstance(cell.config, RunConfig)
    return cell.config


def test_a_grid_is_every_combination_with_every_seed(make_ablation: Any) -> None:
    config = make_ablation({"steps": axis(**STEPS), "seen": axis(**SEEN)}, combine="grid", seeds=[0, 7])
    cells = expand(config)
    expected = [f"steps.{s}-seen.{n}-seed.{k}" for s in "abc" for n in "xy" for k in (0, 7)]
    assert ids(cells) == expected
    for cell in cells:
        run = trained(cell)
        steps = {"a": 4, "b": 5, "c": 6}[cell.levels["steps"]]
        tokens = {"x": 96, "y": 64}[cell.levels["seen"]]
        assert run.stages["align"].schedule.max_steps == steps
        assert run.stages["instruct"].data.max_tokens == tokens
        assert (run.name, run.seed) == (cell.id, cell.seed)
        assert Path(run.output_dir) / run.name == Path(config.output_dir) / "abl" / cell.unit


def test_a_list_has_its_first_levels_once(make_ablation: Any) -> None:
    cells = expand(make_ablation({"steps": axis(**STEPS), "seen": axis(**SEEN)}))
    assert ids(cells) == [
        *("steps.a-seen.x-seed.0", "steps.b-seen.x-seed.0", "steps.c-seen.x-seed.0"),
        "steps.a-seen.y-seed.0",
    ]


def test_pairs_go_together(make_ablation: Any) -> None:
    two = {key: STEPS[key] for key in ("a", "b")}
    cells = expand(make_ablation({"steps": axis(**two), "seen": axis(**SEEN)}, combine="paired"))
    assert ids(cells) == ["steps.a-seen.x-seed.0", "steps.b-seen.y-seed.0"]
    with pytest.raises(ConfigError, match="combine: paired needs axes of one length"):
        make_ablation({"steps": axis(**STEPS), "seen": axis(**SEEN)}, combine="paired")


def test_a_ladder_keeps_what_is_below(make_ablation: Any) -> None:
    ladder = axis(
        start={},
        rate=["stages.instruct.train.connector.lr=0.5"],
        longer={"stages": {"instruct": {"schedule": {"max_steps": 9}}}},
        slower=["stages.instruct.train.connector.lr=0.25"],
    )
    cells = expand(make_ablation({"rung": ladder | {"cumulative": True}}))
    stages = [trained(cell).stages["instruct"] for cell in cells]
    assert [(stage.train["connector"].lr, stage.schedule.max_steps) for stage in stages] == [
        *((0.005, 7), (0.5, 7), (0.5, 9)),
        (0.25, 9),
    ]


def test_no_level_reaches_into_another(make_ablation: Any) -> None:
    """Lists of the run are shared by nothing: an override changes them in place."""
    rows = ["stages.align.data.mix.0.limit=5"]
    cells = expand(make_ablation({"rows": axis(few=rows, all=[]), "seen": axis(**SEEN)}, combine="grid"))
    limits = [trained(cell).stages["align"].data.mix[0].options.get("limit") for cell in cells]
    assert limits == [5, 5, None, None]


def test_what_all_cells_have_comes_first(make_ablation: Any) -> None:
    config = make_ablation(
        {"steps": axis(**STEPS)}, set={"stages": {"align": {"schedule": {"max_steps": 2}}}}
    )
    assert [trained(cell).stages["align"].schedule.max_steps for cell in expand(config)] == [2, 5, 6]


def test_cells_say_what_differs_and_are_found_in_wandb(make_ablation: Any) -> None:
    cells = expand(make_ablation({"steps": axis(**STEPS), "seen": axis(**SEEN)}, seeds=[0, 1]))
    by_id = {cell.id: cell for cell in cells}
    assert [by_id[f"steps.a-seen.x-seed.{seed}"].diff for seed in (0, 1)] == [{}, {}]
    assert by_id["steps.a-seen.y-seed.1"].diff == {"stages.instruct.data.max_tokens": 64}
    logging = trained(by_id["steps.b-seen.x-seed.1"]).logging
    assert (logging.group, logging.tags) == ("abl", ("steps.b", "seen.x"))


def test_a_key_that_is_gone_differs(make_ablation: Any) -> None:
    cells = expand(make_ablation({"stages": axis(both={}, one={"stages": {"align": None}})}))
    assert list(trained(cells[1]).stages) == ["instruct"]
    assert cells[1].diff["stages.align.schedule.max_steps"] is None


def test_a_prism_run_has_cells_too(make_ablation: Any) -> None:
    wordings = axis(one={}, two={"instructions": {"generic": {"key": "human2"}}})
    config = make_ablation({"wording": wordings}, run="prism/paper", figures=["mmstar.captioner.generic.llm"])
    cells = expand(config)
    assert [cell.kind for cell in cells] == ["prism", "prism"]
    assert cells[1].diff == {"instructions.generic.key": "human2"}
    assert isinstance(cells[1].config, PrismConfig) and cells[1].config.name == cells[1].id
    with pytest.raises(ConfigError, match=r"figures: 'mmstr.x' names no benchmark. Did you mean 'mmstar'"):
        expand(make_ablation({"wording": wordings}, run="prism/paper", figures=["mmstr.x"]))


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (["stages.align.shedule.max_steps=3"], r"axes.steps.levels.z: stages.align.shedule: unknown key"),
        ({"model": {"connector": {"name": "mpl"}}}, r"axes.steps.levels.z: model.connector: no connector"),
        (
            {"model": {"connector": {"deepth": 1}}},
            r"axes.steps.levels.z: model.connector.deepth: unknown key",
        ),
        (["stages.align.data.mix.7.limit=5"], r"axes.steps.levels.z: override 'stages.align.data.mix.7"),
        (["seed=3"], r"axes.steps.levels.z: seed=3: the ablation sets 'seed' in every cell, .* key 'seeds'"),
        ({"name": "other"}, r"axes.steps.levels.z: name='other'"),
        ({"stages": {"*": 3}}, r"axes.steps.levels.z: .*expected keys for every entry"),
    ],
)
def test_a_wrong_level_is_named_with_file_axis_and_key(make_ablation: Any, level: Any, words: str) -> None:
    config = make_ablation({"seen": axis(**SEEN), "steps": axis(a={}, z=level)}, combine="grid")
    with pytest.raises(ConfigError, match=f"^abl.yaml: {words}"):
        expand(config, "abl.yaml")


def test_what_is_wrong_everywhere_is_looked_for_in_run_and_set(make_ablation: Any) -> None:
    config = make_ablation({"steps": axis(**STEPS)}, set=["stages.align.shedule=3"])
    with pytest.raises(ConfigError, match=r"set, run \(.*\) or axes.steps.levels.a: stages.align.shedule"):
        expand(config)


def test_two_levels_that_are_the_same_are_named(make_ablation: Any) -> None:
    same = axis(a={}, b=["stages.align.schedule.max_steps=4"], c=STEPS["c"])
    words = "axes.steps.levels.a and axes.steps.levels.b give the same config"
    with pytest.raises(ConfigError, match=re.escape(words)):
        expand(make_ablation({"seen": axis(**SEEN), "steps": same}))
    # where records go makes no other run
    with pytest.raises(ConfigError, match="give the same config"):
        expand(make_ablation({"log": axis(a={}, b=["logging.every_steps=9"])}))


def test_figures_are_of_what_is_measured(make_ablation: Any) -> None:
    steps = {"steps": axis(**STEPS)}
    with pytest.raises(ConfigError, match="has no section 'evaluation'"):
        expand(make_ablation(steps, launch={}))
    split = {"source": {"name": "llava_json", "path": "a.json"}}
    measured = {"evaluation": {"splits": {"held_out": split}}}
    expand(make_ablation(steps, launch={}, set=measured))
    with pytest.raises(ConfigError, match=r"figures: 'heldout.x' names no split.*Did you mean 'held_out'"):
        expand(make_ablation(steps, launch={}, set=measured, figures=["heldout.x"]))


def test_an_ablation_of_an_ablation_is_refused(make_ablation: Any, tmp_path: Path) -> None:
    config = make_ablation({"steps": axis(**STEPS)})
    nested = config.model_copy(update={"run": str(tmp_path / "abl.yaml")})
    with pytest.raises(ConfigError, match="is an ablation itself"):
        expand(nested)


def test_cells_whose_folders_no_system_takes_are_refused(make_ablation: Any) -> None:
    with pytest.raises(ConfigError, match="shorten the names"):
        expand(make_ablation({"steps": axis(**{"a" * 190: {}, "b": STEPS["b"]})}))
