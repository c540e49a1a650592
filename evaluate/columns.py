"""Rows of a text table, put into columns for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], num_names: int) -> str:
    """Columns of one width: the first ones to the left, the last as it comes, those between to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:num_names], widths, strict=False)]
        numbers = zip(row[num_names:-1], widths[num_names:-1], strict=True)
        cells += [cell.rjust(width) for cell, width in numbers]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)
