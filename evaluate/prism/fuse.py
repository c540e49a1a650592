"""Several perceivers' descriptions of each question as one, for the `file` perceiver to hand on.

Source of the idea: Prism, arXiv 2406.14544; here every part says whose it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError, DataError, nearest
from prismcap.configs.files import replace_text
from prismcap.evaluate.prism.finished import FinishedRun, read_finished


@dataclass(frozen=True)
class Fused:
    """What was written, and what could not be: rows {benchmark, id, source, why} of descriptions that are
    not in the file. sources: names in the order of their parts."""

    num_written: int
    sources: tuple[str, ...]
    missing: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class _Source:
    """One perceiver told one thing in one run. texts: (benchmark, id) -> description, None if it failed."""

    perceiver: str
    instruction: str
    run: str
    texts: dict[tuple[str, str], str | None]


def fuse(folders: Sequence[Path], out: Path, perceivers: Collection[str] = ()) -> Fused:
    """Write {"benchmark", "id", "text"} for every question of any of the scored runs, its descriptions joined
    as "Description 1 (name): …", in the order of the folders and of their cells.

    perceivers: only these (none: all, a reference among them). A number stands for the same source in every
    row. A description that failed or is not there is left out of its row and listed in `missing`; a question
    without any has no row. Raises as finished.read_finished; ConfigError for a perceiver of no run; DataError
    where there is nothing to fuse or the file cannot be written.
    """
    runs = read_finished(folders, at_least=1)
    sources = [source for run in runs for source in _sources(run)]
    known = {source.perceiver for source in sources}
    for name in perceivers:
        if name not in known:
            raise ConfigError(f"no run has descriptions of a perceiver {name!r}.{nearest(name, known)}")
    sources = [source for source in sources if not perceivers or source.perceiver in perceivers]
    if len(sources) < 2:
        raise DataError(
            f"{', '.join(str(folder) for folder in folders)}: {len(sources)} perceiver with descriptions; "
            "fusing takes two"
        )
    names = _names(sources)
    questions = dict.fromkeys(question for source in sources for question in source.texts)
    lines: list[str] = []
    missing: list[dict[str, str]] = []
    for benchmark, question in questions:
        parts = []
        for number, (source, name) in enumerate(zip(sources, names, strict=True), start=1):
            text = source.texts.get((benchmark, question))
            if text is not None:
                parts.append(f"Description {number} ({name}): {text}")
                continue
            why = "failed" if (benchmark, question) in source.texts else "not described in this run"
            missing.append({"benchmark": benchmark, "id": question, "source": name, "why": why})
        if parts:
            row = {"benchmark": benchmark, "id": question, "text": "\n\n".join(parts)}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"{', '.join(str(folder) for folder in folders)}: every description failed")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, "".join(lines))
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}; name another file") from error
    return Fused(len(lines), tuple(names), tuple(missing))


def _sources(run: FinishedRun) -> list[_Source]:
    found: dict[tuple[str, str], dict[tuple[str, str], str | None]] = {}
    for cell, rows in run.cells.items():
        if cell.is_blind or cell.is_end_to_end:
            continue
        texts = found.setdefault((cell.perceiver, cell.instruction), {})
        for question, row in rows.items():
            text = _text(row["description"])
            # the same description stands in the cells of all reasoners
            if text is not None or (cell.benchmark, question) not in texts:
                texts[cell.benchmark, question] = text
    return [
        _Source(perceiver, instruction, run.label, texts) for (perceiver, instruction), texts in found.items()
    ]


def _text(description: Any) -> str | None:
    return description.strip() or None if isinstance(description, str) else None


def _names(sources: Sequence[_Source]) -> list[str]:
    """The perceiver; with its instruction or its run where there are several of that name."""
    counts = Counter(source.perceiver for source in sources)
    told = Counter((source.perceiver, source.run) for source in sources)
    names = []
    for source in sources:
        name = source.perceiver
        if counts[name] > told[name, source.run]:
            name = f"{source.run}/{name}"
        if told[source.perceiver, source.run] > 1:
            name = f"{name}, {source.instruction}"
        names.append(name)
    return names
