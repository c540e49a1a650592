"""Judged evaluations against a judge on this machine that prefers what stands first, fails, or mumbles."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Asked, Reply, chat, faulty, refusal
from judged_files import (
    REFERENCES,
    coverage_files,
    inside,
    judge_of,
    owl_files,
    pair_files,
    pair_reply,
    quality,
    vet_files,
    write_answers,
    write_rows,
)
from pydantic import ValidationError

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.load import kind_of, load_any, load_judged, load_prism, to_yaml
from prismcap.configs.schema.judged import JudgedConfig
from prismcap.evaluate.judged.asking import ask_judge
from prismcap.evaluate.judged.evaluation import load_evaluation, run_dir_of
from prismcap.evaluate.judged.run import run_judged
from prismcap.evaluate.judged.table import judged_table

Make = Callable[..., JudgedConfig]
Rows = Callable[[Path], list[dict[str, Any]]]


def results_of(config: JudgedConfig, **keys: Any) -> dict[str, Any]:
    found = run_judged(config, **keys)
    assert found is not None
    return found


def test_both_orders_cancel_a_judges_liking_for_the_first_place(
    make_config: Make, rows_of: Rows, tmp_path: Path
) -> None:
    # answers as good as the references: 100, whatever the first place earns
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    with faulty(judge_of(pair_reply(bonus=2))) as server:
        config = make_config(pair_files(tmp_path), answers, server.url)
        results = results_of(config)
    model = results["models"]["mine"]
    assert {name: figure["value"] for name, figure in model["figures"].items()} == {
        "overall": 100.0,
        "category.complex": 100.0,
        "category.conv": 100.0,
        "category.detail": 100.0,
    }
    assert model["position"]["first_minus_second"]["mean"] == 2.0
    assert model["position"]["changed_winner"]["rate"] == 1.0
    by_order = {"reference_first": [0.0, 0.0], "model_first": [0.0, 0.0]}
    for row in rows_of(run_dir_of(config) / "items.jsonl"):
        for verdict in row["verdicts"]:
            by_order[verdict["part"]][0] += verdict["gained"]
            by_order[verdict["part"]][1] += verdict["possible"]
    # one order alone would have told another story
    assert by_order["reference_first"] == [23, 31] and by_order["model_first"] == [31, 23]
    assert "the first place earns +2.00 points" in judged_table(results)
    assert results["about"]["complete"] and results["about"]["published"] == [90, 30]


def test_figures_are_the_arithmetic_of_the_scores(make_config: Make, tmp_path: Path) -> None:
    mine = {0: 3, 1: 4, 2: 2, 3: 5}
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", mine, key="answer")}
    with faulty(judge_of(pair_reply())) as server:
        config = make_config(pair_files(tmp_path, "llava_bench"), answers, server.url)
        results = results_of(config)
    figures = results["models"]["mine"]["figures"]
    assert figures["overall"]["value"] == pytest.approx(100 * 14 / 23, abs=1e-4)
    assert figures["category.conv"]["value"] == pytest.approx(100 * 5 / 10)
    assert (figures["overall"]["n"], figures["overall"]["num_pictures"]) == (4, 2)
    with (run_dir_of(config) / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["figure"] for row in rows] == list(figures)
    assert float(rows[0]["value"]) == figures["overall"]["value"] and rows[0]["scored"] == "4"
    assert json.loads((run_dir_of(config) / "results.json").read_text()) == results
    judge = results["about"]["judge"]
    assert judge["prompts"] == "pair 1" and judge["cost"]["requests"] == 8 and judge["model"].endswith(" m")


def test_what_is_known_is_not_asked_again(make_config: Make, tmp_path: Path) -> None:
    first = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    both = {**first, "theirs": write_answers(tmp_path / "theirs.jsonl", {**REFERENCES, 0: 1})}
    with faulty(judge_of(pair_reply())) as server:
        before = results_of(make_config(pair_files(tmp_path), first, server.url))
        assert len(server.asked) == 8
        again = results_of(make_config(pair_files(tmp_path), first, server.url))
        assert len(server.asked) == 8 and again["models"] == before["models"]
        # of the other model's four answers three say the same
        results_of(make_config(pair_files(tmp_path), both, server.url))
        assert len(server.asked) == 10
        # other prompts, and another decoding
        evaluation = load_evaluation(make_config(pair_files(tmp_path), first, server.url))
        ask_judge(replace(evaluation, protocol=replace(evaluation.protocol, prompt_version="pair 2")))
        assert len(server.asked) == 18
        results_of(make_config(pair_files(tmp_path), first, server.url, decoding={"max_new_tokens": 7}))
        assert len(server.asked) == 26


def test_failures_are_rows_that_are_left_out_and_asked_again_when_told(
    make_config: Make, tmp_path: Path
) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", {**REFERENCES, 1: 1})}
    fair = judge_of(pair_reply())

    def failing(asked: Asked) -> Reply:
        return (
            refusal(400, "too long") if inside(asked.prompt, "first_answer").endswith(" 1") else fair(asked)
        )

    with faulty(failing) as server:
        config = make_config(pair_files(tmp_path), answers, server.url)
        results = results_of(config)
        model = results["models"]["mine"]
        assert model["figures"]["overall"]["value"] == 100 and model["figures"]["overall"]["n"] == 3
        assert model["figures"]["category.detail"]["value"] is None, "not 0"
        assert model["counts"]["failed"] == 1 and model["counts"]["failed_replies"] == 1
        assert not results["about"]["complete"]
        assert "1 failed: left out, not scored as 0" in judged_table(results)
        server.script = fair
        num_asked = len(server.asked)
        assert results_of(config)["models"] == results["models"], "a failure stands"
        assert len(server.asked) == num_asked
        mended = results_of(config, retry_failed=True)
        assert len(server.asked) == num_asked + 1
    assert mended["about"]["complete"]
    assert mended["models"]["mine"]["figures"]["overall"]["value"] == pytest.approx(100 * 16 / 23, abs=1e-4)


def test_a_reply_without_scores_is_counted_and_never_0(
    make_config: Make, rows_of: Rows, tmp_path: Path
) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    fair = pair_reply(bonus=2)

    def mumbling(prompt: str) -> str:
        # about one answer, in one order
        return "Hard to say." if inside(prompt, "first_answer").startswith("An answer to 1") else fair(prompt)

    with faulty(judge_of(mumbling)) as server:
        config = make_config(pair_files(tmp_path), answers, server.url)
        results = results_of(config)
    model = results["models"]["mine"]
    assert model["counts"]["unread"] == 1 and model["counts"]["scored"] == 3
    assert model["counts"]["unread_replies"] == 1
    assert model["figures"]["overall"]["value"] == 100.0, "nor is one order taken alone"
    (unread,) = [row for row in rows_of(run_dir_of(config) / "items.jsonl") if row["status"] == "unread"]
    assert unread["id"] == "1" and unread["gained"] is None
    assert "Hard to say." in [verdict["reply"] for verdict in unread["verdicts"]]


def test_repeats_show_how_far_a_judge_agrees_with_itself(make_config: Make, tmp_path: Path) -> None:
    def wavering(asked: Asked) -> Reply:
        # the third question's score changes with every repeat
        question = inside(asked.prompt, "question")
        return chat({"What is x?": "0.5", "What?": "1.0"}.get(question, f"0.{asked.attempt}"))

    answers = {"mine": write_answers(tmp_path / "mine.jsonl", dict.fromkeys(("v1_0", "v1_1", "v1_2"), 1))}
    decoding = {"temperature": 0.7}
    with faulty(wavering) as server:
        config = make_config(vet_files(tmp_path), answers, server.url, repeats=3, decoding=decoding)
        results = results_of(config)
        assert len(server.asked) == 9
        # more repeats ask only for what is new
        results_of(config.model_copy(update={"repeats": 4}))
        assert len(server.asked) == 12
    found = results["models"]["mine"]
    assert found["self_agreement"]["raw"] == pytest.approx(6 / 9, abs=1e-5)
    figures = [100 * (1.5 + k / 10) / 3 for k in range(3)]
    assert found["self_agreement"]["figures"] == pytest.approx(figures, abs=1e-4)
    assert found["self_agreement"]["spread"] == pytest.approx(10 / 3, abs=1e-4)
    assert found["figures"]["overall"]["value"] == pytest.approx(100 * 1.6 / 3, abs=1e-4)
    assert found["figures"]["capability.rec"]["value"] == pytest.approx(55, abs=1e-4)
    assert "the judge with itself: 66.7 % equal" in judged_table(results)


def test_a_greedy_judge_is_not_asked_to_repeat_itself(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"set decoding\.temperature above 0"):
        make_config(pair_files(tmp_path), {"mine": "x"}, "http://127.0.0.1:1/v1", repeats=3)


def test_models_are_compared_in_pairs(make_config: Make, tmp_path: Path) -> None:
    answers = {
        "good": write_answers(tmp_path / "good.jsonl", {0: 9, 1: 9, 2: 8, 3: 9}),
        "bad": write_answers(tmp_path / "bad.jsonl", {0: 2, 1: 3, 2: 2, 3: 1}),
    }
    with faulty(judge_of(pair_reply())) as server:
        results = results_of(make_config(pair_files(tmp_path), answers, server.url))
    row = results["comparisons"][0]
    assert (row["figure"], row["a"], row["b"]) == ("overall", "good", "bad")
    assert row["difference"]["mean"] == pytest.approx(100 * (8 - 35) / 23, abs=1e-4)
    assert row["p"] == 0.5, "two pictures: at best two of the four ways"
    assert "overall: good -> bad" in judged_table(results)


def test_coverage_counts_captions(make_config: Make, tmp_path: Path) -> None:
    # a description covers captions of its quality and below
    def reply(prompt: str) -> str:
        return "Yes" if quality(prompt, "caption") <= quality(prompt, "description") else "No\nIt lacks all."

    rows = [{"image_id": image, "text": f"A description of quality {q}"} for image, q in ((7, 3), (9, 2))]
    answers = {"mine": write_rows(tmp_path / "mine.jsonl", rows)}
    with faulty(judge_of(reply)) as server:
        results = results_of(make_config(coverage_files(tmp_path), answers, server.url))
        assert len(server.asked) == 4
    assert results["models"]["mine"]["figures"]["overall"]["value"] == 75.0
    assert results["models"]["mine"]["position"] is None


def test_owl_eval_by_ability(make_config: Make, tmp_path: Path) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", {1: 0, 2: 1, 3: 2}, key="answer")}
    with faulty(judge_of(lambda prompt: "ABC"[quality(prompt, "answer")])) as server:
        results = results_of(make_config(owl_files(tmp_path), answers, server.url))
    model = results["models"]["mine"]
    values = {name: figure["value"] for name, figure in model["figures"].items()}
    assert values["overall"] == pytest.approx(200 / 3, abs=1e-4)
    assert (
        values["ability.visual"] == 100 and values["ability.ocr"] == 50 and values["ability.multi_turn"] == 0
    )
    assert model["labels"] == pytest.approx({"A": 1 / 3, "B": 1 / 3, "C": 1 / 3, "D": 0}, abs=1e-5)
    assert "not to be held against published figures" in judged_table(results)


def test_half_a_surrogate_pair_is_written_and_read_back(
    make_config: Make, rows_of: Rows, tmp_path: Path
) -> None:
    # as a text that is cut off in the middle of an emoji; JSON can spell it, UTF-8 cannot
    half = "A\nIt says \\ and \ud83d"
    with faulty(judge_of(lambda _: half)) as server:
        answers = {"mine": write_answers(tmp_path / "mine.jsonl", {1: 0, 2: 0, 3: 0})}
        config = make_config(owl_files(tmp_path), answers, server.url)
        assert results_of(config)["models"]["mine"]["figures"]["overall"]["value"] == 100
    rows = rows_of(run_dir_of(config) / "items.jsonl")
    assert [row["verdicts"][0]["reply"] for row in rows] == [half] * 3
    cut = [{"question_id": number, "text": half} for number in (1, 2, 3)]
    (tmp_path / "cut.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cut))
    answers = {"cut": str(tmp_path / "cut.jsonl")}
    config = make_config(owl_files(tmp_path), answers, judge={"name": "keyword"}, name="cut")
    results_of(config)
    assert [row["answer"] for row in rows_of(run_dir_of(config) / "items.jsonl")] == [half] * 3


def test_the_key_reaches_no_file(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("TEST_JUDGE_KEY", secret)
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    # endpoints quote a key that they refuse
    with faulty(lambda asked: refusal(400, f"I was sent {asked.headers['authorization']}")) as server:
        judge = {"name": "openai", "url": server.url, "model": "m", "api_key_env": "TEST_JUDGE_KEY"}
        config = make_config(pair_files(tmp_path), answers, server.url, judge=judge)
        results = results_of(config)
    assert server.asked[0].headers["authorization"] == f"Bearer {secret}"
    assert "I was sent Bearer ***" in (run_dir_of(config) / "items.jsonl").read_text()
    assert secret not in json.dumps(results) + judged_table(results)
    for path in run_dir_of(config).rglob("*"):
        assert path.is_dir() or secret not in path.read_text(errors="replace")
    with pytest.raises(ConfigError, match=r"^judge\.api_key_env: must be the NAME") as raised:
        results_of(make_config(pair_files(tmp_path), answers, "x", judge={**judge, "api_key_env": secret}))
    assert secret not in str(raised.value)


def test_without_a_judge_the_way_to_one_is_told(make_config: Make, tmp_path: Path) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    with pytest.raises(ConfigError, match=r"no `judge` in the config.*prismcap judge page"):
        results_of(make_config(pair_files(tmp_path), answers))


def test_a_rule_is_no_judge_and_all_is_left_out(make_config: Make, tmp_path: Path) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    results = results_of(make_config(pair_files(tmp_path), answers, judge={"name": "keyword"}))
    assert results["models"]["mine"]["counts"]["failed"] == 4
    assert results["models"]["mine"]["figures"]["overall"]["value"] is None
    assert "4 failed" in judged_table(results)


def test_another_runs_folder_is_left_alone(make_config: Make, tmp_path: Path) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    config = make_config(pair_files(tmp_path), answers, "http://127.0.0.1:1/v1")
    run_dir_of(config).mkdir(parents=True)
    (run_dir_of(config) / "config.yaml").write_text("name: judged\nstages: {}\n")
    with pytest.raises(ConfigError, match="folder of another kind of run"):
        results_of(config)


def test_a_folder_that_cannot_be_made_is_told(make_config: Make, tmp_path: Path) -> None:
    answers = {"mine": write_answers(tmp_path / "mine.jsonl", REFERENCES)}
    config = make_config(pair_files(tmp_path), answers, "http://127.0.0.1:1/v1")
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(DataError, match=r"runs/judged: the results cannot be written.*Make room"):
        results_of(config)


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def test_a_config_is_told_apart_and_read_back(make_config: Make, tmp_path: Path) -> None:
    config = make_config(pair_files(tmp_path), {"mine": "x.jsonl"}, "http://127.0.0.1:1/v1")
    path = tmp_path / "judged.yaml"
    path.write_text(to_yaml(config))
    assert load_judged(path) == load_any(path) == config
    assert load_judged(path, ["repeats=2", "decoding.temperature=0.5"]).repeats == 2
    assert (kind_of({"protocol": {}}), kind_of({"stages": {}})) == ("judged", "train")
    with pytest.raises(ConfigError, match="prismcap judge run"):
        load_prism(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": {"name": "llava_coc"}}, r"protocol: no protocol is called 'llava_coc'.* 'llava_coco'"),
        ({"protocol": {"name": "mm_vet", "question": "x"}}, r"protocol\.question: unknown key .*'questions'"),
        ({"judge": {"name": "openai", "url": "http://x/v1"}}, r"judge\.model: this key is required"),
        ({"answers": {}}, r"answers: .*at least 1"),
        ({"answers": {"a/b": "x"}}, r"answers: .*the name 'a/b'"),
        ({"repeat": 2}, r"repeat: unknown key .*'repeats'"),
    ],
)
def test_a_wrong_config_is_told_by_its_key(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    values = {"name": "x", "protocol": {"name": "mm_vet", "questions": "q.json"}, "answers": {"a": "a.jsonl"}}
    path = write_config(tmp_path / "x.yaml", {**values, **change})
    with pytest.raises(ConfigError, match=says):
        load_judged(path)


def test_other_kinds_of_config_are_told() -> None:
    with pytest.raises(ConfigError, match=r"it has `stages`.*prismcap train"):
        load_judged("demo/scenes")
    with pytest.raises(ConfigError, match=r"it has `perceivers`.*prismcap prism run"):
        load_judged("demo/prism")
