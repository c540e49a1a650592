"""table.csv and table.arrow: a row per cell and figure, for whoever wants to reckon themselves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from prismcap.configs.files import replace_file, replace_text
from prismcap.evaluate.ablation.read import Ablation, Cell
from prismcap.evaluate.report.read import Record

CSV, ARROW = "table.csv", "table.arrow"
# column -> whether numbers and of which kind; the axes stand between seed and figure
_KINDS = {
    "seed": "int64",
    "value": "float64",
    "n": "int64",
    "device_hours": "float64",
    "tokens": "int64",
    "supervised_tokens": "int64",
}


def table_rows(ablation: Ablation) -> list[Record]:
    """cell, seed, a column per axis, figure, value, n, device_hours, tokens, supervised_tokens, diff, state.

    All figures of a cell, first those of the ablation, which are there with no value too. Costs are of the
    cell as if alone, and stand in each of its rows. An axis named as a column is called axis_<name>.
    """
    taken = {"cell", "figure", "diff", "state", *_KINDS}
    columns = {axis.name: f"axis_{axis.name}" if axis.name in taken else axis.name for axis in ablation.axes}
    rows = []
    for cell in ablation.cells:
        for figure in dict.fromkeys((*ablation.figures, *cell.measured.figures)):
            levels = {column: cell.levels.get(axis) for axis, column in columns.items()}
            rows.append(_row(cell, levels, figure))
    return rows


def _row(cell: Cell, levels: Record, figure: str) -> Record:
    found = cell.measured.figures.get(figure)
    return {
        "cell": cell.id,
        "seed": cell.seed,
        **levels,
        "figure": figure,
        "value": None if found is None else found.value,
        "n": None if found is None else found.n,
        **cell.cost.as_dict(),
        "diff": json.dumps(cell.diff, ensure_ascii=False),
        "state": cell.state,
    }


def write_tables(folder: Path, rows: Sequence[Record]) -> list[str]:
    """Write both; returns the names of those written: table.arrow only where pyarrow is installed (a study of
    hours is not to fail for it, and the CSV holds the same)."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(folder / CSV, file.getvalue())
    return [CSV, *([ARROW] if _write_arrow(folder / ARROW, rows) else [])]


def _write_arrow(path: Path, rows: Sequence[Record]) -> bool:
    """An Arrow IPC file, also known as Feather 2."""
    try:
        import pyarrow as pa
    except ImportError:
        path.unlink(missing_ok=True)  # of an earlier call elsewhere: it would tell of other cells
        return False
    columns = list(rows[0]) if rows else []
    schema = pa.schema([(name, getattr(pa, _KINDS.get(name, "string"))()) for name in columns])
    table = pa.Table.from_pylist(list(rows), schema=schema)

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table)

    replace_file(path, write)
    return True
