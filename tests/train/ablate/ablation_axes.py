"""Axes as YAML says them."""

from __future__ import annotations

from typing import Any

# of the second stage alone: the first is then shared
SECOND = {"low": {}, "high": ["stages.instruct.train.connector.lr=0.02"]}
FIRST = {"short": {}, "long": ["stages.align.schedule.max_steps=5"]}


def axis(**levels: Any) -> dict[str, Any]:
    return {"question": "What?", "levels": levels}
