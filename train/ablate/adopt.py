"""A run goes on with what another has trained: its finished stages, and the records of their steps."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from prismcap.configs.files import replace_text, sync_folder
from prismcap.train.checkpoint import FINAL, UNFINISHED, DamagedError, discard, remove_unfinished, verify
from prismcap.train.sinks.jsonl import EVALUATIONS
from prismcap.train.sinks.jsonl import NAME as LOG_NAME


def is_whole(final: Path) -> bool:
    """Whether the last checkpoint of a stage is there, every file as it was written."""
    if not final.is_dir():
        return False
    try:
        verify(final)
    except DamagedError:
        return False
    return True


def adopt(source: Path, target: Path, stages: Sequence[str]) -> None:
    """Give the run folder `target` the finished `stages` of the run folder `source`, and their records
    in log.jsonl and evaluations.jsonl.

    By hard links where the file system has them, else copies; each appears whole or not at all, and what
    `target` has whole stays. Raises DamagedError where the source is not what was written, OSError.
    """
    target.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target)
    needed = [stage for stage in stages if not is_whole(target / stage / FINAL)]
    if not needed:
        return
    # first: a stage that is there stands for its records being there too
    for name in (LOG_NAME, EVALUATIONS):
        if (source / name).is_file():
            _adopt_records(source / name, target / name, stages)
    for stage in needed:
        aside = target / f"{UNFINISHED}{stage}"
        shutil.copytree(source / stage / FINAL, aside, copy_function=_link_or_copy)
        verify(aside)
        final = target / stage / FINAL
        final.parent.mkdir(exist_ok=True)
        discard(final)  # damaged
        os.rename(aside, final)
        sync_folder(final.parent)


def _link_or_copy(source: str, target: str) -> None:
    """Nothing writes into the files of a checkpoint any more, so that two names for one do no harm."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _adopt_records(source: Path, target: Path, stages: Sequence[str]) -> None:
    """The source's records of these stages, then those that the target has of others."""
    theirs = [line for line in _lines(source) if _stage_of(line) in stages]
    own = [line for line in _lines(target) if _stage_of(line) not in (*stages, None)]
    replace_text(target, "".join(f"{line}\n" for line in [*theirs, *own]))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _stage_of(line: str) -> str | None:
    """None for a line that was cut short by a kill."""
    try:
        return str(json.loads(line)["stage"])
    except (ValueError, KeyError, TypeError):
        return None
