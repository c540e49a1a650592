"""Tiny runs that are evaluated while they train: on drawn scenes, or by figures that a test makes up."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismcap.configs.schema.run import RunConfig
from prismcap.model.captioner import Captioner
from prismcap.train.distributed import Ranks
from prismcap.train.evaluations import Measure
from prismcap.train.mfu import MfuMeter

SOURCES = Path(__file__).parents[1] / "evaluate"  # where the source of drawn scenes lies
FIGURE = "held_out.all_right"
# nothing is merged at the stage's end: the weights that are loaded are those that trained
WHOLE = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}}"


@contextmanager
def drawn_scenes() -> Iterator[None]:
    """Within, configs can name the source drawn_scenes_source.drawn, and no stage measures its device for a
    second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SOURCES))
        patch.setattr(MfuMeter, "of", lambda *_: None)
        yield


def split_override(num_items: int = 3, batch_size: int = 4, metrics: Sequence[Mapping[str, str]] = ()) -> str:
    """`evaluation` with one split of drawn scenes, as an override."""
    split = {"source": {"name": "drawn_scenes_source.drawn", "num_scenes": 30}, "num_items": num_items}
    section = {"splits": {"held_out": split}, "batch_size": batch_size, "max_new_tokens": 6}
    section["metrics"] = list(metrics)
    return f"evaluation={json.dumps(section)}"


def evaluate_override(stage: str, **keys: Any) -> str:
    """`evaluate` of a stage: every 2 steps and never put off, unless `keys` say otherwise."""
    plan = {"every_steps": 2, "splits": ["held_out"], "num_items": 3, "max_share": 1.0}
    return f"stages.{stage}.evaluate={json.dumps(plan | keys)}"


def made_up(value: float | None) -> dict[str, dict[str, Any]]:
    """FIGURE with a value."""
    return {FIGURE: {"rate": value, "low": value, "high": value, "n": 4}}


class Scripted:
    """A `measure_of` with the values of each stage's evaluations one after the other; it draws random numbers
    too, which the trainer must not notice."""

    def __init__(self, values: Mapping[str, Sequence[float | None]]) -> None:
        self.values = {stage: iter(some) for stage, some in values.items()}

    def __call__(self, config: RunConfig, stage: str, ranks: Ranks) -> Measure:  # noqa: ARG002
        def measure(captioner: Captioner) -> dict[str, dict[str, Any]]:
            assert not captioner.training and not torch.is_grad_enabled()
            draw_random_numbers()
            return made_up(next(self.values[stage]))

        return measure


def draw_random_numbers() -> None:
    """From every generator that a checkpoint keeps."""
    torch.rand(3)
    random.random()
    np.random.rand(3)


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """The records of evaluations.jsonl."""
    lines = (run_dir / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(run_dir: Path) -> list[tuple[str, int, float]]:
    """(stage, step, loss) of log.jsonl."""
    records = map(json.loads, (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [(record["stage"], record["step"], record["loss"]) for record in records]


def evaluation(stage: str, step: int, best: bool = False) -> dict[str, Any]:
    """A record of evaluations.jsonl, of figures of each kind."""
    rate = {"rate": 0.25, "low": 0.1, "high": 0.5, "n": 12}
    figures = {"held_out.all_right": rate, "held_out.words": {"mean": 7.5, "low": 7.0, "high": 8.0, "n": 12}}
    figures["held_out.nothing"] = {"mean": None, "n": 0}
    common = {"stage": stage, "step": step, "figures": figures}
    return common | {"time_s": 2.5, "share": 0.05, "best": best}
