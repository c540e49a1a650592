"""Benchmarks at toy sizes, in this process where processes are not what is tested."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from prismcap.train.bench import child, race, rates
from prismcap.train.bench.cases import TrainCase
from prismcap.train.bench.job import UnfitError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def case() -> TrainCase:
    """Two steps of six samples, 16 visual tokens a picture, in rows of at most 256 tokens."""
    return TrainCase(
        mix="mix665k",
        size="tiny",
        precision="fp32",
        samples_per_step=6,
        visual_tokens=16,
        row_tokens=256,
        num_steps=2,
    )


class InProcess:
    """In place of race.Child: the same job, reached through JSON all the same."""

    def __init__(self, label: str, spec: Mapping[str, Any], num_threads: int) -> None:  # noqa: ARG002
        self.label = label
        self.spec = json.loads(json.dumps(spec))

    def ready(self) -> dict[str, Any]:
        self.job = child.JOBS[self.spec["job"]](self.spec)
        return {}

    def run(self, step: int) -> dict[str, Any]:
        try:
            figures: dict[str, Any] = json.loads(json.dumps(self.job.run(step)))
        except UnfitError as error:
            raise race.UnfitContender(str(error)) from error
        return figures

    def close(self) -> None:
        return


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "Child", InProcess)
    monkeypatch.setattr(rates, "_BUDGET_S", 0.01)
