"""Which cells a config asks for: nothing twice, nothing left out, limits merged."""

from __future__ import annotations

from typing import Any

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.prism.cells import NO_INSTRUCTION, Cell, cell_of, expand_cells


def config(cells: list[dict[str, Any]] | None = None) -> PrismConfig:
    return PrismConfig.model_validate(
        {
            "name": "p",
            "benchmarks": {"stars": {"name": "tsv"}, "scenes": {"name": "scenes"}},
            "perceivers": {"ours": {"name": "captioner"}, "blank": {"name": "file"}},
            "instructions": {"generic": {"key": "human1"}, "cot": {"key": "cot"}},
            "reasoners": {"keyword": {"name": "keyword"}, "llm": {"name": "hf"}},
            "cells": cells or [],
        }
    )


def test_without_cells_all_meet_and_each_reasoner_is_blind_once() -> None:
    cells = expand_cells(config())
    combined = [cell for cell in cells if not cell.is_blind]
    blind = [cell for cell in cells if cell.is_blind]
    assert len(combined) == 2 * 2 * 2 * 2
    assert sorted(blind) == sorted(
        Cell(benchmark, "blind", NO_INSTRUCTION, reasoner)
        for benchmark in ("stars", "scenes")
        for reasoner in ("keyword", "llm")
    )
    assert not any(cell.is_end_to_end for cell in cells)
    assert set(cells.values()) == {None}


def test_blind_and_end_to_end_stand_where_they_are_named_without_an_instruction() -> None:
    cells = expand_cells(
        config(
            [{"benchmarks": ["stars"], "perceivers": ["blind", "ours"], "reasoners": ["llm", "end_to_end"]}]
        )
    )
    assert set(cells) == {
        Cell("stars", "blind", NO_INSTRUCTION, "llm"),
        Cell("stars", "ours", NO_INSTRUCTION, "end_to_end"),
        Cell("stars", "ours", "generic", "llm"),
        Cell("stars", "ours", "cot", "llm"),
    }


@pytest.mark.parametrize(
    ("limits", "merged"), [([100, 300], 300), ([300, 100], 300), ([None, 100], None), ([100, None], None)]
)
def test_a_cell_asked_for_twice_is_there_once_with_the_larger_limit(
    limits: list[int | None], merged: int | None
) -> None:
    one = {"benchmarks": ["stars"], "perceivers": ["ours"], "instructions": ["cot"], "reasoners": ["llm"]}
    cells = expand_cells(config([{**one, "limit": limit} for limit in limits]))
    assert cells == {Cell("stars", "ours", "cot", "llm"): merged}


def test_an_entry_that_asks_for_nothing_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"cells\.1.*blind"):
        expand_cells(config([{}, {"perceivers": ["blind"], "reasoners": ["end_to_end"]}]))


def test_a_cell_goes_into_a_row_and_comes_back() -> None:
    cell = Cell("stars", "ours", "cot", "llm")
    assert cell_of({**cell.as_dict(), "id": "7", "right": True}) == cell


@pytest.mark.parametrize("name", ["-", "..", ".hidden"])
def test_a_name_that_means_something_else_as_an_instruction_or_a_folder_is_refused(name: str) -> None:
    values = config().model_dump()
    values["instructions"] = {name: {"key": "human1"}}
    with pytest.raises(ValueError, match="must be letters"):
        PrismConfig.model_validate(values)
