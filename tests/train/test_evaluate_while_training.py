"""Evaluation while training: it changes no step, keeps to its share of the time, and writes what it found."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner
from evaluated_runs import (
    FIGURE,
    WHOLE,
    Scripted,
    draw_random_numbers,
    drawn_scenes,
    evaluate_override,
    evaluations,
    losses,
    made_up,
    split_override,
)
from stopped_runs import Stop, stop_after

import prismcap.evaluate.live as live_module
import prismcap.train.fit as fit_module
from prismcap.configs.errors import ConfigError
from prismcap.configs.load import to_yaml
from prismcap.configs.schema.evaluate import StageEvaluationConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.evaluate.live import LiveEvaluation, Said
from prismcap.evaluate.run import evaluate_run
from prismcap.evaluate.scenes.figures import Result
from prismcap.evaluate.scenes.scoring import score
from prismcap.model.captioner import Captioner
from prismcap.scripts.cli import cli
from prismcap.scripts.evaluating import measure_of
from prismcap.train.checkpoint import file_hash
from prismcap.train.distributed import Ranks
from prismcap.train.engines._contract import Engine
from prismcap.train.evaluations import Measure, StageEvaluations
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]
STAGES = ("align", "instruct")


@pytest.fixture(autouse=True, scope="module")
def tiny_runs() -> Iterator[None]:
    with drawn_scenes():
        yield


def noisy(config: RunConfig, stage: str, ranks: Ranks) -> Measure:
    """The command's own `measure_of`, and random numbers drawn beside."""
    real = measure_of(config, stage, ranks)

    def measure(captioner: Captioner) -> Any:
        draw_random_numbers()
        return real(captioner)

    return measure


def test_losses_and_weights_are_those_of_a_run_without(finished: Path, make_config: Make) -> None:
    plans = [evaluate_override(stage, every_steps=1) for stage in STAGES]
    run_dir = run_training(make_config(split_override(), *plans), measure_of=noisy)
    assert losses(run_dir) == losses(finished)
    for folder in ("align/final", "instruct/step-000006", "instruct/final"):
        for path in (finished / folder).iterdir():
            if path.name != "manifest.json":
                assert file_hash(run_dir / folder / path.name) == file_hash(path), (folder, path.name)
    assert len(evaluations(run_dir)) == 4 + 7
    assert not (finished / "evaluations.jsonl").exists() and not (run_dir / "instruct" / "best").exists()


def test_what_is_written_of_each_evaluation(make_config: Make) -> None:
    config = make_config(split_override(), *(evaluate_override(stage) for stage in STAGES))
    run_dir = run_training(config, measure_of=measure_of)
    records = evaluations(run_dir)
    expected = [("align", 2), ("align", 4), *(("instruct", step) for step in (2, 4, 6, 7))]
    assert [(record["stage"], record["step"]) for record in records] == expected
    names = ["all_right", "objects_right", "places_right", "num_objects_1", "place", "count", "yes_no"]
    for record in records:
        assert list(record) == ["stage", "step", "figures", "time_s", "share", "best"]
        assert list(record["figures"]) == [f"held_out.{name}" for name in names]
        for figure in record["figures"].values():
            assert set(figure) == {"rate", "low", "high", "n"} and figure["n"] == 3
            assert 0 <= figure["low"] <= figure["rate"] <= figure["high"] <= 1
        assert record["time_s"] > 0 and 0 < record["share"] < 1 and record["best"] is False


