"""Effects of axes: paired by seed and item, by hand where they are tiny, and said in words."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ablation_folder import FIGURE, ablation_folder, cell_id, outcomes, write_json, write_lines, write_status
from scipy.stats import t

from prismcap.evaluate.ablation.effects import effects_of
from prismcap.evaluate.ablation.levels import axes_of, levels_of
from prismcap.evaluate.ablation.read import read_ablation
from prismcap.evaluate.ablation.sentences import p_text, signed
from prismcap.evaluate.statistics.multiple import holm

Record = dict[str, Any]
CONNECTOR = {"connector": ("linear", "mlp")}
BOTH = {"connector": ("linear", "mlp"), "data": ("captions", "questions")}


def effects(folder: Path) -> dict[tuple[str, str], Record]:
    return {(effect["axis"], effect["level"]): effect for effect in effects_of(read_ablation(folder))}


def items(*values: float) -> dict[str, float]:
    return {f"item{number}": value for number, value in enumerate(values)}


def by_hand(levels: Mapping[str, str], seed: int) -> dict[str, float]:
    """linear is 0; mlp 1 3 in seed 0 and 5 11 in seed 1: mean 5, mean squares 36, 16 and 4."""
    if levels["connector"] == "linear":
        return items(0, 0)
    return items(1, 3) if seed == 0 else items(5, 11)


def flags(levels: Mapping[str, str], seed: int, better: float = 0.35, n: int = 80) -> dict[str, float]:
    """Right and wrong: mlp is right more often by `better`, questions make no difference."""
    rng = random.Random(f"{levels['connector']} {seed}")
    ease = random.Random("items")
    rate = 0.35 + better * (levels["connector"] == "mlp")
    return items(*(float(rng.random() < rate + 0.2 * (ease.random() - 0.5)) for _ in range(n)))


def test_an_effect_by_hand(tmp_path: Path) -> None:
    found = effects(ablation_folder(tmp_path, CONNECTOR, by_hand, seeds=(0, 1)))
    effect = found["connector", "mlp"]
    error, df = math.sqrt(12), 1
    reach = t.ppf(0.975, df)
    assert list(found) == [("connector", "mlp")] and effect["against"] == "linear"
    assert effect["difference"] == 5 and effect["by_seed"] == {"0": 2, "1": 8}
    assert (effect["low"], effect["high"]) == pytest.approx((5 - reach * error, 5 + reach * error), abs=1e-5)
    assert effect["p"] == pytest.approx(2 * t.sf(5 / error, df))
    assert effect["minimum_detectable"] == pytest.approx((reach + t.ppf(0.8, df)) * error, abs=1e-5)
    assert (effect["n_seeds"], effect["n_items"], effect["share"]) == (2, 2, False)


def test_items_are_paired_by_id_and_not_by_line(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    before = effects(folder)["connector", "mlp"]
    path = folder / "cells" / cell_id({"connector": "mlp"}, 1) / "outcomes.jsonl"
    lines = path.read_text().splitlines()
    random.Random(0).shuffle(lines)
    path.write_text("\n".join(lines) + "\n")
    assert effects(folder)["connector", "mlp"] == before
    path.write_text("\n".join(lines[:70]) + "\n")
    fewer = effects(folder)["connector", "mlp"]
    assert fewer["n_items"] == 70 and fewer["design"] == "crossed"


def flags_two_ways(levels: Mapping[str, str], seed: int) -> dict[str, float]:
    return flags({"connector": levels["connector"]}, seed)


def test_a_grid_averages_over_the_other_axis(tmp_path: Path) -> None:
    """mlp adds 2 with captions and 4 with questions: 3; questions add 10 with linear and 12 with mlp: 11."""

    def measure(levels: dict[str, str], seed: int) -> dict[str, float]:
        mlp, questions = levels["connector"] == "mlp", levels["data"] == "questions"
        base = 2 * mlp + 10 * questions + 2 * (mlp and questions)
        return items(*(base + 5 * number + 0.1 * (seed * number % 3) for number in range(6)))

    found = effects(ablation_folder(tmp_path, BOTH, measure, combine="grid"))
    assert found["connector", "mlp"]["difference"] == pytest.approx(3)
    assert found["data", "questions"]["difference"] == pytest.approx(11)
    assert found["connector", "mlp"]["pairs"] == 6


def test_a_list_holds_the_other_axes_at_their_first_level(tmp_path: Path) -> None:
    """The cell with other data is no reference for the connector, though it is linear too."""

    def measure(levels: dict[str, str], seed: int) -> dict[str, float]:
        return items(*(7 * (levels["connector"] == "mlp") + 90 * (levels["data"] == "questions") + seed + n
                       for n in range(5)))  # fmt: skip

    found = effects(ablation_folder(tmp_path, BOTH, measure))
    assert found["connector", "mlp"]["difference"] == pytest.approx(7)
    assert found["data", "questions"]["difference"] == pytest.approx(90)
    assert found["connector", "mlp"]["pairs"] == 3


def test_paired_axes_are_one(tmp_path: Path) -> None:
    def measure(levels: dict[str, str], seed: int) -> dict[str, float]:
        return items(*(6 * (levels["connector"] == "mlp") + seed * n for n in range(5)))

    folder = ablation_folder(tmp_path, BOTH, measure, combine="paired")
    found = effects(folder)
    assert list(found) == [("connector + data", "mlp + questions")]
    effect = found["connector + data", "mlp + questions"]
    assert effect["difference"] == pytest.approx(6) and effect["against"] == "linear + captions"


def test_a_ladder_is_held_against_the_step_before(tmp_path: Path) -> None:
    worth = {"base": 1.0, "data": 4.0, "size": 9.0}

    def measure(levels: dict[str, str], seed: int) -> dict[str, float]:
        return items(*(worth[levels["ladder"]] + n + 0.1 * (seed * n % 2) for n in range(5)))

    axes = {"ladder": tuple(worth)}
    ladder = effects(ablation_folder(tmp_path / "a", axes, measure, cumulative=["ladder"]))
    assert [effect["against"] for effect in ladder.values()] == ["base", "data"]
    assert ladder["ladder", "size"]["difference"] == pytest.approx(5)
    plain = effects(ablation_folder(tmp_path / "b", axes, measure))
    assert plain["ladder", "size"]["difference"] == pytest.approx(8)


def test_what_failed_is_left_out_and_said(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    failed = cell_id({"connector": "mlp"}, 1)
    write_status(folder, f"cells/{failed}", "failed", error="out of memory")
    effect = effects(folder)["connector", "mlp"]
    assert effect["seeds"] == [0, 2] and effect["seeds_without"] == [1] and effect["n_seeds"] == 2
    assert effect["sentence"].endswith("; without seed 1, where a side is missing")
    for seed in (0, 2):
        write_status(folder, f"cells/{cell_id({'connector': 'linear'}, seed)}", "running")
    effect = effects(folder)["connector", "mlp"]
    assert effect["difference"] is None and effect["p_holm"] is None
    assert effect["sentence"] == (
        "mlp against linear: no effect to report: no seed has both sides measured (cells are failed, running)"
    )
    [axis] = axes_of(read_ablation(folder), [effect])
    assert axis["sentence"] == "connector: no effect to report for mlp."


def test_results_of_another_plan_are_not_taken(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    write_status(folder, f"cells/{cell_id({'connector': 'mlp'}, 0)}", "done", hash="of an older config")
    assert effects(folder)["connector", "mlp"]["seeds"] == [1, 2]
    assert {cell.state for cell in read_ablation(folder).cells} == {"done", "waiting"}


def test_a_damaged_cell_fails_by_itself(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    id = cell_id({"connector": "mlp"}, 2)
    path = folder / "cells" / id / "outcomes.jsonl"
    path.write_text('{"figure": "a.b", "id": "x"}\n' + path.read_text())
    [cell] = [cell for cell in read_ablation(folder).cells if cell.state == "failed"]
    assert cell.id == id and cell.error is not None and "row 1: key 'cluster' is missing" in cell.error
    assert effects(folder)["connector", "mlp"]["seeds"] == [0, 1]


def test_holm_is_over_all_effects_of_one_figure(tmp_path: Path) -> None:
    axes = {"connector": ("linear", "mlp"), "data": ("captions", "questions", "both")}

    def first(levels: dict[str, str], seed: int) -> dict[str, float]:
        return flags({"connector": f"{levels['connector']}"}, seed + (levels["data"] != "captions") * 7, 0.2)

    def second(levels: dict[str, str], seed: int) -> dict[str, float]:
        return flags({"connector": levels["connector"]}, seed + 100 + len(levels["data"]), 0.1)

    folder = ablation_folder(tmp_path, axes, {"a.x": first, "b.y": second})
    found = effects_of(read_ablation(folder))
    assert len(found) == 6
    for figure in ("a.x", "b.y"):
        family = [effect for effect in found if effect["figure"] == figure]
        assert [effect["p_holm"] for effect in family] == pytest.approx(holm([e["p"] for e in family]))
        assert max(effect["p_holm"] / effect["p"] for effect in family) <= 3


def test_shown_and_not_shown_in_words(tmp_path: Path) -> None:
    """An effect far from zero is told with its numbers; one that is none with what could have been found."""

    def measure(levels: dict[str, str], seed: int) -> dict[str, float]:
        return flags({"connector": levels["connector"]}, seed * 10 + len(levels["data"]), 0.5, n=300)

    folder = ablation_folder(tmp_path, BOTH, measure)
    found = effects(folder)
    mlp, data = found["connector", "mlp"], found["data", "questions"]
    points = [f"{100 * mlp[key]:.1f}" for key in ("difference", "low", "high")]
    assert mlp["share"] and mlp["sentence"] == (
        f"mlp against linear: +{points[0]} points ({points[1]} .. {points[2]}), "
        f"{p_text(mlp['p_holm'])} after Holm"
    )
    assert data["p_holm"] > 0.05 and data["sentence"].startswith(
        "questions against captions: no difference could be shown (minimum detectable "
        f"{100 * data['minimum_detectable']:.1f} points): "
    )
    connector, other = axes_of(read_ablation(folder), list(found.values()))
    assert connector["sentence"].startswith(f"connector: mlp against linear +{points[0]} points (")
    assert other["sentence"] == (
        "data: no difference could be shown for questions against captions (minimum detectable "
        f"{100 * data['minimum_detectable']:.1f} points)."
    )


def test_one_seed_says_that_seeds_were_not_varied(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways, seeds=(4,))
    effect = effects(folder)["connector", "mlp"]
    assert effect["design"] == "items" and effect["n_seeds"] == 1
    assert "one seed: seeds were not varied" in effect["sentence"]
    [axis] = axes_of(read_ablation(folder), [effect])
    assert axis["sentence"].endswith("seeds were not varied.")


def test_items_of_one_picture_go_together(tmp_path: Path) -> None:
    """Four copies of every item are no more items: the interval is that of one."""

    def copied(levels: dict[str, str], seed: int) -> dict[str, float]:
        values = flags_two_ways(levels, seed).items()
        return {f"{id}-{copy}": value for id, value in values for copy in range(4)}

    once = effects(ablation_folder(tmp_path / "once", CONNECTOR, flags_two_ways))["connector", "mlp"]
    four = effects(ablation_folder(tmp_path / "four", CONNECTOR, copied, per_picture=4))["connector", "mlp"]
    alone = effects(ablation_folder(tmp_path / "alone", CONNECTOR, copied))["connector", "mlp"]
    assert (four["low"], four["high"]) == pytest.approx((once["low"], once["high"]))
    assert (four["n_items"], four["n_clusters"]) == (320, 80)
    assert alone["error"] < four["error"]


def test_seeds_with_other_items_are_not_crossed(tmp_path: Path) -> None:
    def measure(levels: dict[str, str], seed: int) -> dict[str, float]:
        return {f"{seed}/{id}": value for id, value in flags_two_ways(levels, seed).items()}

    effect = effects(ablation_folder(tmp_path, CONNECTOR, measure))["connector", "mlp"]
    assert effect["design"] == "nested" and effect["n_items"] == 240
    assert effect["sentence"].endswith("; each seed has items of its own")


def test_an_item_of_another_picture_is_another_item(tmp_path: Path) -> None:
    """Seeds drew other scenes under the same ids."""
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    for cell in read_ablation(folder).cells:
        rows = outcomes(FIGURE, flags_two_ways(cell.levels, cell.seed))
        for row in rows:
            row["cluster"] += f" of seed {cell.seed}"
        write_lines(cell.folder / "outcomes.jsonl", rows)
    effect = effects(folder)["connector", "mlp"]
    assert effect["design"] == "nested" and (effect["n_items"], effect["n_clusters"]) == (240, 240)


def test_a_figure_that_is_no_mean_says_so(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    for cell in read_ablation(folder).cells:
        corpus = {"mean": 0.9, "low": 0.8, "high": 0.95, "n": 80, "unit": "score", "higher_is_better": False}
        write_json(cell.folder / "metrics.json", {"about": {}, "held_out": {"all_right": corpus}})
    effect = effects(folder)["connector", "mlp"]
    assert not effect["mean_of_items"] and "of the items' own values" in effect["sentence"]
    assert not effect["share"] and effect["higher_is_better"] is False


def test_a_figure_that_nobody_has_names_those_there_are(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways, figures=["held_out.al_right"])
    effect = effects(folder)["connector", "mlp"]
    assert f"no cell was measured by items on held_out.al_right; they have {FIGURE}" in effect["sentence"]


def test_levels_are_means_over_seeds(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, BOTH, lambda levels, seed: flags_two_ways(levels, seed))
    rows = {(row["axis"], row["level"]): row for row in levels_of(read_ablation(folder))}
    row = rows["connector", "mlp"]
    means = [sum(flags({"connector": "mlp"}, seed).values()) / 80 for seed in (0, 1, 2)]
    assert row["by_seed"] == {str(seed): pytest.approx(mean, abs=1e-6) for seed, mean in enumerate(means)}
    assert row["value"] == pytest.approx(sum(means) / 3, abs=1e-6) and row["low"] < row["value"] < row["high"]
    assert len(row["cells"]) == 3 and row["cells_without"] == 0
    assert rows["data", "captions"]["value"] == rows["connector", "linear"]["value"]


def test_what_levels_set_is_their_diff_from_the_first_cell(tmp_path: Path) -> None:
    ablation = read_ablation(ablation_folder(tmp_path, BOTH, flags_two_ways, combine="grid"))
    connector, data = axes_of(ablation, [])
    assert connector["settings"] == {"linear": {}, "mlp": {"model.connector.name": "mlp"}}
    assert data["settings"]["questions"] == {"model.data.name": "questions"}
    assert connector["cells"]["mlp"] == [
        cell_id({"connector": "mlp", "data": "captions"}, seed) for seed in (0, 1, 2)
    ]


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    folder = ablation_folder(tmp_path, CONNECTOR, flags_two_ways)
    path = folder / "cells" / cell_id({"connector": "mlp"}, 0) / "outcomes.jsonl"
    rows: list[dict[str, Any]] = outcomes(FIGURE, {"a": 1.0, "b": 0.0})
    for bad, message in ((None, "row 2: value None is no finite number"), (math.nan, "value nan")):
        rows[1]["value"] = bad
        write_lines(path, rows)
        assert any(message in str(cell.error) for cell in read_ablation(folder).cells)
    rows[1] = dict(rows[0])
    write_lines(path, rows)
    assert any(
        "item 'a' of held_out.all_right occurs twice" in str(c.error) for c in read_ablation(folder).cells
    )
    assert json.loads(path.read_text().splitlines()[0])["value"] == 1.0


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [(0.0421, True, "+4.2"), (-0.0421, True, "-4.2"), (-0.0001, True, "0.0"), (0.0421, False, "+0.0421")],
)
def test_differences_in_words(value: float, share: bool, text: str) -> None:
    assert signed(value, share) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0002, "p < 0.001"), (0.012, "p = 0.012"), (0.0499, "p = 0.050"), (1.0, "p = 1.00")]
)
def test_p_values_in_words(p: float, text: str) -> None:
    assert p_text(p) == text
