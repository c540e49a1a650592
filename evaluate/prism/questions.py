"""The questions of a run's benchmarks, and the fingerprints of their pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prismcap.configs.errors import ConfigError, DataError, nearest
from prismcap.configs.registry import component_options
from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.benchmarks._contract import Benchmark, BenchmarkContext, Question

if TYPE_CHECKING:
    from prismcap.data.schema import ImageRef


class Questions:
    """The first questions of one benchmark, read once; pictures stay undecoded.

    Raises DataError for a benchmark without questions, or with an id twice: rows are found by id.
    """

    def __init__(self, name: str, benchmark: Benchmark, limit: int | None) -> None:
        self.name = name
        self.checksum = benchmark.checksum
        self.num_questions = len(benchmark)
        if self.num_questions == 0:
            raise DataError(f"benchmarks.{name}: there is no question in it")
        most = self.num_questions if limit is None else min(limit, self.num_questions)
        self.all: tuple[Question, ...] = tuple(benchmark[position] for position in range(most))
        self.by_id = {question.id: question for question in self.all}
        if len(self.by_id) < len(self.all):
            twice = Counter(question.id for question in self.all).most_common(1)[0][0]
            raise DataError(f"benchmarks.{name}: two questions have the id {twice!r}; ids must be unique")
        self._fingerprints: dict[ImageRef, str] = {}

    def first(self, limit: int | None) -> Sequence[Question]:
        return self.all if limit is None else self.all[:limit]

    @property
    def categories(self) -> list[str]:
        """Every column that groups questions, in the order in which they occur."""
        return list(dict.fromkeys(column for question in self.all for column in question.categories))

    def fingerprint(self, image: ImageRef) -> str:
        """Of one picture, computed once. A picture that cannot be read has one too: the perceiver says why it
        fails, and the key changes when it has been mended."""
        found = self._fingerprints.get(image)
        if found is None:
            try:
                found = image.fingerprint()
            except DataError as error:
                found = f"unreadable: {error}"
            self._fingerprints[image] = found
        return found


def build_benchmark(config: PrismConfig, name: str) -> Benchmark:
    """A benchmark of the config. Raises ConfigError for another name, and what its module raises."""
    if name not in config.benchmarks:
        raise ConfigError(f"benchmarks: no {name!r} in this config.{nearest(name, config.benchmarks)}")
    module, options = component_options("benchmark", config.benchmarks[name], f"benchmarks.{name}")
    built: Benchmark = module.build(
        options, BenchmarkContext(name, config.seed, config.local.max_image_pixels)
    )
    return built


def load_questions(config: PrismConfig, name: str, limit: int | None) -> Questions:
    """The first questions of a benchmark of the config. Raises ConfigError or DataError."""
    return Questions(name, build_benchmark(config, name), limit)
