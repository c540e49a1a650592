"""Evaluation while training on two ranks: DDP, and ZeRO-3, whose weights no rank has whole between steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import FIGURE, SOURCES, evaluate_override, evaluations, losses, split_override

from prismcap.train.checkpoint import file_hash

STAGES = ("align", "instruct")


@pytest.fixture(scope="module")
def on_two_ranks(world: Path, torchrun: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs with and without `evaluate`, with each engine, on two ranks; see workers/evaluate_on_ranks.py."""
    pytest.importorskip("deepspeed")
    out = tmp_path_factory.mktemp("evaluated")
    no_dropout = "stages.instruct.train.llm.lora.dropout=0.0"
    # one request a batch and an odd number of items: the ranks never run in step
    plans = [split_override(num_items=3, batch_size=1), *(evaluate_override(s, best=FIGURE) for s in STAGES)]
    zero3 = [f"stages.{stage}.engine={{name: deepspeed, zero_stage: 3}}" for stage in STAGES]
    jobs = {}
    for engine, more in {"ddp": [], "zero3": zero3}.items():
        common = [f"output_dir={out}", no_dropout, *more]
        jobs[engine] = [*common, f"name={engine}"]
        jobs[f"{engine}_evaluated"] = [*common, f"name={engine}_evaluated", *plans]
    torchrun(2, "evaluate_on_ranks.py", str(world / "config.yaml"), str(out), str(SOURCES), json.dumps(jobs))
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return {"out": out, "said": results}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_on_two_ranks_the_steps_are_those_of_a_run_without(on_two_ranks: dict[str, Any], engine: str) -> None:
    out = on_two_ranks["out"]
    assert losses(out / f"{engine}_evaluated") == losses(out / engine)
    assert [r["step"] for r in evaluations(out / f"{engine}_evaluated")] == [2, 4, 2, 4, 6, 7]


@pytest.mark.slow
def test_on_two_ranks_each_asks_its_part_and_engines_agree(on_two_ranks: dict[str, Any]) -> None:
    said = on_two_ranks["said"]
    for engine in ("ddp", "zero3"):
        for parts in said[f"{engine}_evaluated"]:
            assert len(parts) == 2 and abs(len(parts[0]) - len(parts[1])) == 1
    first, second = (said[f"{engine}_evaluated"][0] for engine in ("ddp", "zero3"))
    assert first == second, "the same texts, from whole weights and from shards"
    assert len({text for part in first for text in part}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_on_two_ranks_final_is_what_was_best(on_two_ranks: dict[str, Any], engine: str) -> None:
    run_dir = on_two_ranks["out"] / f"{engine}_evaluated"
    for stage in STAGES:
        names = [f"{stage}/{folder}/weights.safetensors" for folder in ("best", "final")]
        assert file_hash(run_dir / names[0]) == file_hash(run_dir / names[1])