def test_the_texts_are_those_of_the_evaluation_after_training(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same items, asked of the weights after the last step and of those that are loaded again."""
    real, asked = live_module.ask, list[list[Result]]()

    def spied(*arguments: Any, **options: Any) -> list[Result]:
        asked.append(real(*arguments, **options))
        return asked[-1]

    monkeypatch.setattr(live_module, "ask", spied)
    plan = evaluate_override("instruct", every_steps=3, num_items=6)
    run_dir = run_training(make_config(split_override(6), plan, WHOLE), measure_of=measure_of)
    evaluate_run(run_dir)
    captions = [json.loads(line) for line in (run_dir / "captions.jsonl").read_text().splitlines()]
    after = {line["id"]: line["generated"] for line in captions if line["control"] == "none"}
    assert len(asked) == 3
    assert {result.item.id: result.text.strip() for result in asked[-1]} == after
    assert len(set(after.values())) > 1, "the model says different things of different items"
    assert [result.text for result in asked[0]] != [result.text for result in asked[-1]]


def test_modes_and_settings_of_the_model_are_put_back(make_config: Make) -> None:
    found: list[Any] = []

    def look(event: StepEvent) -> None:
        captioner = cast(Any, event.engine).captioner
        modes = {name: module.training for name, module in captioner.named_modules()}
        flags = {name: value.requires_grad for name, value in captioner.named_parameters()}
        cached = [module.gradient_checkpointing for module in captioner.modules() if _checkpoints(module)]
        defaults = captioner.llm.generation_config.to_dict(), captioner.llm.config.use_cache
        found.append((modes, flags, cached, defaults, torch.is_grad_enabled()))

    plan = evaluate_override("instruct", every_steps=2)
    checkpointed = "stages.instruct.gradient_checkpointing=true"
    config = make_config(split_override(), plan, checkpointed, "stages.instruct.schedule.max_steps=3")
    run_training(config, callbacks=[look], measure_of=measure_of)
    before, after = found[4], found[5]  # of instruct's first step, and of its second, which is evaluated
    assert before == after and any(before[0].values()) and any(before[2])


def _checkpoints(module: Any) -> bool:
    return hasattr(module, "gradient_checkpointing")


def test_the_time_of_an_evaluation_is_in_no_step(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    offset = [0.0]

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return time.perf_counter() + offset[0]

    def slow(config: RunConfig, stage: str, ranks: Ranks) -> Measure:  # noqa: ARG001
        def measure(_: Captioner) -> Any:
            offset[0] += 1e6
            return made_up(0.5)

        return measure

    monkeypatch.setattr(fit_module, "time", Clock)
    plans = [evaluate_override(stage, every_steps=1) for stage in STAGES]
    run_dir = run_training(make_config(split_override(), *plans), measure_of=slow)
    assert offset[0] == 11e6
    records = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert len(records) == 11 and all(record["time_s"] < 1e6 for record in records)


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeEngine:
    def eval_context(self) -> Any:
        return contextlib.nullcontext()


def simulate(
    durations_s: Callable[[int], float], num_steps: int, step_s: float = 1.0, **keys: Any
) -> list[dict[str, Any]]:
    """The records of a stage whose n-th evaluation takes durations_s(n), and each step step_s."""
    clock, records = FakeClock(), list[dict[str, Any]]()

    class Sink:
        def write_evaluation(self, record: Any) -> None:
            records.append({**record, "at_s": clock.now_s - 100.0})

    def measure(_: Any) -> Any:
        clock.now_s += durations_s(len(records))
        return made_up(0.5)

    plan = StageEvaluationConfig.model_validate(
        {"every_steps": 10, "splits": ["held_out"], "max_share": 0.1, **keys}
    )
    callback = StageEvaluations(plan, measure, cast(Any, None), Ranks(), [cast(Any, Sink())], clock=clock)
    for step in range(1, num_steps + 1):
        clock.now_s += step_s
        callback(StepEvent("align", step, num_steps, cast(Engine, FakeEngine()), (), {}))
    return records


@pytest.mark.parametrize("duration_s", [0.2, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("max_share", [0.05, 0.3])
def test_evaluations_keep_to_their_share_of_the_time(duration_s: float, max_share: float) -> None:
    records = simulate(lambda _: duration_s, 1000, max_share=max_share)
    for number, record in enumerate(records[1:-1], start=2):
        assert record["share"] <= max_share + 1e-9
        assert record["share"] == pytest.approx(number * duration_s / record["at_s"])
    assert records[-1]["step"] == 1000, "the one after the last step is never put off"
    # and there are as many as fit: as soon as there was room for one that was due, it came
    room = max_share / (1 - max_share) * 1000 / duration_s
    assert len(records) >= min(100, int(room)) - 1
    if duration_s / 10 < max_share / (1 - max_share):
        assert [record["step"] for record in records[1:]] == list(range(20, 1001, 10))


def test_one_that_is_put_off_comes_at_the_first_step_with_room() -> None:
    records = simulate(lambda _: 5.0, 130)
    # after step 10 it has taken 5 s, so two take 10 of 100 s: at step 90 (95 s until then, and 5 more)
    assert [record["step"] for record in records] == [10, 90, 130]


def test_the_last_duration_is_what_counts() -> None:
    """The first one is slow (it draws the pictures); those after it are not, and need less room."""
    slow_first = simulate(lambda number: 0.05 if number else 4.0, 100)
    assert [record["step"] for record in slow_first] == [10, 72, 80, 90, 100]
    always_slow = simulate(lambda _: 4.0, 100)
    assert [record["step"] for record in always_slow] == [10, 72, 100]


def test_a_share_of_one_puts_nothing_off() -> None:
    records = simulate(lambda _: 1e5, 25, max_share=1.0)
    assert [record["step"] for record in records] == [10, 20, 25]


def test_a_resumed_stage_drops_what_lies_past_its_checkpoint(make_config: Make) -> None:
    """Stopped after the evaluation at step 5, with a checkpoint of step 4: the step is evaluated once more,
    and what was recorded of it before is dropped."""
    plan = evaluate_override("instruct", every_steps=5)
    config = make_config(split_override(), plan, evaluate_override("align", every_steps=3))
    values = {"align": [0.1, 0.2], "instruct": [0.3, 0.3, 0.4]}
    scripted = Scripted(values)
    with pytest.raises(Stop):
        run_training(config, callbacks=[stop_after("instruct", 5)], measure_of=scripted)
    run_dir = Path(config.output_dir) / "tiny"
    assert [(r["stage"], r["step"]) for r in evaluations(run_dir)][-1] == ("instruct", 5)
    run_training(config, resume="auto", measure_of=scripted)
    records = evaluations(run_dir)
    assert [(record["stage"], record["step"]) for record in records] == [
        ("align", 3),
        ("align", 4),
        ("instruct", 5),
        ("instruct", 7),
    ]
    assert [record["figures"][FIGURE]["rate"] for record in records] == [0.1, 0.2, 0.3, 0.4]


def test_what_was_put_off_before_a_stop_is_still_due() -> None:
    """A stage that goes on from step 27, evaluated last at step 13, has the one of step 20 before it."""
    plan = StageEvaluationConfig.model_validate({"every_steps": 10, "splits": ["held_out"], "max_share": 0.5})
    clock, seen = FakeClock(), list[int]()

    class Sink:
        def write_evaluation(self, record: Any) -> None:
            seen.append(record["step"])
            shares.append(record["share"])

    shares: list[float] = []
    before = [{"step": 13, "time_s": 2.0, "share": 0.25}]
    callback = StageEvaluations(
        plan, lambda _: made_up(0.5), cast(Any, None), Ranks(), [cast(Any, Sink())], None, before, clock
    )
    for step in range(28, 33):
        clock.now_s += 1
        callback(StepEvent("align", step, 100, cast(Engine, FakeEngine()), (), {}))
    assert seen == [28, 30]
    assert shares == pytest.approx([2 / 9, 2 / 11]), "8 s before, and those since"


def test_a_stage_with_evaluate_needs_something_that_measures(make_config: Make) -> None:
    config = make_config(split_override(), evaluate_override("align"))
    with pytest.raises(ConfigError, match=r"stages\.align\.evaluate: what starts this run measures nothing"):
        run_training(config)


def command(world: Path, tmp_path: Path, **keys: Any) -> Any:
    steps = [f"stages.{stage}.schedule.max_steps=1" for stage in STAGES]
    plan = evaluate_override("instruct", **keys)
    arguments = [f"output_dir={tmp_path}", split_override(), plan, *steps, "--no-doctor", "--no-dry-export"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        return CliRunner().invoke(cli, ["train", str(world / "config.yaml"), *arguments])


def test_the_command_evaluates_and_says_so(world: Path, tmp_path: Path) -> None:
    done = command(world, tmp_path, best=FIGURE)
    assert done.exit_code == 0, done.output
    assert [(r["step"], r["best"]) for r in evaluations(tmp_path / "tiny")] == [(1, True)]
    assert re.search(r"instruct step 1/1  held_out\.all_right 0.* in .* s, .* the best so far", done.stderr)


def test_the_command_checks_the_figure_of_a_later_stage_before_the_first_step(
    world: Path, tmp_path: Path
) -> None:
    done = command(world, tmp_path, best="held_out.al_right")
    assert isinstance(done.exception, ConfigError)
    wrong = r"stages\.instruct\.evaluate\.best: .*'held_out\.al_right'.*Did you mean 'held_out\.all_right'"
    assert re.search(wrong, str(done.exception))
    assert not (tmp_path / "tiny" / "log.jsonl").exists()


def test_a_source_without_scene_graphs_is_refused(make_config: Make, world: Path) -> None:
    section = {"splits": {"held_out": {"source": {"name": "llava_json", "path": str(world / "rows.json")}}}}
    config = make_config(f"evaluation={json.dumps(section)}", evaluate_override("instruct"))
    with pytest.raises(ConfigError, match=r"evaluation\.splits\.held_out\.source.*no scene graphs"):
        LiveEvaluation.of(config, "instruct")


def test_the_config_that_is_shown_has_the_section(make_config: Make) -> None:
    text = to_yaml(make_config(split_override(), evaluate_override("align", best=FIGURE)))
    assert "evaluate:" in text and f"best: {FIGURE}" in text
    assert "evaluate:" not in to_yaml(make_config())


def test_ranks_ask_a_part_each_and_know_the_figures_of_all(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes, one after the other, then the first again with what all have said."""

    def some_truths(_captioner: Any, _encoder: Any, asked: Any, *_: Any) -> list[Result]:
        results = []
        for control, item, shown in asked:
            text = "" if item.id.startswith(("0/", "2/")) else item.truth
            flags = dict(score(item.kind, text, item.truth, item.graph))
            results.append(Result(item, control, text, flags, shown))
        return results

    monkeypatch.setattr(live_module, "ask", some_truths)
    monkeypatch.setattr(live_module, "encoder_of", lambda *_: None)
    monkeypatch.setattr(LiveEvaluation, "_features", lambda *_: NoPictures())
    live = LiveEvaluation.of(make_config(split_override(), evaluate_override("align")), "align")
    nobody = cast(Captioner, None)
    expected = live.figures(nobody)
    rates = {figure["rate"] for figure in expected.values()}
    assert len(rates) > 1 and rates != {0.0, 1.0}, expected
    said: list[Said] = []

    def note(own: Said) -> list[Said]:
        said.append(own)
        return [own + own] * 4  # what the others say does not matter yet

    for rank in range(4):
        live.figures(nobody, rank, 4, note)
    assert [len(part) for part in said] == [4, 4, 4, 3]
    assert live.figures(nobody, 0, 4, lambda _: said) == expected


class NoPictures:
    def add(self, _: Any) -> None:
        pass
