"""The cells of a Prism run: who describes the pictures, told what, and who answers from the description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.prism import BLIND, END_TO_END, CellsConfig, PrismConfig

NO_INSTRUCTION = "-"  # of blind and end-to-end cells: the question's own prompt is all that is said


@dataclass(frozen=True, order=True)
class Cell:
    """One way to answer one benchmark; all four are names of the config, or the reserved words."""

    benchmark: str
    perceiver: str
    instruction: str
    reasoner: str

    @property
    def is_blind(self) -> bool:
        """The reasoner answers without a description."""
        return self.perceiver == BLIND

    @property
    def is_end_to_end(self) -> bool:
        """The perceiver answers the question itself."""
        return self.reasoner == END_TO_END

    def as_dict(self) -> dict[str, str]:
        """The four names, as rows of items.jsonl and results.json carry them."""
        return asdict(self)


def cell_of(row: Mapping[str, Any]) -> Cell:
    """The cell that a row of items.jsonl, attribution.jsonl or results.json belongs to."""
    return Cell(row["benchmark"], row["perceiver"], row["instruction"], row["reasoner"])


Row = Mapping[str, Any]


def by_cell(items: Iterable[Row]) -> dict[Cell, dict[str, Row]]:
    """Rows of items.jsonl by cell and question, in their order. Raises DataError for a row that repeats."""
    grouped: dict[Cell, dict[str, Row]] = {}
    for row in items:
        cell = cell_of(row)
        rows = grouped.setdefault(cell, {})
        if row["id"] in rows:
            raise DataError(
                f"items: question {row['id']!r} of {' / '.join(cell.as_dict().values())} occurs twice; "
                "score the run again"
            )
        rows[row["id"]] = row
    return grouped


def cluster_of(row: Row) -> str:
    """What an item is resampled with: its pictures; by itself where the benchmark names none."""
    return str(row["cluster"]) or f"\0{row['id']}"


def expand_cells(config: PrismConfig) -> dict[Cell, int | None]:
    """Every cell of the config once, in the config's order, with its limit (None: all questions).

    A list of `cells` that is empty means all the file's names, without `blind` and `end_to_end`, which are
    there only where they are named; with no `cells` at all: every combination, and every reasoner blind.
    A blind cell has no instruction, nor has one end to end. A cell that several entries ask for has the
    largest of their limits. Raises ConfigError where an entry asks for nothing.
    """
    entries: Iterable[CellsConfig] = config.cells or (
        CellsConfig(),
        CellsConfig(perceivers=(BLIND,)),
    )
    limits: dict[Cell, int | None] = {}
    for position, entry in enumerate(entries):
        cells = _cells_of(entry, config)
        if not cells:
            raise ConfigError(
                f"cells.{position}: perceivers {list(entry.perceivers)} and reasoners "
                f"{list(entry.reasoners)} make no cell: {BLIND!r} is a reasoner without a description, "
                f"{END_TO_END!r} a perceiver without a reasoner; name another of either"
            )
        for cell in cells:
            limits[cell] = _larger(limits[cell], entry.limit) if cell in limits else entry.limit
    return limits


def _cells_of(entry: CellsConfig, config: PrismConfig) -> list[Cell]:
    combinations = product(
        entry.benchmarks or config.benchmarks,
        entry.perceivers or config.perceivers,
        entry.instructions or config.instructions,
        entry.reasoners or config.reasoners,
    )
    cells: dict[Cell, None] = {}
    for benchmark, perceiver, instruction, reasoner in combinations:
        if perceiver == BLIND and reasoner == END_TO_END:
            continue
        if perceiver == BLIND or reasoner == END_TO_END:
            instruction = NO_INSTRUCTION
        cells[Cell(benchmark, perceiver, instruction, reasoner)] = None
    return list(cells)


def _larger(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)
