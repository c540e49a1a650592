"""A data worker that is killed costs a warning, and not a step; four of them end the iteration."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.schema.base import Component
from prismcap.configs.schema.data import BatchConfig
from prismcap.data.encode import build_encoder
from prismcap.data.loader import StepData, StepLoader
from prismcap.data.mix import Mix
from prismcap.data.pack import PixelInputs
from prismcap.data.schema import ImagePart, ImageSpec, Message, Sample, TextPart, TokenSpec
from prismcap.data.workers import WorkerDiedError

NUM_STEPS = 12


@dataclass(frozen=True)
class Grey:
    level: int

    def load(self) -> Image.Image:
        return Image.new("RGB", (8, 8), (self.level,) * 3)

    def fingerprint(self) -> str:
        return str(self.level)


@dataclass(frozen=True)
class Numbers:
    """Sample i shows a grey picture and says some words. Sample `deadly` kills the worker that reads it."""

    deadly: int = -1

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Sample:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        words = TextPart("w " * (index % 5 + 1))
        messages = (
            Message("user", (ImagePart(0), TextPart("q"))),
            Message("assistant", (words,), train=True),
        )
        return Sample(str(index), (Grey(index),), messages, "numbers")


@pytest.fixture(scope="module")
def loader() -> StepLoader:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", "w", "q", "USER:", "ASSISTANT:"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    encoder = build_encoder(Component(name="vicuna_v1", system=None), fast, TokenSpec(2), 32)
    batch = BatchConfig(samples_per_step=4, row_tokens=32, rows_per_micro_batch=2)
    images = PixelInputs(ImageSpec(8, (0.5,) * 3, (0.5,) * 3))
    mix = Mix(((Numbers(), 1),), seed=3)
    return StepLoader(mix, encoder, batch, images, num_steps=NUM_STEPS, num_workers=2)


def same(first: StepData, second: StepData) -> bool:
    """To the bit."""
    if replace(first, micro_batches=[]) != replace(second, micro_batches=[]):
        return False
    return all(
        torch.equal(value, vars(other)[key]) if isinstance(value, torch.Tensor) else value == vars(other)[key]
        for batch, other in zip(first.micro_batches, second.micro_batches, strict=True)
        for key, value in vars(batch).items()
    )


def kill_a_worker() -> int:
    """Waits until it is dead: before that the next step may still come from the other one."""
    worker, _ = multiprocessing.active_children()  # of earlier ones none is left
    worker.kill()
    worker.join()
    assert worker.pid is not None
    return worker.pid


@pytest.mark.parametrize("start_step", [0, 3])
def test_the_steps_are_those_of_an_undisturbed_run(
    loader: StepLoader, caplog: pytest.LogCaptureFixture, start_step: int
) -> None:
    caplog.set_level(logging.WARNING)
    resumed = replace(loader, start_step=start_step, num_steps=NUM_STEPS - start_step)
    found: list[StepData] = []
    killed = 0
    for data in resumed:
        found.append(data)
        if data.step == 6:
            killed = kill_a_worker()
    assert [data.step for data in found] == list(range(start_step, NUM_STEPS))
    assert all(same(data, loader.load(data.step)) for data in found)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"data worker {killed} was killed by SIGKILL" in warning
    assert "New workers read on from step 7 (time 1 of 3)" in warning


def test_the_fourth_death_is_an_error(loader: StepLoader, caplog: pytest.LogCaptureFixture) -> None:
    steps = iter(loader)
    for expected in range(4):
        data = next(steps)
        assert data.step == expected and same(data, loader.load(expected))
        kill_a_worker()
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        next(steps)
    assert len(caplog.records) == 3


def test_a_sample_that_always_kills_its_worker_ends_the_iteration(loader: StepLoader) -> None:
    place = next(number for number in range(64) if loader.mix.locate(number)[1] == 20)
    deadly = replace(loader, mix=Mix(((Numbers(deadly=20), 1),), seed=3), num_steps=16)
    found: list[int] = []
    steps: Iterator[StepData] = iter(deadly)
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        found.extend(data.step for data in steps)
    # what other workers had ready of later steps is not handed on out of order
    assert found == list(range(len(found))) and len(found) <= place // 4


STUCK = """
import sys, time
from torch.utils.data import Dataset
from prismcap.data.workers import read_ahead


class Stuck(Dataset):
    def __getitem__(self, index):
        if index == 1:
            open(sys.argv[1], "w").close()
            time.sleep(600)
        return index


items = read_ahead(Stuck(), 1, batch_size=None, sampler=range(4))
next(items)
while not __import__("os").path.exists(sys.argv[1]):
    time.sleep(0.01)
if sys.argv[2] == "closed":
    items.close()
"""


@pytest.mark.parametrize("how", ["closed", "left"])
def test_a_worker_that_is_stuck_does_not_hold_up_the_exit(tmp_path: Path, how: str) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    command: list[Any] = [sys.executable, tmp_path / "stuck.py", tmp_path / "note", how]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
