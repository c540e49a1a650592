"""The steps of a stage, each a pure function of seed, data and step number.

So a run's data position is its step number alone, whatever the number of ranks and loader workers:
a resumed run starts at step k and sees what an uninterrupted one would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from prismcap.configs.schema.data import BatchConfig
from prismcap.data.encode import Encoder
from prismcap.data.mix import Mix
from prismcap.data.pack import ImageInputs, make_batches
from prismcap.data.schema import Batch, DataError, Encoded, SampleRejected
from prismcap.data.workers import read_ahead

# with few samples seen, chance alone can exceed a share: the share is judged over at least so many
_JUDGED_OVER_SAMPLES = 1000
_KEPT_MESSAGES = 5


@dataclass(frozen=True)
class StepData:
    """What one rank works on in one step.

    sample_ids: the samples in the micro-batches, in the order of the data. num_rejected: by reason.
    messages: the first few rejections, in words. num_samples: kept and rejected together.
    """

    step: int
    micro_batches: list[Batch]
    sample_ids: tuple[str, ...]
    num_rejected: dict[str, int]
    num_samples: int
    num_cut_tokens: int = 0
    messages: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepLoader:
    """Iterates the steps start_step .. start_step + num_steps - 1 of one rank.

    Step k takes the samples at positions k * samples_per_step ... of the mix; rank r of n takes every
    n-th of them, from the r-th on.
    """

    mix: Mix
    encoder: Encoder
    batch: BatchConfig
    images: ImageInputs
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    start_step: int = 0
    num_steps: int = 1

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[StepData]:
        steps = range(self.start_step, self.start_step + self.num_steps)
        dataset = _Steps(self)
        prefetch = 2 if self.num_workers else None
        loader = read_ahead(
            dataset, self.num_workers, batch_size=None, sampler=steps, prefetch_factor=prefetch
        )
        for packed in loader:
            yield _unpack(packed)

    def load(self, step: int) -> StepData:
        """The data of one step, computed here and now."""
        size = self.batch.samples_per_step
        rejections = _Rejections()
        encoded: list[Encoded] = []
        positions = range(step * size + self.rank, (step + 1) * size, self.world_size)
        for position in positions:
            try:
                encoded.append(self.encoder.encode(self.mix.sample_at(position)))
            except SampleRejected as error:
                rejections.add(error)
        dropped: set[int] = set()

        def drop(item: Encoded, error: SampleRejected) -> None:
            dropped.add(id(item))
            rejections.add(error)

        batches = make_batches(encoded, self.batch, self.encoder.pad_id, self.images, drop)
        kept = [item for item in encoded if id(item) not in dropped]
        return StepData(
            step=step,
            micro_batches=batches,
            sample_ids=tuple(item.id for item in kept),
            num_rejected=dict(rejections.by_reason),
            num_samples=len(positions),
            num_cut_tokens=sum(item.cut_tokens for item in kept),
            messages=tuple(rejections.messages),
        )


@dataclass
class _Rejections:
    by_reason: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def add(self, error: SampleRejected) -> None:
        self.by_reason[error.reason] += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(f"{error.reason}: {error}")


class RejectionTally:
    """Counts rejected samples of a stage and ends the run when they are too many.

    max_share: of the samples seen, judged over at least 1000 samples or the whole stage if that is less
    (`num_planned` samples on this rank); 0 stops at the first one.
    """

    def __init__(self, max_share: float, num_planned: int) -> None:
        self.max_share = max_share
        self.judged_over = min(_JUDGED_OVER_SAMPLES, num_planned)
        self.num_seen = 0
        self.by_reason: Counter[str] = Counter()
        self.messages: list[str] = []

    @property
    def num_rejected(self) -> int:
        return sum(self.by_reason.values())

    def add(self, data: StepData) -> None:
        """Counts a step. Raises DataError listing reasons and the first messages."""
        self.num_seen += data.num_samples
        self.by_reason.update(data.num_rejected)
        self.messages += data.messages[: _KEPT_MESSAGES - len(self.messages)]
        if self.num_rejected > self.max_share * max(self.num_seen, self.judged_over):
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.most_common())
            first = "\n  ".join(self.messages)
            raise DataError(
                f"{self.num_rejected} of {self.num_seen} samples rejected ({reasons}), more than "
                f"data.max_rejected_share={self.max_share} allows. Mend the data or raise the share. "
                f"First:\n  {first}"
            )


class _Steps(Dataset[Any]):
    """Steps by number, for the DataLoader's workers."""

    def __init__(self, loader: StepLoader) -> None:
        self.loader = loader

    def __getitem__(self, step: int) -> Any:
        return _pack(self.loader.load(step))


def _pack(data: StepData) -> dict[str, Any]:
    """Tensors as arrays: a worker's tensors would each take a file descriptor of shared memory, of which a
    step of many micro-batches has too many for common limits (1024 files, 64 MB in containers)."""
    packed = {item.name: getattr(data, item.name) for item in fields(data)}
    packed["micro_batches"] = [
        {key: _to_array(value) for key, value in vars(batch).items()} for batch in data.micro_batches
    ]
    return packed


def _unpack(packed: dict[str, Any]) -> StepData:
    batches = [
        Batch(**{key: _from_array(value) for key, value in values.items()})
        for values in packed["micro_batches"]
    ]
    return StepData(**{**packed, "micro_batches": batches})


@dataclass(frozen=True)
class _Bfloat16:
    """NumPy has no bfloat16 (cached features are): its bits travel as int16."""

    bits: np.ndarray


def _to_array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return _Bfloat16(value.view(torch.int16).numpy()) if value.dtype == torch.bfloat16 else value.numpy()


def _from_array(value: Any) -> Any:
    if isinstance(value, _Bfloat16):
        return torch.from_numpy(value.bits).view(torch.bfloat16)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
