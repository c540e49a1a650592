"""Where step records go."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluated_runs import evaluation

from prismcap.configs.errors import MissingExtraError
from prismcap.configs.registry import available, component_module
from prismcap.configs.schema.run import RunConfig
from prismcap.train.sinks.jsonl import JsonlSink
from prismcap.train.sinks.progress import ProgressSink


def record(stage: str, step: int, **more: Any) -> dict[str, Any]:
    values = {"stage": stage, "step": step, "loss": 1 / step, "lr/llm": 1e-3, "grad_norm": 1.0, "time_s": 0.5}
    return values | {"samples_per_s": 8.0, "data_wait_share": 0.1, "skipped": False, "rejected": {}} | more


SKIPPED = {"loss": None, "grad_norm": None, "skipped": True}


@pytest.mark.parametrize("name", available("sink"))
def test_every_sink_takes_records_and_closes(
    name: str, tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        sink = component_module("sink", name).build(make_config(), tmp_path)
    except MissingExtraError as error:
        pytest.skip(str(error))
    for stage in ("align", "instruct"):
        sink.start_stage(stage, 3, 0)
        for step in (1, 2, 3):
            sink.write(record(stage, step, **(SKIPPED if step == 2 else {})))
        sink.write_evaluation(evaluation(stage, 3))
    sink.close()
    if name != "progress":
        assert any(path.is_file() and path.stat().st_size for path in tmp_path.rglob("*"))


def test_the_log_drops_what_a_killed_run_wrote_past_its_checkpoint(tmp_path: Path, make_config: Any) -> None:
    config: RunConfig = make_config()
    path = tmp_path / "log.jsonl"
    lines = [record("align", 1), record("align", 2), record("instruct", 1), record("instruct", 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "instru')
    sink = JsonlSink(path, tuple(config.stages))
    sink.start_stage("instruct", 3, step=1)
    sink.write(record("instruct", 2, loss=7.0))
    sink.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in found] == [
        ("align", 1),
        ("align", 2),
        ("instruct", 1),
        ("instruct", 2),
    ]
    assert found[-1]["loss"] == 7.0


def test_without_a_terminal_the_progress_is_lines() -> None:
    stream = io.StringIO()
    sink = ProgressSink(stream, line_every_s=1000)
    sink.start_stage("align", 3, 0)
    for step in (1, 2, 3):
        sink.write(record("align", step))
    sink.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("align step 1/3  loss 1.0000")
    assert lines[1].startswith("align step 3/3")


def test_on_a_terminal_the_progress_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    sink = ProgressSink(stream)
    sink.start_stage("align", 2, 1)
    sink.write(record("align", 2, **SKIPPED))
    sink.close()
    assert "2/2" in stream.getvalue()


def test_wandb_is_told_of_group_and_tags(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    class Wandb:
        @staticmethod
        def init(**values: Any) -> Any:
            told.update(values)

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    build = component_module("sink", "wandb").build
    build(make_config("logging.group=abl", "logging.tags=[connector.mlp]"), tmp_path)
    assert (told["group"], told["tags"], told["name"]) == ("abl", ["connector.mlp"], "tiny")
    build(make_config(), tmp_path)
    assert (told["group"], told["tags"]) == (None, None)
