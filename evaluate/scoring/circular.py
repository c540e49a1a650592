"""Circular evaluation (MMBench): a question counts as right only when all rotations of its options are."""

from __future__ import annotations

from collections.abc import Sequence


def circles_right(circles: Sequence[str], rights: Sequence[bool]) -> dict[str, bool]:
    """Circle -> whether all of its rotations are right, in order of first sight.

    circles: of each question, "" where it belongs to none (left out). Raises ValueError for other lengths.
    """
    verdicts: dict[str, bool] = {}
    for circle, right in zip(circles, rights, strict=True):
        if circle:
            verdicts[circle] = verdicts.get(circle, True) and right
    return verdicts
