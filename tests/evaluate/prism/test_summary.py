"""The figures of results.json against counts by hand and the statistics they are made with."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from prism_items import CUT_OFF, FAILED, REFUSED, UNREAD, item

from prismcap.configs.errors import DataError
from prismcap.evaluate.intervals import wilson
from prismcap.evaluate.prism.cells import Cell
from prismcap.evaluate.prism.comparisons import differing_axis, pairs_of
from prismcap.evaluate.prism.cost import total_cost
from prismcap.evaluate.prism.summary import summarise
from prismcap.evaluate.statistics.clustered import clustered_rate
from prismcap.evaluate.statistics.multiple import holm
from prismcap.evaluate.statistics.paired import mcnemar, paired_difference


def only_cell(rows: list[dict[str, Any]]) -> dict[str, Any]:
    (cell,) = summarise(rows, {}, seed=0)["cells"]
    return dict(cell)


def test_refusals_three_ways_and_shares() -> None:
    rows = [item(str(n), right=True) for n in range(4)]
    rows += [item(str(n)) for n in range(4, 6)]
    rows += [item("6") | REFUSED, item("7") | REFUSED, item("8") | UNREAD, item("9") | FAILED]
    rows += [item("10") | CUT_OFF | UNREAD]
    cell = only_cell(rows)
    n = len(rows)
    assert cell["n"] == n and cell["micro"] == cell["refusals"]["wrong"] == wilson(4, n).as_dict()
    assert cell["refusals"]["expected"]["rate"] == pytest.approx((4 + 2 / 4) / n, abs=1e-6)
    assert cell["refusals"]["excluded"] == wilson(4, n - 2).as_dict()
    shares = {name: cell[name] * n for name in ("refused", "unmatched", "failed", "cut_off")}
    assert shares == pytest.approx({"refused": 2, "unmatched": 2, "failed": 1, "cut_off": 1}, abs=1e-4)


def test_where_everything_is_refused_nothing_is_left_to_exclude_from() -> None:
    cell = only_cell([item(str(n)) | REFUSED for n in range(8)])
    assert cell["refusals"]["excluded"] is None
    assert cell["refusals"]["expected"]["rate"] == 0.25
    assert cell["refusals"]["expected"]["high"] > 0.25, "eight refusals are not known to the last digit"


def test_micro_and_macro_are_named_apart() -> None:
    rows = [item(f"e{n}", right=True, categories={"skill": "easy", "split": "val"}) for n in range(30)]
    rows += [item(f"h{n}", categories={"skill": "hard", "split": "val"}) for n in range(10)]
    rows += [item("none", right=True, categories={"skill": "", "split": "val"})]
    cell = only_cell(rows)
    assert cell["micro"]["rate"] == pytest.approx(31 / 41, abs=1e-6)
    assert cell["macro"]["skill"]["rate"] == 0.5 and cell["macro"]["skill"]["n"] == 40
    assert cell["macro"]["split"]["rate"] == cell["micro"]["rate"]
    assert cell["by"]["skill"] == {"easy": wilson(30, 30).as_dict(), "hard": wilson(0, 10).as_dict()}


def test_rates_are_resampled_by_picture_where_pictures_repeat() -> None:
    rng = np.random.default_rng(1)
    rows = [
        item(str(n), right=bool(rng.random() < (0.9 if n // 5 % 2 else 0.2)), cluster=f"picture {n // 5}")
        for n in range(200)
    ]
    cell = only_cell(rows)
    alone = clustered_rate([row["right"] for row in rows], [row["cluster"] for row in rows], seed=0)
    assert cell["micro"] == alone.as_dict()
    naive = wilson(sum(row["right"] for row in rows), 200)
    assert cell["micro"]["high"] - cell["micro"]["low"] > 1.4 * (naive.high - naive.low)


def test_questions_without_a_picture_stand_for_themselves() -> None:
    rows = [item(str(n), right=n < 5, cluster="") for n in range(10)]
    assert only_cell(rows)["micro"] == wilson(5, 10).as_dict()


def test_circular_asks_for_all_rotations() -> None:
    rows = []
    for question, rights in {"p": [1, 1, 1], "q": [1, 1, 0], "r": [0, 0, 0], "s": [1, 1, 1]}.items():
        rows += [
            item(f"{question}{turn}", right=bool(right), circle=question, cluster=f"of {question}")
            for turn, right in enumerate(rights)
        ]
    cell = only_cell(rows)
    assert cell["circular"] == wilson(2, 4).as_dict()
    assert cell["micro"]["rate"] == pytest.approx(8 / 12, abs=1e-6)
    # a limit cut the last circle of another cell: one rotation of three is no answer to all
    cut = [row | {"perceiver": "theirs"} for row in rows[:-2]]
    figures = {found["perceiver"]: found for found in summarise(rows + cut, {}, 0)["cells"]}
    assert figures["theirs"]["circular"] == wilson(1, 3).as_dict()
    assert only_cell([item()])["circular"] is None


def two_cells(seed: int = 0, n: int = 120) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for perceiver, share in (("blank", 0.3), ("ours", 0.6)):
        rows += [
            item(str(k), perceiver, right=bool(rng.random() < share), cluster=f"picture {k // 3}")
            for k in range(n)
        ]
    return rows


def test_a_comparison_is_the_paired_statistics_of_common_questions() -> None:
    rows = two_cells()
    rows = [row for row in rows if not (row["perceiver"] == "ours" and int(row["id"]) >= 90)]
    (found,) = summarise(rows, {}, seed=4)["comparisons"]
    a, b = ([row for row in rows if row["perceiver"] == name][:90] for name in ("blank", "ours"))
    clusters = [row["cluster"] for row in b]
    right_a, right_b = ([row["right"] for row in side] for side in (a, b))
    reference = paired_difference(right_a, right_b, clusters, seed=4)
    assert found["difference"]["n"] == 90
    assert found["difference"]["mean"] == pytest.approx(reference.mean, abs=1e-6)
    assert found["difference"]["low"] == pytest.approx(reference.low, abs=0.012)
    assert found["difference"]["high"] == pytest.approx(reference.high, abs=0.012)
    assert found["mcnemar_p"] == found["p_holm"] == mcnemar(right_a, right_b, clusters)
    assert (found["a"]["perceiver"], found["b"]["perceiver"]) == ("blank", "ours")
    assert found["only_b"] - found["only_a"] == round(90 * reference.mean)
    assert 0 < found["minimum_detectable"] < 0.5


def test_copies_of_a_question_do_not_sharpen_what_can_be_detected() -> None:
    once = two_cells()
    once = [row | {"cluster": row["id"]} for row in once]
    copied = [row | {"id": f"{row['id']}.{copy}"} for row in once for copy in range(4)]
    (one,), (many,) = (summarise(rows, {}, 0)["comparisons"] for rows in (once, copied))
    assert many["minimum_detectable"] == pytest.approx(one["minimum_detectable"], abs=2e-6)
    assert many["mcnemar_p"] == pytest.approx(one["mcnemar_p"])


CELLS = {
    name: Cell("stars", *names)
    for name, names in {
        "ours": ("ours", "generic", "llm"),
        "cot": ("ours", "cot", "llm"),
        "blank": ("blank", "generic", "llm"),
        "keyword": ("ours", "generic", "keyword"),
        "blank keyword": ("blank", "generic", "keyword"),
        "blind": ("blind", "-", "llm"),
        "alone": ("ours", "-", "end_to_end"),
    }.items()
}


@pytest.mark.parametrize(
    ("a", "b", "axis"),
    [
        ("ours", "cot", "instruction"),
        ("ours", "blank", "perceiver"),
        ("ours", "keyword", "reasoner"),
        ("ours", "blank keyword", None),
        ("ours", "ours", None),
        ("cot", "blank", None),
        ("blind", "ours", "perceiver"),  # no description against one: whatever was asked for
        ("blind", "cot", "perceiver"),
        ("blind", "keyword", None),
        ("alone", "cot", "reasoner"),
        ("alone", "blank", None),
        ("alone", "blind", None),
    ],
)
def test_cells_are_compared_when_one_thing_differs(a: str, b: str, axis: str | None) -> None:
    assert differing_axis(CELLS[a], CELLS[b]) == differing_axis(CELLS[b], CELLS[a]) == axis
    assert differing_axis(CELLS[a], Cell("scenes", *list(CELLS[b].as_dict().values())[1:])) is None


def test_comparisons_are_bounded_and_what_is_left_out_is_counted() -> None:
    cells = [Cell("stars", f"p{p}", "generic", f"r{r}") for p in range(6) for r in range(6)]
    everything, none_left = pairs_of(cells, most=10_000)
    assert len(everything) == 2 * 6 * 15 and none_left == 0
    kept, left_out = pairs_of(cells, most=100)
    assert len(kept) == 2 * 6 * 5 and left_out == len(everything) - len(kept)
    for a, b in kept:
        assert (a.perceiver == "p0") if a.reasoner == b.reasoner else (a.reasoner == "r0")
    few, left_out = pairs_of(cells, most=7)
    assert few == kept[:7] and left_out == len(everything) - 7
    rows = [item("1", *list(cell.as_dict().values())[1:]) for cell in cells]
    found = summarise(rows, {}, 0)
    assert len(found["comparisons"]) == 60 and found["comparisons_left_out"] == {"stars": 120}


def test_the_family_is_the_benchmark() -> None:
    rng = np.random.default_rng(2)
    rows = [
        item(str(n), perceiver, right=bool(rng.random() < share), benchmark=benchmark)
        for benchmark in ("stars", "scenes")
        for perceiver, share in (("ours", 0.7), ("theirs", 0.5), ("blank", 0.4))
        for n in range(80)
    ]
    comparisons = summarise(rows, {}, 0)["comparisons"]
    for benchmark in ("stars", "scenes"):
        family = [row for row in comparisons if row["family"] == benchmark]
        assert len(family) == 3 and {row["benchmark"] for row in family} == {benchmark}
        assert [row["p_holm"] for row in family] == holm([row["mcnemar_p"] for row in family])


def test_accuracy_against_length_in_bins_of_alike_size() -> None:
    rows = [item(str(n), right=n < 50, description="word " * (n + 1)) for n in range(100)]
    curve = summarise(rows, {}, 0)["length_curve"]
    assert [point["tokens"]["low"] for point in curve] == [1, 26, 51, 76]
    assert [point["tokens"]["high"] for point in curve] == [25, 50, 75, 100]
    assert [point["rate"]["rate"] for point in curve] == [1, 1, 0, 0]
    assert sum(point["rate"]["n"] for point in curve) == 100
    assert {point["unit"] for point in curve} == {"words"}
    assert only_cell(rows)["description_tokens"] == {"mean": 50.5, "median": 50.5, "unit": "words"}


def test_equal_lengths_stay_together_and_tokens_count_where_all_are_known() -> None:
    same = [item(str(n), description="three words here", description_tokens=7) for n in range(40)]
    (point,) = summarise(same, {}, 0)["length_curve"]
    assert point["tokens"] == {"low": 7, "high": 7, "mean": 7} and point["unit"] == "tokens"
    uncounted = [*same[1:], item("x", description="one", description_tokens=None)]
    assert {point["unit"] for point in summarise(uncounted, {}, 0)["length_curve"]} == {"words"}


def test_without_descriptions_there_is_no_length() -> None:
    found = summarise([item(perceiver="blind", instruction="-")], {}, 0)
    assert found["cells"][0]["description_tokens"] is None and found["length_curve"] == []
    assert found["attribution"] == []


def test_costs_stand_at_their_cell_and_attribution_adds_up() -> None:
    rows = two_cells(n=12) + [item(str(n), "reference", right=True) for n in range(12)]
    cost = {"reason": total_cost([], None)}
    found = summarise(rows, {Cell("stars", "ours", "generic", "llm"): cost}, 0)
    assert {cell["perceiver"]: cell["cost"] for cell in found["cells"]} == {
        "blank": {},
        "ours": cost,
        "reference": {},
    }
    for total in found["attribution"]:
        assert sum(total["causes"].values()) == total["n"] == 12
        assert total["causes"]["reasoning_lost"] == total["causes"]["unexplained"] == 0
    assert json.loads(json.dumps(found)) == found, "plain JSON values only"


def test_the_same_seed_gives_the_same_figures() -> None:
    rows = two_cells()
    assert summarise(rows, {}, 3) == summarise(rows, {}, 3) != summarise(rows, {}, 4)


def test_an_item_twice_is_refused() -> None:
    with pytest.raises(DataError, match="occurs twice"):
        summarise([item("1"), item("1")], {}, 0)
