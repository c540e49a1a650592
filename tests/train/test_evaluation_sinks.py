"""What each sink does with an evaluation, and the room that doctor reserves for the best weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import FIGURE, drawn_scenes, evaluate_override, evaluation, split_override

from prismcap.train.doctor.disk import StageSize, run_bytes
from prismcap.train.sinks.jsonl import EVALUATIONS, JsonlSink, evaluations_up_to
from prismcap.train.sinks.progress import ProgressSink
from prismcap.train.sinks.tensorboard import TensorboardSink
from prismcap.train.sinks.wandb import WandbSink

STAGES = ("align", "instruct")


def test_records_past_the_point_of_going_on_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / EVALUATIONS
    lines = [
        evaluation("align", 2),
        evaluation("align", 4),
        evaluation("instruct", 2),
        evaluation("instruct", 4),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "instru')
    assert evaluations_up_to(tmp_path, STAGES, "instruct", 3) == [lines[2]]
    assert evaluations_up_to(tmp_path, STAGES, "align", 4) == lines[:2]
    sink = JsonlSink(tmp_path / "log.jsonl", STAGES)
    sink.start_stage("instruct", 6, step=3)
    sink.write_evaluation(evaluation("instruct", 4, best=True))
    sink.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [*lines[:3], evaluation("instruct", 4, best=True)]


def test_a_run_that_is_never_evaluated_has_no_such_file(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log.jsonl", STAGES)
    sink.start_stage("align", 3, 0)
    sink.write({"stage": "align", "step": 1})
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert evaluations_up_to(tmp_path, STAGES, "align", 3) == []


def test_tensorboard_gets_a_scalar_of_each_figure(tmp_path: Path) -> None:
    scalars: dict[str, tuple[float, int]] = {}

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars[name] = (value, step)

    sink = TensorboardSink(tmp_path, every_steps=10)
    sink.writer = Writer()
    sink.write_evaluation(evaluation("align", 3))  # however seldom steps are logged
    assert scalars == {"eval/held_out.all_right": (0.25, 3), "eval/held_out.words": (7.5, 3)}


def test_wandb_gets_them_over_the_steps_of_the_stage() -> None:
    logged: list[Any] = []

    class Run:
        def log(self, values: Any) -> None:
            logged.append(values)

    WandbSink(Run(), every_steps=10).write_evaluation(evaluation("align", 3))
    charts = {"align/eval/held_out.all_right": 0.25, "align/eval/held_out.words": 7.5}
    assert logged == [{"align/step": 3, **charts}]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_terminal_gets_a_line(terminal: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    sink = ProgressSink(stream)
    sink.start_stage("align", 3, 0)
    sink.write_evaluation(evaluation("align", 2, best=True))
    sink.close()
    line = (
        "align step 2/3  held_out.all_right 0.25, held_out.words 7.5  in 2.5 s, evaluations are 5.0% of the"
    )
    assert f"{line} stage's time  the best so far\n" in stream.getvalue()


def test_the_best_weights_have_their_place_on_the_disk(make_config: Any) -> None:
    sizes = {name: StageSize(trained=10**6, steps=7) for name in STAGES}
    with drawn_scenes():
        plain, best = (
            run_bytes(make_config(split_override(), evaluate_override("align", **keys)), sizes, 10**7)
            for keys in ({}, {"best": FIGURE})
        )
    assert best - plain == 2 * 4 * 10**6, "the best, and the one before it, in fp32"
