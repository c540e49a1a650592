"""People's grades: read, unblinded, scored, and how far the raters agree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from faulty_server import faulty
from judged_files import REFERENCES, judge_of, owl_files, pair_files, quality, write_answers

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.judged import JudgedConfig
from prismcap.evaluate.judged.blinding import blinded, page_id
from prismcap.evaluate.judged.evaluation import Evaluation, load_evaluation, prepare_run_dir
from prismcap.evaluate.judged.ratings import FORMAT, score_ratings
from prismcap.evaluate.judged.run import run_judged
from prismcap.evaluate.judged.table import ratings_table

Make = Callable[..., JudgedConfig]


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, str]:
    """Of question 1 both say the same."""
    return {
        "ours": write_answers(tmp_path / "ours.jsonl", {1: 0, 2: 1, 3: 2}),
        "theirs": write_answers(tmp_path / "theirs.jsonl", {1: 0, 2: 3, 3: 3}),
    }


@pytest.fixture
def evaluation(make_config: Make, answers: dict[str, str], tmp_path: Path) -> Evaluation:
    loaded = load_evaluation(make_config(owl_files(tmp_path, contexts=False), answers))
    prepare_run_dir(loaded)
    return loaded


def export(evaluation: Evaluation, path: Path, rater: str, grades: Mapping[tuple[str, str], str]) -> Path:
    """As the page writes it. grades: (model, question's id) -> grade."""
    ratings = [
        {"question_id": item.id, "answer": answer.token, "grade": grades[answer.models[0], item.id]}
        for item, shown in blinded(evaluation)
        for answer in shown
        if (answer.models[0], item.id) in grades
    ]
    values = {"format": FORMAT, "page": page_id(evaluation), "rater": rater, "ratings": ratings}
    path.write_text(json.dumps(values))
    return path


FIRST = {
    ("ours", "1"): "A",
    ("ours", "2"): "B",
    ("ours", "3"): "D",
    ("theirs", "2"): "C",
    ("theirs", "3"): "C",
}
SECOND = {**FIRST, ("ours", "3"): "B", ("theirs", "2"): "D"}


def test_equal_answers_are_one_and_no_order_tells_the_model(evaluation: Evaluation) -> None:
    shown = {item.id: answers for item, answers in blinded(evaluation)}
    assert [answer.models for answer in shown["1"]] == [("ours", "theirs")]
    assert sorted(answer.models for answer in shown["2"]) == [("ours",), ("theirs",)]
    tokens = [answer.token for answers in shown.values() for answer in answers]
    assert len(set(tokens)) == 5 and not any("ours" in token for token in tokens)
    assert shown == {item.id: answers for item, answers in blinded(evaluation)}


def test_the_order_of_answers_is_drawn_for_each_question(make_config: Make, tmp_path: Path) -> None:
    rows = [
        {"question_id": n, "image": "a.jpg", "question": "Q?", "ability": "a", "category": "x"}
        for n in range(200)
    ]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = {
        name: write_answers(tmp_path / f"{name}.jsonl", {n: q for n in range(200)})
        for q, name in enumerate(("ours", "theirs"))
    }
    config = make_config({"name": "owl_eval", "questions": str(tmp_path / "many.jsonl")}, both)
    first = [answers[0].models[0] for _, answers in blinded(load_evaluation(config))]
    assert 70 <= first.count("ours") <= 130
    other = [
        answers[0].models[0] for _, answers in blinded(load_evaluation(config.model_copy(update={"seed": 1})))
    ]
    assert first != other


def test_grades_become_ability_accuracy_by_hand(evaluation: Evaluation, tmp_path: Path) -> None:
    files = [
        export(evaluation, tmp_path / "1.json", "Ada", FIRST),
        export(evaluation, tmp_path / "2.json", " Bo ", SECOND),
    ]
    results = score_ratings(evaluation, files)
    ours, theirs = results["models"]["ours"], results["models"]["theirs"]
    # ours: 1 A A, 2 B B, 3 D B; theirs: 1 A A, 2 C D, 3 C C
    assert ours["figures"]["overall"]["value"] == pytest.approx(100 * (1 + 1 + 0.5) / 3, abs=1e-4)
    assert theirs["figures"]["overall"]["value"] == pytest.approx(100 / 3, abs=1e-4)
    assert ours["figures"]["ability.ocr"]["value"] == 75 and theirs["figures"]["ability.ocr"]["value"] == 0
    assert ours["labels"] == pytest.approx({"A": 2 / 6, "B": 3 / 6, "C": 0, "D": 1 / 6}, abs=1e-5)
    raters = results["raters"]
    assert raters["names"] == {"Ada": 5, "Bo": 5}
    # five texts, equal grades on three: the one that both models said counts once
    assert raters["together"]["raw"] == pytest.approx(3 / 5) and raters["together"]["units"] == 5
    assert raters["pairs"][0]["raw"] == pytest.approx(3 / 5) and raters["with_judge"] == {}
    assert json.loads((evaluation.run_dir / "ratings.json").read_text()) == results
    text = ratings_table(results)
    assert (
        "raters together: 60.0 % equal" in text
        and "Ada and Bo" in text
        and "% of answers graded A or B" in text
    )
    assert results["comparisons"][0]["difference"]["mean"] == pytest.approx(-50, abs=1e-4)


def test_answers_without_a_grade_are_left_out(evaluation: Evaluation, tmp_path: Path) -> None:
    some = {key: grade for key, grade in FIRST.items() if key[1] != "3"}
    results = score_ratings(evaluation, [export(evaluation, tmp_path / "1.json", "Ada", some)])
    ours = results["models"]["ours"]
    assert ours["counts"]["unrated"] == 1 and ours["figures"]["overall"]["value"] == 100
    assert not results["about"]["complete"] and results["raters"]["together"]["raw"] is None
    assert "1 unrated: left out" in ratings_table(results)


def test_raters_are_held_against_the_judge(
    make_config: Make, answers: dict[str, str], tmp_path: Path
) -> None:
    with faulty(judge_of(lambda prompt: "ABDC"[quality(prompt, "answer")])) as server:
        config = make_config(owl_files(tmp_path), answers, server.url)
        assert run_judged(config) is not None
    evaluation = load_evaluation(config)
    results = score_ratings(evaluation, [export(evaluation, tmp_path / "1.json", "Ada", FIRST)])
    # the judge: 1 A, 2 B and C, 3 D and C; Ada says the same
    found = results["raters"]["with_judge"]["Ada"]
    assert found["raw"] == 1.0 and found["alpha"] == 1.0 and found["units"] == 5
    other = score_ratings(evaluation, [export(evaluation, tmp_path / "1.json", "Ada", SECOND)])
    assert other["raters"]["with_judge"]["Ada"]["raw"] == pytest.approx(3 / 5)
    items = evaluation.run_dir / "items.jsonl"
    lines = items.read_text().split("\n")
    for line, says in (("{", "not valid JSON"), ("{}", "key 'id' is missing")):
        items.write_text("\n".join([lines[0], line, *lines[2:]]))
        with pytest.raises(DataError, match=rf"items\.jsonl, line 2: {says}"):
            score_ratings(evaluation, [tmp_path / "1.json"])


def test_answers_of_any_protocol_can_be_graded(make_config: Make, tmp_path: Path) -> None:
    mine = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    evaluation = load_evaluation(make_config(pair_files(tmp_path), mine))
    prepare_run_dir(evaluation)
    grades = {("mine", str(number)): grade for number, grade in enumerate("ABCA")}
    results = score_ratings(evaluation, [export(evaluation, tmp_path / "1.json", "Ada", grades)])
    assert results["models"]["mine"]["figures"]["overall"]["value"] == 75
    assert results["models"]["mine"]["figures"]["category.conv"]["value"] == 50


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, r"no ratings \(format: 'prismcap ratings 1'\)"),
        ({"page": "0000"}, r"page: '0000' is not the page of this config .*Give the config that drew it"),
        ({"rater": "  "}, r"rater: a name is needed"),
        ({"ratings": []}, r"ratings: expected a list of at least one rating"),
        ({"ratings": ["A"]}, r"ratings\[0\]: expected \{question_id"),
        ({"ratings": [{"question_id": "8", "answer": "x", "grade": "A"}]}, r"question_id: '8' is on no page"),
        (
            {"ratings": [{"question_id": "1", "answer": "x", "grade": "A"}]},
            r"answer: 'x' is none of question '1'",
        ),
    ],
)
def test_files_that_are_not_of_this_page_are_told(
    change: dict[str, Any], says: str, evaluation: Evaluation, tmp_path: Path
) -> None:
    file = export(evaluation, tmp_path / "1.json", "Ada", FIRST)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=says) as raised:
        score_ratings(evaluation, [file])
    assert "1.json" in str(raised.value)


