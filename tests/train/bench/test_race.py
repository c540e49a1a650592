"""Children: their answers, their deaths, their turns."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from prismcap.train.bench import race
from prismcap.train.bench.cases import LossCase, TrainCase
from prismcap.train.bench.race import BenchError, Child, UnfitContender, alternate

SMALL = LossCase(vocabulary=50, hidden=8, positions=16).model_dump()
LOSS = {"job": "loss", "way": "ours", "case": SMALL}


@contextmanager
def unready(spec: dict[str, Any]) -> Iterator[Child]:
    """A child whose first answer was not waited for."""
    child = Child("ours", spec, 1)
    try:
        yield child
    finally:
        child.close()


def test_a_child_that_is_ended_says_how() -> None:
    with unready(LOSS) as child:
        os.kill(child._process.pid, signal.SIGTERM)
        with pytest.raises(BenchError, match=r"ours: the child process died \(signal 15\)"):
            child.ready()


def test_a_child_killed_for_its_memory_is_unfit() -> None:
    with unready(LOSS) as child:
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(UnfitContender, match="memory"):
            child.ready()


def test_a_child_that_fails_hands_on_its_last_words() -> None:
    with (
        unready({"job": "no such job"}) as child,
        pytest.raises(BenchError, match=r"(?s)exit code 1.*KeyError: 'no such job'"),
    ):
        child.ready()


def test_a_child_that_is_gone_is_told_at_the_next_step() -> None:
    with unready({"job": "no such job"}) as child:
        child._process.wait()
        with pytest.raises(BenchError, match="no such job"):
            child.run(0)


class Recorder:
    """In place of Child: writes down whose turn it was."""

    turns: list[tuple[str, int]]

    def __init__(self, label: str, spec: dict[str, Any], num_threads: int) -> None:  # noqa: ARG002
        self.label, self.turns = label, spec["turns"]

    def ready(self) -> dict[str, Any]:
        return {}

    def run(self, step: int) -> dict[str, Any]:
        self.turns.append((self.label, step))
        return {"step": step}

    def close(self) -> None:
        self.turns.append((self.label, -1))


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "Child", Recorder)
    turns: list[tuple[str, int]] = []
    specs = {name: {"turns": turns} for name in "abc"}
    warm, figures = alternate(specs, 0, [1, 2, 3], 1)
    steps = [step for _, step in turns]
    assert steps == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [-1] * 3
    assert [turns[at][0] for at in (3, 6, 9)] == ["a", "b", "c"]  # who begins
    for at in range(0, 12, 3):
        assert {name for name, _ in turns[at : at + 3]} == {"a", "b", "c"}
    assert warm["b"] == {"step": 0}
    assert [one["step"] for one in figures["b"]] == [1, 2, 3]


def test_all_children_end_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Recorder):
        def run(self, step: int) -> dict[str, Any]:
            if self.label == "b":
                raise UnfitContender("no room")
            return super().run(step)

    monkeypatch.setattr(race, "Child", Failing)
    turns: list[tuple[str, int]] = []
    with pytest.raises(BenchError, match="no room"):
        alternate({name: {"turns": turns} for name in "abc"}, 0, [1], 1)
    assert {name for name, step in turns if step == -1} == {"a", "b", "c"}


def test_a_step_that_compiles_is_made_again(case: TrainCase, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismcap.train.bench import train_job

    job = train_job.build({"contender": "ours", "compiled": False, "case": case.model_dump()})
    graphs = iter([0, 1, 1, 1])  # before and after: something was compiled in the first try alone
    monkeypatch.setattr(train_job, "_num_graphs", lambda: next(graphs))
    figures = job.run(0)
    assert not figures["compiled"]
    other = train_job.build({"contender": "ours", "compiled": False, "case": case.model_dump()})
    monkeypatch.setattr(train_job, "_num_graphs", lambda: 0)
    once = other.run(0)
    assert once["compile_s"] == 0
    assert figures["loss"] == once["loss"]  # that of the weights at the start, not after the first try
