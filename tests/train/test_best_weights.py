"""The best weights of a stage: which they are, where they end up, and what a stop or a kill does to them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from evaluated_runs import (
    FIGURE,
    SOURCES,
    Scripted,
    drawn_scenes,
    evaluate_override,
    evaluations,
    losses,
    split_override,
)
from stopped_runs import Stop, stop_after
from torch import Tensor

import prismcap.train.checkpoint as checkpoints
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.model.restore import load_trained
from prismcap.model.weights import load_weights
from prismcap.train.best import BestWeights
from prismcap.train.checkpoint import Manifest, file_hash, read_manifest, save_checkpoint, step_name, verify
from prismcap.train.distributed import Ranks
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training
from prismcap.train.runfolder import comparable

Make = Callable[..., RunConfig]
WEIGHTS = "weights.safetensors"


@pytest.fixture(autouse=True, scope="module")
def tiny_runs() -> Iterator[None]:
    with drawn_scenes():
        yield


class Weights:
    """What the trained weights were after each step."""

    def __init__(self) -> None:
        self.after: dict[tuple[str, int], dict[str, Tensor]] = {}

    def __call__(self, event: StepEvent) -> None:
        state = event.engine.gathered_state()
        self.after[event.stage, event.step] = {name: value.clone() for name, value in state.items()}

    def step_of(self, stage: str, folder: Path) -> int:
        """After which step they were those of the folder."""
        saved = load_weights(folder / WEIGHTS)
        steps = [
            step
            for (of, step), state in self.after.items()
            if of == stage and all(value.equal(state[name]) for name, value in saved.items())
        ]
        (step,) = steps
        return step


CHOICES = [
    ([0.2, 0.5, 0.5, 0.1], True, 4),  # evaluated after steps 2, 4, 6, 7; of equal ones the earlier
    ([0.2, 0.5, 0.1, 0.1], False, 6),
    ([0.2, 0.3, 0.4, 0.5], True, 7),
    ([None, math.nan, 0.0, math.inf], True, 6),  # what is no number is never the best
]


@pytest.mark.parametrize(("values", "higher", "step"), CHOICES)
def test_final_is_the_step_where_the_figure_was_best(
    make_config: Make, values: list[float | None], higher: bool, step: int
) -> None:
    plan = evaluate_override("instruct", best=FIGURE, higher_is_better=higher)
    weights = Weights()
    config = make_config(split_override(), plan)
    run_dir = run_training(config, callbacks=[weights], measure_of=Scripted({"instruct": values}))
    stage_dir = run_dir / "instruct"
    assert weights.step_of("instruct", stage_dir / "final") == step
    best = {"step": step, "figure": FIGURE, "value": values[[2, 4, 6, 7].index(step)]}
    final = verify(stage_dir / "final")
    assert (final.step, final.best) == (7, best)
    kept = verify(stage_dir / "best")
    assert (kept.step, kept.best) == (step, best)
    assert file_hash(stage_dir / "best" / WEIGHTS) == file_hash(stage_dir / "final" / WEIGHTS)
    assert not (stage_dir / "best-before").exists()
    assert [record["step"] for record in evaluations(run_dir) if record["best"]][-1] == step
    assert read_manifest(run_dir / "align" / "final").best is None


def test_the_next_stage_starts_from_the_best(make_config: Make) -> None:
    plan = evaluate_override("align", best=FIGURE)
    weights = Weights()
    scripted = Scripted({"align": [0.5, 0.1]})
    # a rate of next to nothing: after its first step the connector is all but where it began
    frozen = "stages.instruct.train={connector: {lr: 1.0e-30}}"
    run_dir = run_training(
        make_config(split_override(), plan, frozen), callbacks=[weights], measure_of=scripted
    )
    began = weights.after["instruct", 1]
    after = weights.after
    assert all(value.equal(after["align", 2][name]) for name, value in began.items())
    assert not all(value.equal(after["align", 4][name]) for name, value in began.items())
    state = load_trained(run_dir, last_stage="align")[0].state_dict()
    assert all(state[name].equal(value) for name, value in after["align", 2].items())


def test_the_best_outlives_older_checkpoints(make_config: Make) -> None:
    plan = evaluate_override("instruct", best=FIGURE)
    config = make_config(split_override(), plan, "stages.instruct.checkpoint={every_steps: 1, keep: 1}")
    run_dir = run_training(config, measure_of=Scripted({"instruct": [0.9, 0.1, 0.2, 0.3]}))
    assert sorted(path.name for path in (run_dir / "instruct").iterdir()) == ["best", "final", "step-000006"]
    assert verify(run_dir / "instruct" / "best").step == 2


def stopped(config: RunConfig, step: int, values: list[float | None], resume: str = "never") -> Path:
    with pytest.raises(Stop):
        run_training(
            config,
            resume=resume,
            callbacks=[stop_after("instruct", step)],
            measure_of=Scripted({"instruct": values}),
        )
    return Path(config.output_dir) / config.name


def test_a_best_past_the_checkpoint_is_void_and_the_one_before_it_stands(make_config: Make) -> None:
    """Stopped after step 5, with a checkpoint of step 4 and the best at 1, then 3, then 5. When steps are
    made again and 5 turns out worse (evaluations may be put off, and GPUs are not exact), 3 is the best."""
    plan = evaluate_override("instruct", best=FIGURE, every_steps=1)
    config = make_config(split_override(), plan)
    run_dir = stopped(config, 5, [0.1, 0.0, 0.3, 0.0, 0.9])
    stage_dir = run_dir / "instruct"
    assert verify(stage_dir / "best").step == 5 and verify(stage_dir / "best-before").step == 3
    weights = Weights()
    whole = run_training(
        make_config(split_override(), plan, "name=whole"),
        callbacks=[weights],
        measure_of=Scripted({"instruct": [0.1, 0.0, 0.3, 0.0, 0.2, 0.1, 0.0]}),
    )
    run_training(config, resume="auto", measure_of=Scripted({"instruct": [0.2, 0.1, 0.0]}))
    assert weights.step_of("instruct", stage_dir / "final") == 3
    assert file_hash(stage_dir / "final" / WEIGHTS) == file_hash(whole / "instruct" / "final" / WEIGHTS)
    assert verify(stage_dir / "final").best == {"step": 3, "figure": FIGURE, "value": 0.3}
    assert [record["best"] for record in evaluations(run_dir)] == [
        True,
        False,
        True,
        False,
        False,
        False,
        False,
    ]


def test_of_several_bests_since_the_checkpoint_the_one_before_it_is_kept(make_config: Make) -> None:
    """Best at 3, then at 5 and at 6 with no checkpoint since step 4; the steps after 4 come out worse."""
    plan = evaluate_override("instruct", best=FIGURE, every_steps=1)
    config = make_config(split_override(), plan, "stages.instruct.checkpoint.every_steps=4")
    run_dir = stopped(config, 6, [0.1, 0.0, 0.3, 0.0, 0.8, 0.9])
    assert verify(run_dir / "instruct" / "best-before").step == 3
    run_training(config, resume="auto", measure_of=Scripted({"instruct": [0.2, 0.1, 0.0]}))
    assert verify(run_dir / "instruct" / "final").best == {"step": 3, "figure": FIGURE, "value": 0.3}


def test_without_a_checkpoint_every_best_is_void(make_config: Make) -> None:
    plan = evaluate_override("instruct", best=FIGURE, every_steps=1)
    config = make_config(split_override(), plan, "stages.instruct.checkpoint.every_steps=null")
    run_dir = stopped(config, 3, [0.9, 0.1, 0.95])
    run_training(
        config, resume="auto", measure_of=Scripted({"instruct": [0.1, 0.0, 0.3, 0.2, 0.0, 0.0, 0.0]})
    )
    assert verify(run_dir / "instruct" / "final").best == {"step": 3, "figure": FIGURE, "value": 0.3}


def test_a_branched_run_takes_the_best_up_to_its_checkpoint(make_config: Make) -> None:
    plan = evaluate_override("instruct", best=FIGURE, every_steps=1)
    config = make_config(split_override(), plan)
    run_dir = stopped(config, 5, [0.1, 0.0, 0.3, 0.0, 0.9])
    branch = make_config(split_override(), plan, "name=branch")
    resume = str(run_dir / "instruct" / "step-000004")
    branched = run_training(branch, resume=resume, measure_of=Scripted({"instruct": [0.2, 0.1, 0.0]}))
    assert verify(branched / "instruct" / "final").best == {"step": 3, "figure": FIGURE, "value": 0.3}
    assert [record["step"] for record in evaluations(branched)] == [1, 2, 3, 4, 5, 6, 7]


def test_damaged_best_weights_are_passed_over(make_config: Make, caplog: pytest.LogCaptureFixture) -> None:
    plan = evaluate_override("instruct", best=FIGURE, every_steps=1)
    config = make_config(split_override(), plan)
    run_dir = stopped(config, 4, [0.1, 0.9, 0.3, 0.2])
    (run_dir / "instruct" / "best" / WEIGHTS).write_bytes(b"")
    run_training(config, resume="auto", measure_of=Scripted({"instruct": [0.1, 0.2, 0.3, 0.4, 0.0]}))
    assert "best weights are damaged" in caplog.text
    # checkpoints are of steps 2 and 4; it was stopped after 4, before that one was saved
    assert verify(run_dir / "instruct" / "final").best == {"step": 6, "figure": FIGURE, "value": 0.4}


@pytest.mark.parametrize(
    ("then", "now", "key"),
    [
        ({"best": FIGURE}, {"best": "held_out.count"}, "evaluate.best"),
        ({"best": FIGURE}, {"best": FIGURE, "every_steps": 3}, "evaluate.every_steps"),
        ({"best": FIGURE}, {"best": FIGURE, "max_share": 0.2}, None),  # the machine's speed decides as much
        ({"best": FIGURE}, {}, "evaluate.best"),
        ({}, {"every_steps": 3, "num_items": 1}, None),
        ({}, None, None),
    ],
)
def test_what_may_change_when_a_run_goes_on(
    make_config: Make, then: dict[str, Any], now: dict[str, Any] | None, key: str | None
) -> None:
    first = comparable(make_config(split_override(), evaluate_override("instruct", **then)), "instruct")
    plan = [] if now is None else [evaluate_override("instruct", **now)]
    second = comparable(make_config(split_override(), *plan), "instruct")
    changed = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    assert changed == set() if key is None else f"stages.instruct.{key}" in changed


def test_a_run_does_not_go_on_with_another_best(make_config: Make) -> None:
    config = make_config(split_override(), evaluate_override("instruct", best=FIGURE))
    stopped(config, 4, [0.1, 0.2])
    other = make_config(split_override(), evaluate_override("instruct", best="held_out.count"))
    with pytest.raises(ConfigError, match=r"stages\.instruct\.evaluate\.best: 'held_out\.all_right' then"):
        run_training(other, resume="auto")


class Constant:
    """An engine with one weight."""

    def __init__(self, value: float) -> None:
        self.value = value

    def gathered_state(self) -> dict[str, Tensor]:
        return {"weight": Tensor([self.value])}


def test_a_kill_at_any_rename_leaves_a_best_for_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call on the file system is the last one: from the newest checkpoint, the best up to it is
    found."""

    class Killed(BaseException):
        pass

    def manifest(step: int) -> Manifest:
        return Manifest("align", step, 1, "torch", {}, {})

    def keep_some(folder: Path, last_call: int) -> int:
        """Best at steps 1, 3, 5, 6; checkpoints after 2 and 5. Returns how many calls were made."""
        calls = [0]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                calls[0] += 1
                if calls[0] > last_call:
                    raise Killed
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.os, "rename", counted(checkpoints.os.rename))
            patch.setattr(checkpoints.shutil, "rmtree", counted(checkpoints.shutil.rmtree))
            best = BestWeights(folder, FIGURE, True, manifest, Ranks())
            try:
                for step in range(1, 7):
                    value = step / 10 if step in (1, 3, 5, 6) else 0.0
                    best.offer(step, value, cast(Any, Constant(value)))
                    if step in (2, 5):
                        save_checkpoint(folder, step_name(step), manifest(step), lambda _: None, Ranks())
            except Killed:
                pass
        return calls[0]

    total = keep_some(tmp_path / "whole", 10**6)
    assert total > 10
    for last_call in range(total):
        folder = tmp_path / str(last_call)
        keep_some(folder, last_call)
        checkpoints.remove_unfinished(folder)
        found = checkpoints.newest(folder)
        at = found[1].step if found else 0
        best = BestWeights(
            folder, FIGURE, True, lambda step: Manifest("a", step, 1, "t", {}, {}), Ranks(), at
        )
        expected = {0: None, 2: 1, 5: 5}[at]
        assert (best.found.step if best.found else None) == expected, last_call
        if best.found:
            (weight,) = load_weights(folder / "best" / WEIGHTS).values()
            assert float(weight) == pytest.approx(best.found.value)


