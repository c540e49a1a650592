"""`evaluate` of a stage: what it may say, and what of the run it needs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prismcap.configs.schema.evaluate import StageEvaluationConfig
from prismcap.configs.schema.run import RunConfig

PLAN: dict[str, Any] = {"every_steps": 50, "splits": ["pairs"]}


def run_config(plan: dict[str, Any] | None, with_evaluation: bool = True, **stage: Any) -> RunConfig:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {name: {"name": "any"} for name in ("vision_encoder", "connector", "llm")},
        "stages": {
            "align": {
                "train": {"connector": {"lr": 1e-3}},
                "data": {"mix": [{"name": "any"}]},
                "template": {"name": "plain"},
                "schedule": {"max_steps": 1},
                **stage,
            }
        },
    }
    if plan is not None:
        values["stages"]["align"]["evaluate"] = plan
    if with_evaluation:
        values["evaluation"] = {"splits": {"pairs": {"source": {"name": "any"}}}}
    return RunConfig.model_validate(values)


def test_what_is_left_out_has_its_default() -> None:
    plan = run_config(PLAN).stages["align"].evaluate
    assert plan == StageEvaluationConfig(
        every_steps=50, splits=("pairs",), num_items=64, max_share=0.1, best=None, higher_is_better=True
    )
    assert run_config(None).stages["align"].evaluate is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every_steps": 0}, "every_steps"),
        ({"splits": []}, "splits"),
        ({"splits": ["pairs", "pairs"]}, "one is given twice"),
        ({"splits": ["pears"]}, r"stages\.align\.evaluate\.splits: no split 'pears'.*Did you mean 'pairs'"),
        ({"num_items": 0}, "num_items"),
        ({"max_share": 0}, "max_share"),
        ({"max_share": 1.5}, "max_share"),
        ({"best": "all_right"}, r"<split>\.<figure>: pairs\.all_right"),
        ({"best": "others.all_right"}, "is of none of these: pairs"),
        ({"every_step": 5}, "every_step"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run_config(PLAN | keys)


def test_a_run_without_evaluation_has_no_split_to_measure() -> None:
    with pytest.raises(ValidationError, match=r"no split 'pairs' in evaluation\.splits\. Add the section"):
        run_config(PLAN, with_evaluation=False)


def test_a_contrastive_stage_is_not_asked_for_captions() -> None:
    train = {"vision_encoder": {"lr": 1e-3}, "text_tower": {"lr": 1e-3}}
    batch = {"packing": False, "rows_per_micro_batch": 2, "images_per_micro_batch": 2}
    contrastive: dict[str, Any] = {"train": train, "batch": batch}
    contrastive["data"] = {"mix": [{"name": "any"}], "max_tokens": 32}
    run_config(None, **contrastive)
    with pytest.raises(ValidationError, match="evaluate asks for captions, and the stage learns none"):
        run_config(PLAN, **contrastive)
