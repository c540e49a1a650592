"""The tables of an ablation's page: rows made of results.json, with every number as the page writes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismcap.evaluate.ablation.sentences import between, p_text, shown, signed
from prismcap.evaluate.report.gallery import unique
from prismcap.evaluate.report.page import address, percent
from prismcap.evaluate.report.read import Record

ABSENT = "–"


def effect_rows(effects: Sequence[Record]) -> list[Record]:
    """A row per effect: names, the numbers in words, whether a difference is shown."""
    rows = []
    for effect in effects:
        measured = effect["difference"] is not None
        share = effect["share"]
        least = effect["minimum_detectable"]
        rows.append(
            {
                "axis": effect["axis"],
                "level": effect["level"],
                "against": effect["against"],
                "difference": signed(effect["difference"], share) if measured else ABSENT,
                "between": between(effect) if measured else "",
                "n_seeds": effect["n_seeds"],
                "n_items": effect["n_items"],
                "p": _p(effect["p"]),
                "p_holm": _p(effect["p_holm"]),
                "least": signed(least, share).removeprefix("+") if measured else ABSENT,
                "shown": shown(effect),
                "sentence": effect["sentence"],
            }
        )
    return rows


def _p(value: float | None) -> str:
    """'0.012', '< 0.001'."""
    return ABSENT if value is None else p_text(value).removeprefix("p ").removeprefix("= ")


def value_text(value: float | None, share: bool) -> str:
    if value is None:
        return ABSENT
    return percent(value) if share else f"{value:.4g}"


def level_rows(rows: Sequence[Record]) -> list[Record]:
    """A row per level: its mean with interval, and by seed."""
    return [
        {
            **{key: row[key] for key in ("axis", "level", "n_items", "cells_without")},
            "value": value_text(row["value"], row["share"]),
            "low": value_text(row["low"], row["share"]).removesuffix(" %"),
            "high": value_text(row["high"], row["share"]).removesuffix(" %"),
            "by_seed": {
                seed: value_text(value, row["share"]).removesuffix(" %")
                for seed, value in row["by_seed"].items()
            },
            "device_hours": row["device_hours"],
            "tokens": row["tokens"],
        }
        for row in rows
    ]


def pareto_points(results: Mapping[str, Any], higher_is_better: bool = True) -> list[Record]:
    """A point per combination of levels that is done in some seed: {number, name, cost, value, seeds, front},
    means over seeds of the deciding figure; numbered by cost.

    front: no other point is at least as good for at most the cost, and better in one of the two.
    """
    about = results["about"]
    figure, kind = about["figures"][0], about["cost"]
    groups: dict[tuple[str, ...], list[Record]] = {}
    for cell in results["cells"]:
        if figure in cell["figures"] and cell["cost"][kind] is not None:
            groups.setdefault(tuple(cell["levels"].values()), []).append(cell)
    first = results["cells"][0]["levels"] if results["cells"] else {}
    points: list[Record] = []
    for cells in groups.values():
        points.append(
            {
                "name": combination_name(cells[0]["levels"], first),
                "cost": sum(cell["cost"][kind] for cell in cells) / len(cells),
                "value": sum(cell["figures"][figure]["value"] for cell in cells) / len(cells),
                "seeds": len(cells),
            }
        )
    points.sort(key=lambda point: point["cost"])
    sign = 1 if higher_is_better else -1
    for number, point in enumerate(points, start=1):
        point["number"] = number
        point["front"] = not any(
            other["cost"] <= point["cost"]
            and sign * other["value"] >= sign * point["value"]
            and (other["cost"], other["value"]) != (point["cost"], point["value"])
            for other in points
        )
    return points


def combination_name(levels: Mapping[str, str], first: Mapping[str, str]) -> str:
    """What a combination changes of the first cell's: 'connector mlp, data qa'; nothing: 'every axis at its
    first level'."""
    changed = [f"{axis} {level}" for axis, level in levels.items() if level != first.get(axis)]
    return ", ".join(changed) or "every axis at its first level"


def setting_rows(axis: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Each key that some level of the axis sets, with its value in every level; as it was: –."""
    settings: Mapping[str, Mapping[str, Any]] = axis["settings"]
    keys = unique(key for values in settings.values() for key in values)
    return [
        (
            key,
            [written(settings[level][key]) if key in settings[level] else ABSENT for level in axis["levels"]],
        )
        for key in keys
    ]


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cell_rows(results: Mapping[str, Any], folder: Path, page: Path) -> list[Record]:
    """A row per cell: state, the ablation's figures, cost, and its own page where it has one."""
    rows = []
    for cell in results["cells"]:
        report = folder / "cells" / cell["id"] / "report.html"
        figures = [cell["figures"].get(figure) for figure in results["about"]["figures"]]
        rows.append(
            {
                **{key: cell[key] for key in ("id", "state", "attempts")},
                "values": [
                    ABSENT if one is None else value_text(one["value"], one["share"]) for one in figures
                ],
                "cost": cell["cost"],
                "shared_hours": cell["shared_cost"]["device_hours"],
                "page": address(report, page) if report.is_file() else None,
                "command": command_text(cell["command"]),
            }
        )
    return rows


def failed_rows(results: Mapping[str, Any], folder: Path, page: Path) -> list[Record]:
    """Cells and shared stages that failed, with their last words and their log where there is one."""
    words = {
        f"cells/{cell['id']}": cell["error"] for cell in results["cells"] if cell["state"] == "failed"
    } | dict(results["about"]["shared_failed"])
    rows = []
    for unit, error in words.items():
        log = folder / "logs" / f"{unit.replace('/', '__')}.log"
        rows.append({"unit": unit, "error": error, "log": address(log, page) if log.is_file() else None})
    return rows


def command_text(command: Any) -> str | None:
    if isinstance(command, list):
        return shlex.join(str(part) for part in command)
    return str(command) if command else None
