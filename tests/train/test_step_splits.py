"""How a step is split into rows and micro-batches changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from plain_steps import equal, run_plain

SPLITS = {
    "row_by_row": ("stages.instruct.batch.rows_per_micro_batch=1",),
    "two_rows": ("stages.instruct.batch.rows_per_micro_batch=2",),
    "one_batch": (
        "stages.instruct.batch.rows_per_micro_batch=64",
        "stages.instruct.batch.images_per_micro_batch=64",
    ),
    "long_rows": ("stages.instruct.batch.row_tokens=512",),
}


@pytest.fixture(scope="module")
def plain(world: Path) -> Callable[..., Any]:
    return cache(partial(run_plain, world))


@pytest.mark.parametrize("split", SPLITS)
def test_how_a_step_is_split_changes_nothing(plain: Any, split: str) -> None:
    assert equal(plain(*SPLITS[split]), plain())


def test_packing_changes_nothing(world: Path, plain: Any) -> None:
    assert equal(run_plain(world, *SPLITS["two_rows"], "stages.instruct.batch.packing=false"), plain())


def test_samples_that_see_one_another_are_not_equal(world: Path, plain: Any) -> None:
    """That the comparison above can fail: the same rows, one segment each."""
    from prismcap.data import loader

    make_batches = loader.make_batches

    def merged(*arguments: Any) -> Any:
        batches = make_batches(*arguments)
        for batch in batches:
            batch.segment_ids = (batch.segment_ids > 0).long()
        return batches

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loader, "make_batches", merged)
        assert not equal(run_plain(world), plain())
