"""Pictures of one colour, TSV files of a few rows, and a way to build any benchmark."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component
from prismcap.data.scenes.objects import objects_root
from prismcap.evaluate.benchmarks._contract import Benchmark, BenchmarkContext

Row = Mapping[str, str]


@pytest.fixture
def picture() -> Callable[..., str]:
    """A PNG of one level of grey as base64; longer than a pointer can be."""

    def make(level: int, side: int = 5) -> str:
        stream = io.BytesIO()
        Image.new("RGB", (side, side), (level, level, level)).save(stream, format="PNG")
        return base64.b64encode(stream.getvalue()).decode()

    return make


@pytest.fixture
def tsv_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as Python's csv module does; the columns are those of all rows."""

    def write(rows: Sequence[Row], name: str = "rows.tsv") -> Path:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def build() -> Callable[..., Benchmark]:
    def make(name: str, max_image_pixels: int = 10_000, seed: int = 4, **options: Any) -> Benchmark:
        module, checked = component_options("benchmark", Component(name=name, **options))
        benchmark: Benchmark = module.build(checked, BenchmarkContext(name, seed, max_image_pixels))
        return benchmark

    return make


@pytest.fixture
def drawings() -> None:
    if not (objects_root() / "tuxpaint" / "index.json").is_file():
        pytest.skip("no Tux Paint drawings: run `prismcap fetch stamps`")
