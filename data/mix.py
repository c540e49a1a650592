"""The data mix of a stage: several sources, each repeated, shuffled anew every epoch; or of each so many
samples in every step.

The order is computed, not stored: position p of the run is sample `permute(p)` of its epoch, so any
position can be reached at once after a resume, on every rank and worker, without a list of indices.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from prismcap.configs.registry import component_options
from prismcap.configs.schema.data import DataConfig
from prismcap.data.schema import DataError, Sample
from prismcap.data.sources._contract import Source, SourceContext

_ROUNDS = 6


def permute(index: int, size: int, key: bytes) -> int:
    """Where `index` of 0 .. size-1 goes in the permutation that `key` names.

    A Feistel network over the next even number of bits; numbers that fall outside of the range walk
    on (Black and Rogaway 2002, cycle walking), at most a few steps as the range is at least a quarter.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            digest = hashlib.blake2b(right.to_bytes(8, "little"), key=key, salt=bytes([turn]), digest_size=8)
            left, right = right, left ^ (int.from_bytes(digest.digest(), "little") & mask)
        index = (left << half) | right
        if index < size:
            return index


class Order(Protocol):
    """In which order an epoch's samples come."""

    def place(self, epoch: int, offset: int) -> int:
        """Which of the epoch's samples (0 .. len(mix)-1, source after source) comes at `offset` of it."""


@dataclass(frozen=True)
class Mix:
    """sources: (source, times per epoch). An epoch is every sample, that many times, in a seeded order.

    order: another one than the plain shuffle (data/grouping.py).
    per_step: so many samples of each source in every step, in place of epochs. Each source is then a sequence
    without an end, shuffled anew every time that it begins again; source s gives step k its places
    k * per_step[s] … of that sequence, so a step is still a function of seed and step number alone.
    """

    sources: Sequence[tuple[Source, int]]
    seed: int
    order: Order | None = None
    per_step: tuple[int, ...] | None = None
    _ends: tuple[int, ...] = field(init=False, repr=False)
    _pattern: tuple[tuple[int, int], ...] = field(init=False, repr=False)  # of a step: source, and its turn

    def __post_init__(self) -> None:
        ends = tuple(accumulate(len(source) * repeat for source, repeat in self.sources))
        object.__setattr__(self, "_ends", ends)
        if not ends or ends[-1] == 0:
            raise DataError("the data mix has no samples")
        counts = self.per_step or ()
        assert not counts or (self.order is None and len(counts) == len(self.sources))
        # evenly spread over the step, so that its beginning, which people look at, shows every source
        spread = sorted(
            ((i + 0.5) / count, number, i) for number, count in enumerate(counts) for i in range(count)
        )
        object.__setattr__(self, "_pattern", tuple((number, i) for _, number, i in spread))

    def __len__(self) -> int:
        """Samples of one epoch, repeats counted; with per_step, of all sources."""
        return self._ends[-1]

    @property
    def num_until_all(self) -> int:
        """So many positions from the start of the run hold every sample."""
        if self.per_step is None:
            return len(self)
        steps = [
            -(-len(source) // count) for (source, _), count in zip(self.sources, self.per_step, strict=True)
        ]
        return max(steps) * sum(self.per_step)

    def locate(self, position: int) -> tuple[int, int]:
        """(source, index in the source) at a position of the run; epochs follow one another."""
        if self.per_step is not None:
            return self._locate_in_step(position, self.per_step)
        epoch, offset = divmod(position, len(self))
        if self.order is not None:
            place = self.order.place(epoch, offset)
        else:
            # signed: configs may well say seed: -1
            place = permute(offset, len(self), f"{self.seed}/{epoch}".encode())
        number = bisect_right(self._ends, place)
        before = self._ends[number - 1] if number else 0
        return number, (place - before) % len(self.sources[number][0])

    def _locate_in_step(self, position: int, per_step: tuple[int, ...]) -> tuple[int, int]:
        step, offset = divmod(position, len(self._pattern))
        number, turn = self._pattern[offset]
        size = len(self.sources[number][0])
        times, place = divmod(step * per_step[number] + turn, size)
        return number, permute(place, size, f"{self.seed}/{number}/{times}".encode())

    def sample_at(self, position: int) -> Sample:
        """The sample at a position of the run. Raises SampleRejected when it cannot be used."""
        number, index = self.locate(position)
        return self.sources[number][0][index]


def build_mix(config: DataConfig, context: SourceContext, where: str = "") -> Mix:
    """The sources of `data.mix`. `where` (file and key path of the data section) goes into errors.

    Raises ConfigError for wrong options, DataError for data that cannot be opened or is empty.
    """
    sources: list[tuple[Source, int]] = []
    for i, item in enumerate(config.mix):
        at = f"{where}.mix.{i}" if where else f"mix.{i}"
        module, options = component_options("source", item, at)
        source: Source = module.build(options, context)
        if len(source) == 0:
            raise DataError(f"{at}: source {item.name!r} has no samples")
        sources.append((source, item.repeat))
    return Mix(tuple(sources), context.seed, per_step=config.per_step)