# checkpoints are written every 2 steps, evaluations made every step; instruct has 7 steps
DEATHS = [
    "renaming:align:best",
    "renaming:align:final",
    "keeping:instruct:1",
    "after:instruct:3",
    "renaming:instruct:best",
    "writing:instruct:4",
    "keeping:instruct:5",
    "after:instruct:6",
    "renaming:instruct:final",
    "",
]


@pytest.fixture(scope="module")
def killed(world: Path, tmp_path_factory: pytest.TempPathFactory, launch: Any) -> Path:
    """A whole run, and one killed with signal 9 at each of the DEATHS; `best` by a figure of the weights."""
    out = tmp_path_factory.mktemp("best")
    plans = [evaluate_override(stage, best=FIGURE, every_steps=1) for stage in ("align", "instruct")]
    settings = [f"output_dir={out}", split_override(), *plans]
    jobs = [{"overrides": [*settings, "name=whole"], "resume": "never", "die": ""}]
    jobs += [{"overrides": [*settings, "name=killed"], "resume": "auto", "die": die} for die in DEATHS]
    script = Path(__file__).parent / "workers" / "train_and_die.py"
    launch(str(script), str(world / "config.yaml"), str(out), json.dumps(jobs), str(SOURCES))
    return out


@pytest.mark.slow
def test_every_kill_was_one(killed: Path) -> None:
    codes = json.loads((killed / "codes.json").read_text())
    assert codes == [0, *(-9 if die else 0 for die in DEATHS)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_killed_at_any_moment_the_best_is_that_of_the_whole_run(killed: Path, stage: str) -> None:
    whole, other = killed / "whole" / stage, killed / "killed" / stage
    for folder in ("best", "final"):
        assert file_hash(whole / folder / WEIGHTS) == file_hash(other / folder / WEIGHTS)
        assert verify(whole / folder).best == verify(other / folder).best is not None
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in other.iterdir())


@pytest.mark.slow
def test_killed_at_any_moment_records_and_losses_are_those_of_the_whole_run(killed: Path) -> None:
    def records(name: str) -> list[dict[str, Any]]:
        return [{**record, "time_s": 0, "share": 0} for record in evaluations(killed / name)]

    assert records("killed") == records("whole")
    assert losses(killed / "killed") == losses(killed / "whole")
    steps = [record["step"] for record in records("whole") if record["stage"] == "instruct"]
    assert steps == list(range(1, 8))
    final = verify(killed / "whole" / "instruct" / "final").best
    assert final is not None and final["step"] < 7, "the last step is not the best by chance"
