"""A run's judge: asked once about what no rule reads, its verdicts kept and told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.prism.judging import judge_path
from prismcap.evaluate.prism.run import run_dir_of, run_prism

Make = Callable[..., PrismConfig]
SCORED = ("perceive", "reason", "score")


def judged(make_config: Make, tmp_path: Path, says: str, judge: str | None = "judging") -> PrismConfig:
    fake = {"name": "prism_fakes.judge", "says": says}
    return make_config(
        reasoners={"mumbling": fake, "judging": {**fake, "log": str(tmp_path / "judge.log")}},
        cells=[{"reasoners": ["mumbling"]}],
        judge=judge,
        prices={"judging": {"tokens_in": 1.0, "tokens_out": 2.0}},
    )


def items(config: PrismConfig) -> list[dict[str, Any]]:
    text = (run_dir_of(config) / "items.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_its_verdicts_score_what_no_rule_reads(
    make_config: Make, tmp_path: Path, asked: Callable[[str], list[str]]
) -> None:
    without = judged(make_config, tmp_path, "B", judge=None)
    run_prism(without, SCORED)
    assert {row["how"] for row in items(without)} == {"unmatched"} and not asked("judge")
    config = judged(make_config, tmp_path, "B")
    results = run_prism(config, SCORED)
    assert results is not None
    rows = items(config)
    assert {(row["how"], row["extracted"]) for row in rows} == {("judge", "B")}
    assert [row["right"] for row in rows] == [row["answer"] == "B" for row in rows]
    assert any(row["right"] for row in rows) and not all(row["right"] for row in rows)
    num_asked = len(asked("judge"))
    about = results["about"]["judge"]
    assert about["reasoner"] == "judging" and about["cost"]["requests"] == num_asked > 0
    assert about["cost"]["dollars"] == pytest.approx(num_asked * (10 * 1.0 + 5 * 2.0) / 1e6)


def test_a_verdict_is_asked_for_once_and_again_when_the_judge_is_another(
    make_config: Make, tmp_path: Path, asked: Callable[[str], list[str]]
) -> None:
    config = judged(make_config, tmp_path, "B")
    run_prism(config, SCORED)
    first = asked("judge")
    run_prism(config, SCORED)
    assert not asked("judge")
    other = judged(make_config, tmp_path, "C")
    run_prism(other, SCORED)
    assert sorted(asked("judge")) == sorted(first)
    assert {row["extracted"] for row in items(other)} == {"C"}
    kept = judge_path(run_dir_of(config), "judging").read_text().splitlines()
    assert len(kept) == 2 * len(first)


def test_a_failed_verdict_leaves_the_reply_unmatched(make_config: Make, tmp_path: Path) -> None:
    config = judged(make_config, tmp_path, "none of them")
    run_prism(config, SCORED)
    assert {row["how"] for row in items(config)} == {"unmatched"}


def test_a_judge_is_one_of_the_reasoners(make_config: Make) -> None:
    with pytest.raises(ValidationError, match="judge: no reasoner 'jugde'; there are reading"):
        make_config(judge="jugde")
