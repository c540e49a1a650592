"""What a data source is: a sequence of samples that can be read in any order.

A source is one file of this folder: `class Options(Section)` with its keys in the config, and
`build(options, context) -> Source`. Nothing is read but what the length needs until a sample is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from prismcap.data.schema import Sample


@dataclass(frozen=True)
class SourceContext:
    """What every source of a stage shares. seed: the run's. max_image_pixels: larger is not decoded."""

    seed: int = 0
    max_image_pixels: int = 100_000_000


class Source(Protocol):
    """Samples 0 .. len-1, each a pure function of its index. Pickled or forked into loader workers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """The sample. Raises SampleRejected (counted, skipped) when this one cannot be used."""


@runtime_checkable
class FileSource(Source, Protocol):
    """A source that reads its samples from files. What is measured of it once is kept for later runs."""

    def fingerprint(self) -> str:
        """Another text whenever the files, or what is taken from them, are other ones."""
