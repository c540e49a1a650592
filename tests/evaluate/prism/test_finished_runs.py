"""prism compare and prism fuse on run folders: the same questions or none, and nothing dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prism_items import FAILED, item

from prismcap.configs.errors import ConfigError, DataError
from prismcap.evaluate.prism.compare import compare_runs, comparison_table
from prismcap.evaluate.prism.fuse import fuse
from prismcap.evaluate.statistics.multiple import holm
from prismcap.evaluate.statistics.paired import mcnemar


def run_folder(folder: Path, rows: list[dict[str, Any]], checksum: str = "c0ffee") -> Path:
    folder.mkdir(parents=True)
    benchmarks = {row["benchmark"]: {"checksum": checksum} for row in rows}
    about = {"name": folder.name, "complete": True}
    (folder / "results.json").write_text(json.dumps({"about": about, "benchmarks": benchmarks}))
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def answers(seed: int, share: float, n: int = 150, **values: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [item(str(k), right=bool(rng.random() < share), **values) for k in range(n)]


def test_cells_of_one_name_are_compared_on_common_questions(tmp_path: Path) -> None:
    before, after = answers(1, 0.4), answers(2, 0.6)[50:]
    other = [row | {"reasoner": "keyword"} for row in answers(3, 0.3)]
    folders = [run_folder(tmp_path / "old", before), run_folder(tmp_path / "new", after + other)]
    found = compare_runs(folders)
    (row,) = found["comparisons"]
    assert (row["a"]["run"], row["b"]["run"]) == ("old", "new")
    assert row["a"]["reasoner"] == row["b"]["reasoner"] == "llm"
    right_a, right_b = [r["right"] for r in before[50:]], [r["right"] for r in after]
    assert row["difference"]["n"] == 100
    assert row["difference"]["mean"] == pytest.approx(np.mean(right_b) - np.mean(right_a), abs=1e-6)
    assert row["mcnemar_p"] == mcnemar(right_a, right_b)
    assert row["minimum_detectable"] > 0
    assert found["benchmarks"] == {"stars": "c0ffee"} and found["left_out"] == {"stars": 0}
    table = comparison_table(found["comparisons"])
    assert "old/ours (generic) + llm -> new/ours (generic) + llm" in table
    assert "n = 100" in table and "detectable from" in table


def test_all_pairs_of_runs_are_one_family(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / f"r{k}", answers(k, 0.3 + 0.1 * k)) for k in range(3)]
    rows = compare_runs(folders)["comparisons"]
    assert [(row["a"]["run"], row["b"]["run"]) for row in rows] == [("r0", "r1"), ("r0", "r2"), ("r1", "r2")]
    assert [row["p_holm"] for row in rows] == holm([row["mcnemar_p"] for row in rows])
    assert len({row["family"] for row in rows}) == 1


def test_without_a_cell_in_common_those_that_differ_in_one_name_are_compared(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", answers(1, 0.4, perceiver="small"))
    two = run_folder(tmp_path / "two", answers(2, 0.6, perceiver="large"))
    (row,) = compare_runs([one, two])["comparisons"]
    assert (row["a"]["perceiver"], row["b"]["perceiver"]) == ("small", "large")


def test_other_questions_under_the_same_name_are_refused(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", answers(1, 0.4))
    two = run_folder(tmp_path / "two", answers(2, 0.6), checksum="decaf0")
    for use in (lambda: compare_runs([one, two]), lambda: fuse([one, two], tmp_path / "f.jsonl")):
        with pytest.raises(DataError, match=r"two.results\.json.*'stars'.*decaf0.*one.*c0ffee"):
            use()
    assert not (tmp_path / "f.jsonl").exists()


def test_runs_without_anything_in_common_are_refused(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", answers(1, 0.4))
    two = run_folder(tmp_path / "two", answers(2, 0.6, perceiver="x", reasoner="y"))
    with pytest.raises(DataError, match="differ in at most one"):
        compare_runs([one, two])


def test_two_different_folders_are_needed(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", answers(1, 0.4))
    for folders in ([one], [one, tmp_path / "x" / ".." / "one"]):
        with pytest.raises(ConfigError, match="at least 2 run folders, each once"):
            compare_runs(folders)


def test_runs_of_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / where / "run", answers(1, 0.4)) for where in "ab"]
    (row,) = compare_runs(folders)["comparisons"]
    assert (row["a"]["run"], row["b"]["run"]) == tuple(str(folder) for folder in folders)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("results.json", None, r"results\.json: no such file.*stage score"),
        ("results.json", "{", r"results\.json: damaged"),
        ("results.json", "[]", r"results\.json: damaged"),
        ("results.json", '{"about": {}, "benchmarks": {}}', r"no benchmark 'stars'"),
        ("items.jsonl", None, r"items\.jsonl: no such file"),
        ("items.jsonl", '{"benchmark": "stars"}\n', r"items\.jsonl, row 1: key 'id' is missing"),
        ("items.jsonl", json.dumps(item()) + "\n{\n", r"items\.jsonl, row 2: not JSON"),
        ("items.jsonl", (json.dumps(item()) + "\n") * 2, r"'1' of stars .* occurs twice"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    one, two = (run_folder(tmp_path / where, answers(1, 0.4, n=3)) for where in ("one", "two"))
    if text is None:
        (two / name).unlink()
    else:
        (two / name).write_text(text)
    with pytest.raises(DataError, match=says):
        compare_runs([one, two])


def described(perceiver: str, texts: dict[str, str | None], **values: Any) -> list[dict[str, Any]]:
    rows = [item(key, perceiver, description=text, **values) for key, text in texts.items()]
    return [row | FAILED if row["description"] is None else row for row in rows]


def rows_of(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(row) == {"benchmark", "id", "text"} for row in rows)
    return {row["id"]: row["text"] for row in rows}


def test_descriptions_are_joined_with_their_names(tmp_path: Path) -> None:
    cat = described("cat", {"1": "A red square.", "2": "Two trees."})
    blind = [item("1", "blind", "-"), item("1", "cat", "-", "end_to_end")]
    dog = described("dog", {"1": "A square, red.\n", "2": "Trees."})
    keyword = [row | {"reasoner": "keyword"} for row in dog]
    folders = [run_folder(tmp_path / "x", cat + blind), run_folder(tmp_path / "y", dog + keyword)]
    fused = fuse(folders, tmp_path / "new" / "fused.jsonl")
    assert (fused.num_written, fused.sources, fused.missing) == (2, ("cat", "dog"), ())
    assert rows_of(tmp_path / "new" / "fused.jsonl") == {
        "1": "Description 1 (cat): A red square.\n\nDescription 2 (dog): A square, red.",
        "2": "Description 1 (cat): Two trees.\n\nDescription 2 (dog): Trees.",
    }


def test_missing_and_failed_descriptions_are_listed(tmp_path: Path) -> None:
    cat = described("cat", {"1": "A red square.", "2": None, "3": None, "4": "A bus."})
    dog = described("dog", {"1": "A square.", "2": "Trees.", "3": None})
    fused = fuse([run_folder(tmp_path / "x", cat), run_folder(tmp_path / "y", dog)], tmp_path / "f.jsonl")
    texts = rows_of(tmp_path / "f.jsonl")
    assert set(texts) == {"1", "2", "4"} and fused.num_written == 3
    assert texts["2"] == "Description 2 (dog): Trees.", "a number means the same source in every row"
    assert {(row["id"], row["source"], row["why"]) for row in fused.missing} == {
        ("2", "cat", "failed"),
        ("3", "cat", "failed"),
        ("3", "dog", "failed"),
        ("4", "dog", "not described in this run"),
    }


def test_names_say_run_and_instruction_where_the_perceiver_alone_does_not(tmp_path: Path) -> None:
    twice = described("cat", {"1": "A."}) + described("cat", {"1": "B."}, instruction="cot")
    again = described("cat", {"1": "C."}) + described("dog", {"1": "D."})
    folders = [run_folder(tmp_path / "x", twice), run_folder(tmp_path / "y", again)]
    assert fuse(folders, tmp_path / "f.jsonl").sources == ("x/cat, generic", "x/cat, cot", "y/cat", "dog")
    chosen = fuse(folders, tmp_path / "f.jsonl", perceivers=["dog", "cat"])
    assert len(chosen.sources) == 4
    with pytest.raises(ConfigError, match="Did you mean 'dog'"):
        fuse(folders, tmp_path / "f.jsonl", perceivers=["dogg"])
    with pytest.raises(DataError, match="fusing takes two"):
        fuse(folders, tmp_path / "f.jsonl", perceivers=["dog"])


def test_perceivers_of_one_run_can_be_fused(tmp_path: Path) -> None:
    rows = described("cat", {"1": "A."}) + described("dog", {"1": "B."})
    assert fuse([run_folder(tmp_path / "x", rows)], tmp_path / "f.jsonl").sources == ("cat", "dog")
    with pytest.raises(ConfigError, match="at least 1 run folders"):
        fuse([], tmp_path / "f.jsonl")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, described(name, {"1": "A."})) for name in "xy"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fuse(folders, tmp_path / "file" / "f.jsonl")
