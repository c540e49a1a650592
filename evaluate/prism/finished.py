"""Finished Prism runs as other commands read them: their results' head and the items of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError, DataError
from prismcap.evaluate.prism.cells import Cell, Row, by_cell

_SCORE = "write it with `prismcap prism run CONFIG`: its stage score does"
_CELL = ("benchmark", "perceiver", "instruction", "reasoner")
_KEYS = ("id", *_CELL, "cluster", "description", "status", "right")


@dataclass(frozen=True)
class FinishedRun:
    """label: unique among the runs read together. checksums: by benchmark, of questions and answers."""

    label: str
    folder: Path
    about: dict[str, Any]
    checksums: dict[str, str]
    cells: dict[Cell, dict[str, Row]]


def read_finished(folders: Sequence[Path], at_least: int) -> list[FinishedRun]:
    """Read run folders that are to be seen together, in their order, labelled by folder name where that is
    unique.

    Raises ConfigError for fewer folders than `at_least` or one given twice; DataError, naming file and row,
    for a folder that is no scored run, a damaged file, and a benchmark whose questions differ between runs.
    """
    if len({folder.resolve() for folder in folders}) != len(folders) or len(folders) < at_least:
        given = ", ".join(str(folder) for folder in folders) or "none"
        raise ConfigError(f"give at least {at_least} run folders, each once; got {given}")
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    runs = [_read(folder, label) for folder, label in zip(folders, labels, strict=True)]
    first: dict[str, FinishedRun] = {}
    for run in runs:
        for benchmark, checksum in run.checksums.items():
            other = first.setdefault(benchmark, run)
            if other.checksums[benchmark] != checksum:
                raise DataError(
                    f"{run.folder / 'results.json'}: benchmark {benchmark!r} has the checksum {checksum}, in "
                    f"{other.folder / 'results.json'} {other.checksums[benchmark]}: the questions or answers "
                    "differ, so nothing can be compared; run both on one version of its files"
                )
    return runs


def _read(folder: Path, label: str) -> FinishedRun:
    path = folder / "results.json"
    try:
        results = json.loads(path.read_bytes())
        checksums = {name: str(values["checksum"]) for name, values in results["benchmarks"].items()}
        about = dict(results["about"])
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {_SCORE}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); {_SCORE}") from error
    cells: dict[Cell, dict[str, Row]] = {cell: dict(rows) for cell, rows in by_cell(_rows(folder)).items()}
    unknown = [cell.benchmark for cell in cells if cell.benchmark not in checksums]
    if unknown:
        raise DataError(f"{path}: no benchmark {unknown[0]!r}, of which items.jsonl has rows; {_SCORE}")
    return FinishedRun(label, folder, about, checksums, cells)


def _rows(folder: Path) -> Iterator[Row]:
    path = folder / "items.jsonl"
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, row {number}: not JSON ({error}); {_SCORE}") from error
                absent = [key for key in _KEYS if not isinstance(row, dict) or key not in row]
                if absent:
                    raise DataError(f"{path}, row {number}: key {absent[0]!r} is missing; {_SCORE}")
                yield row
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; {_SCORE}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
