"""Totals of requests, and dollars only where all tokens are known."""

from __future__ import annotations

from typing import Any

import pytest

from prismcap.configs.schema.prism import PriceConfig, PrismConfig
from prismcap.evaluate.prism.cells import NO_INSTRUCTION, Cell
from prismcap.evaluate.prism.cost import CostStage, price_of, total_cost

PRICE = PriceConfig(tokens_in=2.0, tokens_out=10.0)


def request(**values: Any) -> dict[str, Any]:
    row = {"status": "ok", "tokens_in": 1000, "tokens_out": 100, "latency_s": 0.5, "retries": 0}
    return row | values


def test_totals_and_dollars() -> None:
    rows = [request(), request(tokens_in=500, retries=2, latency_s=1.25)]
    assert total_cost(rows, PRICE) == {
        "requests": 2,
        "tokens_in": 1500,
        "tokens_out": 200,
        "latency_s": 1.75,
        "retries": 2,
        "failed": 0,
        "uncounted": 0,
        "dollars": pytest.approx(0.005),  # 1500 x 2 + 200 x 10 dollars per million
    }


def test_failed_requests_count_and_need_no_tokens() -> None:
    total = total_cost(
        [request(), request(status="failed", tokens_in=None, tokens_out=None, retries=6)], PRICE
    )
    assert (total["requests"], total["failed"], total["retries"], total["uncounted"]) == (2, 1, 6, 0)
    assert total["dollars"] == pytest.approx(0.003)


def test_a_failed_request_that_was_counted_is_paid_for() -> None:
    assert total_cost([request(status="failed")], PRICE)["dollars"] == pytest.approx(0.003)


def test_uncounted_tokens_leave_the_price_open() -> None:
    total = total_cost([request(), request(tokens_out=None)], PRICE)
    assert (total["uncounted"], total["dollars"], total["tokens_out"]) == (1, None, 100)
    unknown = total_cost([request(tokens_in=None, tokens_out=None)], None)
    assert (unknown["tokens_in"], unknown["tokens_out"], unknown["dollars"]) == (None, None, None)


def test_without_a_price_there_are_no_dollars_and_none_for_nothing() -> None:
    assert total_cost([request()], None)["dollars"] is None
    assert total_cost([], PRICE)["dollars"] == 0


@pytest.mark.parametrize(
    ("cell", "stage", "name"),
    [
        (Cell("stars", "vlm", "asked", "llm"), "instruct", "writer"),
        (Cell("stars", "vlm", "asked", "llm"), "perceive", "vlm"),
        (Cell("stars", "vlm", "asked", "llm"), "reason", "llm"),
        (Cell("stars", "vlm", "generic", "llm"), "instruct", None),
        (Cell("stars", "vlm", NO_INSTRUCTION, "end_to_end"), "reason", "vlm"),
        (Cell("stars", "blind", NO_INSTRUCTION, "llm"), "reason", "llm"),
        (Cell("stars", "free", "generic", "llm"), "perceive", None),
    ],
)
def test_each_stage_is_paid_at_the_price_of_who_does_it(
    cell: Cell, stage: CostStage, name: str | None
) -> None:
    prices = {"vlm": 1.0, "llm": 2.0, "writer": 3.0}
    config = PrismConfig.model_validate(
        {
            "name": "p",
            "benchmarks": {"stars": {"name": "tsv"}},
            "perceivers": {"vlm": {"name": "openai"}, "free": {"name": "file"}},
            "instructions": {"generic": {"key": "human1"}, "asked": {"written_by": "writer"}},
            "reasoners": {"llm": {"name": "openai"}, "writer": {"name": "openai"}},
            "prices": {key: {"tokens_in": price, "tokens_out": price} for key, price in prices.items()},
        }
    )
    found = price_of(config, cell, stage)
    assert (found and found.tokens_in) == (prices[name] if name else None)
