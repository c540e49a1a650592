"""A step that must not reach the weights leaves no trace but its step number; and not too many are skipped.

What each engine does inside such a step is in test_engine_torch.py and test_engines_on_ranks.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.schema.run import RunConfig
from prismcap.model.captioner import Captioner, Output
from prismcap.train.checkpoint import file_hash, verify
from prismcap.train.engines._contract import NonFiniteError
from prismcap.train.engines.torch import TorchEngine
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training
from prismcap.train.skipping import SkipBudget

Make = Callable[..., RunConfig]
BAD = "row7"
# the steps (from 1) whose samples hold row7, with the seed of the tiny config
BAD_STEPS = {"align": [2], "instruct": [2, 7]}


def faulty_forward(factor: float) -> Callable[[Captioner, Any], Output]:
    forward = Captioner.forward

    def broken(self: Captioner, batch: Any) -> Output:
        output = forward(self, batch)
        if BAD in batch.sample_ids:
            output.loss_sum = output.loss_sum * factor
        return output

    return broken


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def skipped(run_dir: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"align": [], "instruct": []}
    for record in records(run_dir):
        if record["skipped"]:
            found[record["stage"]].append(record["step"])
    return found


def test_a_broken_step_is_skipped_and_named(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_training(make_config("name=whole"))
    monkeypatch.setattr(Captioner, "forward", faulty_forward(math.nan))
    ids: dict[Any, tuple[str, ...]] = {}

    def note(event: StepEvent) -> None:
        ids[event.stage, event.step] = event.sample_ids

    run_dir = run_training(make_config(), callbacks=[note])
    assert skipped(run_dir) == BAD_STEPS
    assert [step for stage, step in ids if stage == "instruct" and BAD in ids[stage, step]] == [2, 7]
    for record, untroubled in zip(records(run_dir), records(whole), strict=True):
        assert record["lr/connector"] == untroubled["lr/connector"], "the schedule goes on"
        if record["skipped"]:
            assert record["skipped_for"] == "the loss is not finite"
            assert BAD in record["skipped_samples"]
            assert set(record["skipped_samples"]) < set(ids[record["stage"], record["step"]])
            assert record["loss"] is record["grad_norm"] is record["accuracy/token"] is None
    said = r"stage instruct, step 7 skipped: the loss is not finite\. Samples: (\w+, )*row7\b"
    assert re.search(said, caplog.text), caplog.text
    assert verify(run_dir / "instruct" / "final").num_skipped == 2


def test_a_skipped_step_is_as_if_only_time_had_passed(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a run that makes no forward pass at all in those steps; with dropout, so that random numbers
    that were drawn in vain would show in every later step."""
    with monkeypatch.context() as patched:
        patched.setattr(Captioner, "forward", faulty_forward(math.nan))
        run_dir = run_training(make_config())
    train_step = TorchEngine.train_step

    def refused(self: TorchEngine, micro_batches: Any, max_loss: float = math.inf) -> Any:
        if any(BAD in batch.sample_ids for batch in micro_batches):
            raise NonFiniteError("refused", [BAD])
        return train_step(self, micro_batches, max_loss)

    monkeypatch.setattr(TorchEngine, "train_step", refused)
    other = run_training(make_config("name=other"))
    assert skipped(other) == skipped(run_dir) == BAD_STEPS
    for folder in ("align/final", "instruct/step-000004", "instruct/step-000006", "instruct/final"):
        names = {path.name for path in (run_dir / folder).iterdir()} - {"manifest.json"}
        assert "weights.safetensors" in names
        for name in names:
            assert file_hash(run_dir / folder / name) == file_hash(other / folder / name), (folder, name)


def test_the_budget_is_for_the_whole_stage_and_survives_a_resume(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captioner, "forward", faulty_forward(math.nan))
    one = "stages.instruct.optimizer.max_skipped_steps=1"
    with pytest.raises(
        NonFiniteError, match=r"instruct, step 7: .*1 steps of this stage were skipped"
    ) as error:
        run_training(make_config(one))
    assert "optimizer.max_skipped_steps=1 allows" in str(error.value)
    assert error.value.sample_ids == (BAD,) or BAD in error.value.sample_ids
    run_dir = Path(make_config().output_dir) / "tiny"
    assert verify(run_dir / "instruct" / "step-000006").num_skipped == 1
    with pytest.raises(NonFiniteError, match="instruct, step 7"):
        run_training(make_config(one), resume="auto")
    run_training(make_config("stages.instruct.optimizer.max_skipped_steps=2"), resume="auto")
    assert skipped(run_dir) == BAD_STEPS


def test_no_budget_stops_at_the_first(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captioner, "forward", faulty_forward(math.nan))
    with pytest.raises(NonFiniteError, match="align, step 2"):
        run_training(make_config("stages.align.optimizer.max_skipped_steps=0"))


def test_a_spike_is_skipped_also_right_after_a_resume(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row7 comes again and again; its first times are before there is anything to hold its loss against."""
    monkeypatch.setattr(Captioner, "forward", faulty_forward(1000.0))
    settings = (
        "stages.align.optimizer.max_loss_ratio=5.0",
        "stages.align.schedule.max_steps=24",
        "stages.align.schedule.name=constant",
        "stages.instruct.schedule.max_steps=1",
    )
    run_dir = run_training(make_config(*settings))
    spikes = skipped(run_dir)["align"]
    found = [record for record in records(run_dir) if record["step"] in spikes and record["stage"] == "align"]
    assert len(spikes) >= 2 and min(spikes) > 16
    assert all("a spike" in record["skipped_for"] and BAD in record["skipped_samples"] for record in found)
    last = max(spikes)

    class Stop(Exception):
        pass

    def stop(event: StepEvent) -> None:
        if event.step == last - 1:
            raise Stop

    with pytest.raises(Stop):
        run_training(make_config("name=again", *settings), callbacks=[stop])
    again = run_training(make_config("name=again", *settings), resume="auto")
    assert skipped(again)["align"] == spikes
    name = "align/final/weights.safetensors"
    assert file_hash(again / name) == file_hash(run_dir / name)


def test_a_spike_is_measured_on_the_median_of_the_last_steps() -> None:
    budget = SkipBudget(1, max_loss_ratio=3.0)
    for step in range(15):
        assert budget.max_loss() == math.inf
        budget.note(100.0 if step % 5 == 0 else 2.0)
    budget.note(2.0)
    assert budget.max_loss() == 6.0
    for _ in range(32):
        budget.note(1.0)
    assert budget.max_loss() == 3.0
    assert SkipBudget(1).max_loss() == math.inf
