"""The cells of a Prism run as a text table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismcap.evaluate.columns import align
from prismcap.evaluate.intervals import MIN_ITEMS

_HEAD = ("benchmark", "perceiver", "instruction", "reasoner", "right %", "95% interval", "n")
_SHARES = ("refused", "unmatched", "cut_off", "failed")
_NUM_NAMES = 4


def results_table(results: Mapping[str, Any]) -> str:
    """A line per cell: names, micro mean, 95% interval, n, the shares that are no answers (in percent where
    any cell has some), and macro means."""
    cells = results["cells"]
    shares = [name for name in _SHARES if any(cell[name] for cell in cells)]
    macros = list(dict.fromkeys(column for cell in cells for column in cell["macro"]))
    extra = [*(f"{name.replace('_', ' ')} %" for name in shares), *(f"macro {name} %" for name in macros)]
    text = align([(*_HEAD, *extra, ""), *(_row(cell, shares, macros) for cell in cells)], _NUM_NAMES)
    if results["about"]["complete"]:
        return text
    return f"{text}\nSome requests failed and count as wrong: --retry-failed asks for them again."


def _row(cell: Mapping[str, Any], shares: Sequence[str], macros: Sequence[str]) -> tuple[str, ...]:
    micro = cell["micro"]
    return (
        *(str(cell[name]) for name in ("benchmark", "perceiver", "instruction", "reasoner")),
        percent(micro["rate"]),
        f"{percent(micro['low'])} .. {percent(micro['high'])}",
        str(micro["n"]),
        *(percent(cell[name]) for name in shares),
        *(percent(cell["macro"][name]["rate"]) if name in cell["macro"] else "-" for name in macros),
        f"n < {MIN_ITEMS}" if micro["n"] < MIN_ITEMS else "",
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}"
