"""A process killed in each stage, and two at once: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.load import to_yaml
from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.prism.run import run_dir_of

Make = Callable[..., PrismConfig]
Asked = Callable[[str], list[str]]
RUN = """
import sys
from prismcap.configs.load import load_prism
from prismcap.evaluate.prism.run import run_prism
run_prism(load_prism(sys.argv[1]), ["instruct", "perceive", "reason"])
"""
INSTRUCTIONS = {"generic": {"key": "human1"}, "specific": {"written_by": "writing"}}
NUM_WRITTEN, NUM_DESCRIBED, NUM_REASONED = 2, 12, 36  # of 12 questions about 6 pictures


@pytest.fixture
def start(tmp_path: Path) -> Callable[[PrismConfig], subprocess.Popen[bytes]]:
    def start(config: PrismConfig) -> subprocess.Popen[bytes]:
        path = tmp_path / "prism.yaml"
        path.write_text(to_yaml(config))
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.Popen([sys.executable, "-c", RUN, str(path)], env=environment)

    return start


def reasoners(tmp_path: Path, reading: dict[str, Any], writing: dict[str, Any]) -> dict[str, Any]:
    """One of its own writes the instructions, so that it can be killed by itself."""
    return {
        name: {"name": "prism_fakes.reasoner", "log": str(tmp_path / f"{name}.log"), **options}
        for name, options in (("reading", reading), ("writing", writing))
    }


def config_of(make_config: Make, tmp_path: Path, stage: str, options: dict[str, Any]) -> PrismConfig:
    given = {"instruct": {}, "perceive": {}, "reason": {}, stage: options}
    return make_config(
        perceiver=given["perceive"],
        instructions=INSTRUCTIONS,
        reasoners=reasoners(tmp_path, given["reason"], given["instruct"]),
        cells=[{"reasoners": ["reading"]}, {"perceivers": ["blind"], "reasoners": ["reading"]}],
    )


@pytest.mark.parametrize("stage", ["instruct", "perceive", "reason"])
def test_a_killed_process_loses_nothing_and_nothing_is_asked_twice(
    make_config: Make, asked: Asked, start: Callable[..., Any], tmp_path: Path, stage: str
) -> None:
    kill = tmp_path / "kill"
    kill.touch()
    options = {"kill_file": str(kill), "kill_after": 1}
    config = config_of(make_config, tmp_path, stage, options)
    first = start(config)
    assert first.wait() == -signal.SIGKILL
    # what a kill in the middle of a write leaves behind
    for path in run_dir_of(config).glob("*/**/*.jsonl"):
        with path.open("ab") as file:
            file.write(b'{"key": "torn')
    assert start(config).wait() == 0
    counts = {name: Counter(asked(name)) for name in ("writing", "perceiver", "reading")}
    assert {name: sum(lines.values()) for name, lines in counts.items()} == {
        "writing": NUM_WRITTEN,
        "perceiver": NUM_DESCRIBED,
        "reading": NUM_REASONED,
    }
    assert start(config).wait() == 0
    assert asked("writing") == asked("perceiver") == asked("reading") == []


@pytest.mark.parametrize("stage", ["perceive", "reason"])
def test_two_processes_share_the_work(
    make_config: Make, asked: Asked, start: Callable[..., Any], tmp_path: Path, stage: str
) -> None:
    config = config_of(make_config, tmp_path, stage, {"delay_s": 0.1})
    both = [start(config), start(config)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(asked("writing")) == NUM_WRITTEN
    assert len(asked("perceiver")) == NUM_DESCRIBED
    assert len(asked("reading")) == NUM_REASONED


def test_what_a_killed_process_had_claimed_is_done_by_the_other(
    make_config: Make, asked: Asked, start: Callable[..., Any], tmp_path: Path
) -> None:
    kill = tmp_path / "kill"
    kill.touch()
    config = config_of(
        make_config, tmp_path, "perceive", {"delay_s": 0.3, "kill_file": str(kill), "kill_after": 2}
    )
    both = [start(config), start(config)]
    assert sorted(process.wait() for process in both) == [-signal.SIGKILL, 0]
    assert len(asked("perceiver")) == NUM_DESCRIBED
    assert len(asked("reading")) == NUM_REASONED
