"""The steps of a stage, each a pure function of seed, data and step number.

So a run's data position is its step number alone, whatever the number of ranks and loader workers:
a resumed run starts at step k and sees what an uninterrupted one would.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from prismcap.configs.cache import cache_dir
from prismcap.configs.schema.data import BatchConfig
from prismcap.data.encode import Encoder
from prismcap.data.lengths import LengthIndex, Measure
from prismcap.data.mix import Mix
from prismcap.data.pack import ImageInputs, make_batches
from prismcap.data.plan import plan_step
from prismcap.data.schema import Batch, DataError, Encoded, SampleRejected
from prismcap.data.workers import WorkerDiedError, read_ahead

log = logging.getLogger(__name__)

# a worker that the system killed once may have been unlucky; one that always dies is no luck
_MOST_RESTARTS = 3
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

    Step k takes the samples at positions k * samples_per_step ... of the mix; data/plan.py says which of
    them are this rank's. lengths: without it every rank encodes the text of all samples of a step to plan it.
    pin_memory: for a GPU; see Batch.pin_memory.

    When a worker dies, new ones read on from the step that comes next, with a warning: the steps are those
    of an undisturbed run. After three times, WorkerDiedError.
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
    lengths: LengthIndex | None = None
    pin_memory: bool = False

    def __post_init__(self) -> None:
        counts = self.mix.per_step
        assert counts is None or sum(counts) == self.batch.samples_per_step

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[StepData]:
        step, end, restarts = self.start_step, self.start_step + self.num_steps, 0
        while step < end:
            try:
                for data in self._read(range(step, end)):
                    step += 1
                    yield data
            except WorkerDiedError as error:
                if restarts == _MOST_RESTARTS:
                    raise
                restarts += 1
                # as text: who keeps the error keeps its frames, and with them the workers that are left
                log.warning(
                    "%s. New workers read on from step %d (time %d of %d)",
                    *(str(error), step, restarts, _MOST_RESTARTS),
                )

    def _read(self, steps: range) -> Iterator[StepData]:
        return read_ahead(
            _Steps(self),
            self.num_workers,
            _Pinned(torch.accelerator.current_device_index()) if self.pin_memory else _Packed.unpacked,
            batch_size=None,
            sampler=steps,
            prefetch_factor=2 if self.num_workers else None,
        )

    def load(self, step: int) -> StepData:
        """The data of one step, computed here and now. Raises DataError when `lengths` is wrong."""
        first = step * self.batch.samples_per_step
        measures, outcomes = self._measured(first)
        rows, unusable = self._own(measures)
        rejections = _Rejections()
        kept: dict[int, Encoded] = {}
        own = sorted([*unusable, *(number for batch in rows for row in batch for number in row)])
        for number in own:
            outcome = outcomes[number] if number in outcomes else self._encode(first + number)
            _check_measure(measures[number], outcome)
            if isinstance(outcome, SampleRejected):
                rejections.add(outcome)
            elif number in unusable:
                rejections.add(self._too_many_images(outcome))
            else:
                kept[number] = outcome
        dropped: set[int] = set()

        def drop(item: Encoded, error: SampleRejected) -> None:
            dropped.add(id(item))
            rejections.add(error)

        taken = [[[kept[number] for number in row if number in kept] for row in batch] for batch in rows]
        batches = make_batches(taken, self.encoder.pad_id, self.images, drop)
        left = [item for item in kept.values() if id(item) not in dropped]
        return StepData(
            step=step,
            micro_batches=batches,
            sample_ids=tuple(item.id for item in left),
            num_rejected=dict(rejections.by_reason),
            num_samples=len(own),
            num_cut_tokens=sum(item.cut_tokens for item in left),
            messages=tuple(rejections.messages),
        )

    def _measured(self, first: int) -> tuple[list[Measure], dict[int, Encoded | SampleRejected]]:
        """The measures of a step's samples, and, where these had to be encoded for them, what came of it."""
        numbers = range(self.batch.samples_per_step)
        if self.lengths is not None:
            return [self.lengths.at(*self.mix.locate(first + number)) for number in numbers], {}
        outcomes = {number: self._encode(first + number) for number in numbers}
        return [Measure.of(outcome) for outcome in outcomes.values()], outcomes

    def _own(self, measures: Sequence[Measure]) -> tuple[list[list[list[int]]], set[int]]:
        """This rank's micro-batches of rows of samples, by number in the step, and its share of those that
        no row takes: one rank counts them."""
        limit = self.batch.images_per_micro_batch
        usable = [i for i, found in enumerate(measures) if found.tokens > 0 and found.num_images <= limit]
        tokens = [measures[number].tokens for number in usable]
        num_images = [measures[number].num_images for number in usable]
        plan = plan_step(tokens, num_images, self.batch, self.world_size).ranks[self.rank]
        rows = [[[usable[place] for place in row] for row in batch] for batch in plan]
        return rows, set(range(self.rank, len(measures), self.world_size)).difference(usable)

    def _encode(self, position: int) -> Encoded | SampleRejected:
        try:
            return self.encoder.encode(self.mix.sample_at(position))
        except SampleRejected as error:
            return error

    def _too_many_images(self, item: Encoded) -> SampleRejected:
        limit = self.batch.images_per_micro_batch
        message = f"{item.num_tiles} image tiles, and batch.images_per_micro_batch is {limit}"
        return SampleRejected("too_many_images", f"sample {item.id!r}: {message}")


def _check_measure(expected: Measure, outcome: Encoded | SampleRejected) -> None:
    """A sample that is rejected only now leaves a gap; another length would break the plan."""
    found = Measure.of(outcome)
    if isinstance(outcome, Encoded) and found != expected:
        raise DataError(
            f"sample {outcome.id!r} has {found.tokens} tokens and {found.num_images} image tiles, and had "
            f"{expected.tokens} and {expected.num_images} when lengths were measured: its file, or that of a "
            "picture, has changed since. Start again; if that does not help, delete "
            f"{cache_dir() / 'lengths'}"
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

    def __getitem__(self, step: int) -> _Packed:
        return _Packed(self.loader.load(step))


class _Packed:
    """Tensors as arrays: a worker's tensors would each take a file descriptor of shared memory, of which a
    step of many micro-batches has too many for common limits (1024 files, 64 MB in containers)."""

    def __init__(self, data: StepData) -> None:
        self.data = replace(data, micro_batches=[])
        self.batches = [
            {key: _to_array(value) for key, value in vars(batch).items()} for batch in data.micro_batches
        ]

    def unpacked(self) -> StepData:
        batches = [
            Batch(**{key: _from_array(value) for key, value in values.items()}) for values in self.batches
        ]
        return replace(self.data, micro_batches=batches)


@dataclass(frozen=True)
class _Pinned:
    """Unpacks to pinned memory. In a thread the device has to be set anew, or every rank uses the first."""

    device: int

    def __call__(self, packed: _Packed) -> StepData:
        torch.accelerator.set_device_index(self.device)
        data = packed.unpacked()
        return replace(data, micro_batches=[batch.pin_memory() for batch in data.micro_batches])


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