def test_bad_and_doubled_grades_are_told(evaluation: Evaluation, tmp_path: Path) -> None:
    file = export(evaluation, tmp_path / "1.json", "Ada", {**FIRST, ("ours", "1"): "E"})
    with pytest.raises(DataError, match=r"ratings\[0\]: grade: 'E'.* Valid: A, B, C, D"):
        score_ratings(evaluation, [file])
    twice = json.loads(export(evaluation, tmp_path / "1.json", "Ada", FIRST).read_text())
    twice["ratings"].append(twice["ratings"][0])
    file.write_text(json.dumps(twice))
    with pytest.raises(DataError, match=r"ratings\[5\]: question_id '1', answer '\w+' is rated twice"):
        score_ratings(evaluation, [file])
    files = [export(evaluation, tmp_path / f"{n}.json", "Ada", FIRST) for n in (1, 2)]
    with pytest.raises(DataError, match=r"2\.json: rater: 'Ada' has rated in .*1\.json already"):
        score_ratings(evaluation, files)
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        score_ratings(evaluation, [tmp_path / "nowhere.json"])


def test_ratings_of_other_answers_are_refused(
    evaluation: Evaluation, make_config: Make, answers: dict[str, str], tmp_path: Path
) -> None:
    file = export(evaluation, tmp_path / "1.json", "Ada", FIRST)
    answers = {**answers, "ours": write_answers(tmp_path / "new.jsonl", {1: 0, 2: 1, 3: 5})}
    changed = load_evaluation(make_config(owl_files(tmp_path, contexts=False), answers))
    with pytest.raises(DataError, match="is not the page of this config"):
        score_ratings(changed, [file])
