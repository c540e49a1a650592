"""A file far larger than memory may be: one pass, and no more than a row of it held."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MEGABYTE = 1 << 20
NUM_ROWS = 150
# the same again in a fresh process, whose peak is not that of earlier tests
MEASURE = """
import resource, sys
from prismcap.evaluate.benchmarks import tsv
from prismcap.evaluate.benchmarks._contract import BenchmarkContext
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
benchmark = tsv.build(tsv.Options(path=sys.argv[1]), BenchmarkContext("large", 0, 10**8))
questions = [benchmark[i] for i in range(len(benchmark))]
loaded = [question.images[0].load().size for question in questions[::50]]
print(len(questions), loaded[0][0], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB: pictures of 2 MB of base64 each, every third a pointer to the one before."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 750, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="PNG", compress_level=0)
    picture = base64.b64encode(stream.getvalue())
    path = tmp_path_factory.mktemp("large") / "large.tsv"
    with path.open("wb") as file:
        file.write(b"index\tquestion\tA\tB\tanswer\timage\n")
        for row in range(NUM_ROWS):
            shown = str(row - 1).encode() if row % 3 == 2 else picture
            file.write(b"\t".join((str(row).encode(), b"Which?", b"x", b"y", b"A", shown)) + b"\n")
    return path


@pytest.mark.slow
def test_memory_stays_far_below_the_file(large: Path) -> None:
    size = large.stat().st_size
    assert size > 200 * MEGABYTE
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large)], capture_output=True, text=True, check=True
    )
    number, width, grown_mb = (int(text) for text in done.stdout.split())
    assert (number, width) == (NUM_ROWS, 750)
    assert grown_mb < 60, "a few rows, and one decoded picture"
