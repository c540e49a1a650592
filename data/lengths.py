"""How long every sample of a mix is, known before training: the length index.

A sample is measured by encoding its text; pictures stay closed, but for the headers of files with anyres.
For sources that read files the lengths are kept in the cache folder, under a hash of all that decides them;
what is generated is measured anew.
A kept file is replaced whole, so any number of processes may read and write at once: of two that
measured the same samples at the same time either file is right.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from prismcap.configs.cache import cache_dir
from prismcap.configs.files import replace_file
from prismcap.data import anyres, encode, image, schema, tokenize
from prismcap.data.encode import Encoder
from prismcap.data.mix import Mix
from prismcap.data.schema import Encoded, SampleRejected
from prismcap.data.sources import _conversations, _rows, _turns
from prismcap.data.sources._contract import FileSource
from prismcap.data.workers import read_ahead

log = logging.getLogger(__name__)

# code that decides lengths, whatever the source and the template
CODE = (anyres, encode, image, schema, tokenize, _conversations, _rows, _turns)

_UNKNOWN = -1
_CHUNK_SAMPLES = 256
_INLINE_SAMPLES = 1024  # fewer are measured before a worker would have started


@dataclass(frozen=True)
class Measure:
    """tokens of an encoded sample, and the tiles of its different pictures (one each, but for anyres); both 0
    for a sample that is rejected."""

    tokens: int
    num_images: int

    @classmethod
    def of(cls, outcome: Encoded | SampleRejected) -> Measure:
        if isinstance(outcome, SampleRejected):
            return cls(0, 0)
        return cls(len(outcome), outcome.num_tiles)


@dataclass(frozen=True, eq=False)
class LengthIndex:
    """tables[s]: int32 [samples of source s, 2], tokens and pictures; -1 where not measured."""

    tables: tuple[np.ndarray, ...]

    def at(self, source: int, index: int) -> Measure:
        tokens, num_images = self.tables[source][index]
        assert tokens != _UNKNOWN, f"sample {index} of source {source} was not measured"
        return Measure(int(tokens), int(num_images))

    def of_epoch(self, mix: Mix) -> tuple[np.ndarray, np.ndarray]:
        """tokens and pictures of each sample of an epoch, int32 [len(mix)], as Mix numbers them."""
        repeats = [repeat for _, repeat in mix.sources]
        parts = [np.tile(table, (times, 1)) for table, times in zip(self.tables, repeats, strict=True)]
        tokens, num_images = np.concatenate(parts).T
        return tokens, num_images

    def missing(self, mix: Mix, num_positions: int) -> np.ndarray:
        """int64 [n, 2]: source and index of what the first positions of the run need and is not measured."""
        if num_positions >= mix.num_until_all:
            found = [
                np.stack([np.full(len(at), source), at], axis=1)
                for source, table in enumerate(self.tables)
                for at in [np.flatnonzero(table[:, 0] == _UNKNOWN)]
            ]
            return np.concatenate(found).astype(np.int64)
        needed = sorted({mix.locate(position) for position in range(num_positions)})
        lacking = [(source, at) for source, at in needed if self.tables[source][at, 0] == _UNKNOWN]
        return np.array(lacking, dtype=np.int64).reshape(-1, 2)

    def fill(self, places: np.ndarray, values: np.ndarray) -> None:
        """Enter what `measure` found at these places."""
        for source, table in enumerate(self.tables):
            own = places[:, 0] == source
            table[places[own, 1]] = values[own]


def measure(mix: Mix, encoder: Encoder, places: np.ndarray, num_workers: int = 0) -> np.ndarray:
    """int32 [n, 2]: tokens and pictures of the samples at `places`, in their order."""
    chunks = _Chunks(mix, encoder, places)
    workers = num_workers if len(places) > _INLINE_SAMPLES else 0
    parts = list(read_ahead(chunks, workers, batch_size=None, sampler=range(len(chunks))))
    return np.concatenate([np.zeros((0, 2), dtype=np.int32), *parts])


class _Chunks(Dataset[Any]):
    """Measures of a few hundred samples at a time, for workers."""

    def __init__(self, mix: Mix, encoder: Encoder, places: np.ndarray) -> None:
        self.mix, self.encoder, self.places = mix, encoder, places

    def __len__(self) -> int:
        return -(-len(self.places) // _CHUNK_SAMPLES)

    def __getitem__(self, number: int) -> np.ndarray:
        chunk = self.places[number * _CHUNK_SAMPLES : (number + 1) * _CHUNK_SAMPLES]
        found = (self._measure(int(source), int(index)) for source, index in chunk)
        return np.array([(item.tokens, item.num_images) for item in found], dtype=np.int32)

    def _measure(self, source: int, index: int) -> Measure:
        try:
            return Measure.of(self.encoder.encode(self.mix.sources[source][0][index]))
        except SampleRejected as error:
            return Measure.of(error)


def read_index(mix: Mix, encoder: Encoder) -> LengthIndex:
    """What is kept of the mix's sources; the rest is unknown. A damaged file counts as absent."""
    tables: list[np.ndarray] = []
    for (source, _), path in zip(mix.sources, _paths(mix, encoder), strict=True):
        table = np.full((len(source), 2), _UNKNOWN, dtype=np.int32)
        if path is not None and path.exists():
            try:
                kept = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                log.warning("%s: damaged (%s): its samples are measured anew", path, error)
            else:
                if kept.shape == table.shape and kept.dtype == table.dtype:
                    table = kept
        tables.append(table)
    return LengthIndex(tuple(tables))


def keep_index(index: LengthIndex, mix: Mix, encoder: Encoder) -> None:
    """Put the index into the cache folder. When that cannot be written, says so and goes on."""
    for table, path in zip(index.tables, _paths(mix, encoder), strict=True):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, partial(np.save, arr=table, allow_pickle=False))
        except OSError as error:
            log.warning("%s: the lengths of the samples are not kept for later runs: %s", path, error)


def _paths(mix: Mix, encoder: Encoder) -> Iterator[Path | None]:
    for source, _ in mix.sources:
        if isinstance(source, FileSource):
            yield cache_dir() / "lengths" / f"{_key(source, encoder)}.npy"
        else:
            yield None


def _key(source: FileSource, encoder: Encoder) -> str:
    """A hash of all that decides lengths: the source's files, template, tokenizer, limits, and the code."""
    digest = hashlib.blake2b(digest_size=16)
    tokenizer = encoder.tokenizer
    texts = [
        source.fingerprint(),
        type(encoder).__name__,
        repr(encoder.template),
        repr(encoder.token_spec),
        f"{encoder.max_tokens} {encoder.max_text_tokens}",
        tokenizer.backend_tokenizer.to_str(),
        repr(tokenizer.all_special_tokens),
        *(inspect.getsource(module) for module in CODE),
        *(
            inspect.getsource(sys.modules[type(part).__module__])
            for part in (source, encoder, encoder.template)
        ),
    ]
    for text in texts:
        digest.update(hashlib.blake2b(text.encode()).digest())
    return digest.hexdigest()
