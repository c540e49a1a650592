"""A run folder as the report sees it: config.yaml, log.jsonl, and what there is of measures.

Only files are read: a report can be drawn on a machine that has the folder and nothing else of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prismcap.configs.errors import DataError

Record = dict[str, Any]


class ReportError(DataError):
    """A run folder that cannot be drawn; names the file, the line and what would be right."""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds. `log` is in order, one record per (stage, step); so is `evaluations`, which
    holds what was measured while training."""

    folder: Path
    config_text: str
    config: dict[str, Any]
    log: tuple[Record, ...]
    metrics: dict[str, Any] | None
    captions: tuple[Record, ...] | None
    evaluations: tuple[Record, ...] = ()

    @property
    def stages(self) -> list[str]:
        """Stages of the config in order; those that have not begun have no records."""
        return list(self.config["stages"])

    def records(self, stage: str) -> list[Record]:
        return [record for record in self.log if record["stage"] == stage]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder. Raises ReportError when it is none, or when a file in it is damaged."""
    if not folder.is_dir():
        raise ReportError(
            f"{folder}: no such run folder. Expected checkpoints/<name> as written by prismcap train."
        )
    config_text = text_of(folder / "config.yaml", "the resolved config that prismcap train writes first")
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError as error:
        raise ReportError(f"{folder / 'config.yaml'}: not valid YAML: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("stages"), dict):
        raise ReportError(f"{folder / 'config.yaml'}: expected a mapping with a key 'stages'")
    return RunFiles(
        folder=folder,
        config_text=config_text,
        config=config,
        log=_read_log(folder / "log.jsonl"),
        metrics=_read_metrics(folder / "metrics.json"),
        captions=_read_captions(folder / "captions.jsonl"),
        evaluations=_read_evaluations(folder / "evaluations.jsonl"),
    )


def text_of(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportError(f"{path}: missing ({what}). Is {path.parent} a run folder?") from None
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 text: {error}") from error


def read_lines(path: Path, what: str) -> list[Record]:
    """The JSON objects of a file, one per line. A last line cut off by a kill is left out."""
    lines = text_of(path, what).split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline at its end: the process died while writing it
                break
            raise ReportError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ReportError(f"{path}, line {number}: expected an object, found {line[:80]!r}")
        records.append(record)
    return records


def require_keys(records: Iterable[Record], keys: Sequence[str], where: str, remedy: str = "") -> None:
    """Raises ReportError naming the first record without one of the keys. where: file and word for a row."""
    for number, record in enumerate(records, start=1):
        absent = [key for key in keys if key not in record]
        if absent:
            raise ReportError(f"{where} {number}: key {absent[0]!r} is missing{remedy}")


def _read_log(path: Path) -> tuple[Record, ...]:
    """Step records; where a resumed run wrote a step again, the later record stands."""
    by_step: dict[tuple[str, int], Record] = {}
    for record in read_lines(path, "one record per training step; has training begun?"):
        if "step" not in record or "loss" not in record:
            continue  # an event such as the start of a stage, not a step
        if not isinstance(record.get("stage"), str) or not isinstance(record["step"], int):
            raise ReportError(f"{path}: a record needs 'stage' (text) and 'step' (whole number): {record}")
        by_step.pop((record["stage"], record["step"]), None)
        by_step[record["stage"], record["step"]] = record
    if not by_step:
        raise ReportError(f"{path}: no step was logged yet. Train first, then draw the report.")
    return tuple(by_step.values())


def _read_evaluations(path: Path) -> tuple[Record, ...]:
    """Records of evaluations while training; none where no stage has `evaluate`."""
    if not path.exists():
        return ()
    records = read_lines(path, "written by prismcap train")
    require_keys(records, ("stage", "step", "figures", "best"), f"{path}, line")
    return tuple(records)


def _read_metrics(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    return read_object(path, "written by prismcap evaluate", "Run prismcap evaluate again.")


def read_object(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ReportError saying `what` is missing or how to mend it."""
    try:
        value = json.loads(text_of(path, what))
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not valid JSON: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: expected an object, found {type(value).__name__}")
    return value


CAPTION_KEYS = ("split", "control", "kind", "id", "truth", "generated", "right")


def _read_captions(path: Path) -> tuple[Record, ...] | None:
    if not path.exists():
        return None
    records = read_lines(path, "written by prismcap evaluate")
    require_keys(records, CAPTION_KEYS, f"{path}, line")
    return tuple(records)


def series(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of one key; records without it are left out."""
    points = [(record["step"], record[key]) for record in records if is_number(record.get(key))]
    return [step for step, _ in points], [float(value) for _, value in points]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
