"""The paper's filtered subsets (Prism, arXiv 2406.14544): without the questions that LLMs answer blind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.files import replace_text
from prismcap.configs.schema.prism import BLIND
from prismcap.data.schema import DataError


@dataclass(frozen=True)
class Subset:
    """What an ids file says (see SelectedOptions.ids_file). checksum: of the benchmark that was asked."""

    benchmark: str
    checksum: str
    reasoners: tuple[str, ...]
    rule: str
    ids: tuple[str, ...]


def filtered_subset(
    rows: Iterable[Mapping[str, Any]],
    benchmark: str,
    checksum: str,
    fewer_than: int = 1,
    reasoners: Sequence[str] | None = None,
) -> Subset:
    """The questions that fewer than so many of the blind reasoners answer; 1: that none answers.

    rows: of items.jsonl; those of other benchmarks and of cells with a description are passed over. Of
    rotations the circle is kept or dropped, and answered where all of them are. reasoners: None for all.
    Raises DataError: no blind rows, a question that one of the reasoners was not asked or failed at, nothing
    left.
    """
    right: dict[str, dict[tuple[str, str], bool]] = {}
    units: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["benchmark"] != benchmark or row.get("perceiver", BLIND) != BLIND:
            continue
        if reasoners is not None and row["reasoner"] not in reasoners:
            continue
        if row.get("status", "ok") != "ok":
            raise DataError(
                f"question {row['id']!r} of {benchmark!r}: the request to {row['reasoner']!r} failed, so "
                "whether it answers blind is not known: run the failed requests again"
            )
        units.setdefault(row.get("circle") or row["id"], {})[row["id"]] = None
        flags = right.setdefault(row["reasoner"], {})
        flags[row.get("circle") or row["id"], row["id"]] = bool(row["right"])
    asked = tuple(reasoners) if reasoners is not None else tuple(sorted(right))
    _check(benchmark, asked, right, units, fewer_than)
    kept = []
    for unit, ids in units.items():
        answered = sum(all(right[name][unit, one] for one in ids) for name in asked)
        if answered < fewer_than:
            kept.append(unit)
    if not kept:
        raise DataError(
            f"{benchmark!r}: the blind reasoners {', '.join(asked)} answer every question; none is left"
        )
    rule = f"answered blind by fewer than {fewer_than} of {len(asked)} reasoners"
    return Subset(benchmark, checksum, asked, rule, tuple(kept))


def _check(
    benchmark: str,
    asked: tuple[str, ...],
    right: Mapping[str, Mapping[tuple[str, str], bool]],
    units: Mapping[str, Mapping[str, None]],
    fewer_than: int,
) -> None:
    if not 1 <= fewer_than <= max(1, len(asked)):
        raise DataError(f"fewer_than: {fewer_than}: expected 1 to the number of reasoners, {len(asked)}")
    for name in asked:
        if name not in right:
            raise DataError(
                f"no blind answers of {name!r} to {benchmark!r}; there are those of {sorted(right)}"
            )
        for unit, ids in units.items():
            for one in ids:
                if (unit, one) not in right[name]:
                    raise DataError(
                        f"{name!r} was not asked question {one!r} of {benchmark!r} blind, as others were"
                    )
    if not asked:
        raise DataError(f"no blind rows of {benchmark!r}: run its cells with the perceiver {BLIND!r} first")


def write_ids(path: Path, subset: Subset) -> None:
    """The file that `ids_file` names, at once. Raises OSError."""
    replace_text(path, json.dumps(asdict(subset), indent=1, ensure_ascii=False) + "\n")
