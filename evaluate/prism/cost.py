"""What the requests of a Prism run took: tokens, time, retries, and dollars by the config's price table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from prismcap.configs.schema.prism import PriceConfig, PrismConfig
from prismcap.evaluate.prism.cells import Cell

CostStage = Literal["instruct", "perceive", "reason"]


def total_cost(rows: Iterable[Mapping[str, Any]], price: PriceConfig | None) -> dict[str, Any]:
    """Totals of request rows as a stage's JSONL keeps them: {requests, tokens_in, tokens_out, latency_s,
    retries, failed, uncounted, dollars}.

    Every row given counts, failed ones too: they may have been paid for. latency_s is the sum over requests,
    not the time that passed, since requests overlap. uncounted: answers whose tokens nobody counted; tokens
    are then None if no row has any, and dollars None, as without a price: a partial sum would pass for the
    whole.
    """
    requests = retries = failed = uncounted = 0
    tokens: dict[str, int | None] = {"tokens_in": None, "tokens_out": None}
    latency_s = 0.0
    for row in rows:
        requests += 1
        retries += row["retries"]
        latency_s += row["latency_s"]
        failed += row["status"] == "failed"
        known = [name for name in tokens if row[name] is not None]
        for name in known:
            tokens[name] = (tokens[name] or 0) + row[name]
        uncounted += row["status"] == "ok" and len(known) < len(tokens)
    dollars = None
    if price is not None and not uncounted:
        spent = (tokens["tokens_in"] or 0) * price.tokens_in + (tokens["tokens_out"] or 0) * price.tokens_out
        dollars = round(spent / 1e6, 6)
    return {
        "requests": requests,
        **tokens,
        "latency_s": round(latency_s, 4),
        "retries": retries,
        "failed": failed,
        "uncounted": uncounted,
        "dollars": dollars,
    }


def price_of(config: PrismConfig, cell: Cell, stage: CostStage) -> PriceConfig | None:
    """The price of the model that does a stage of a cell: the instruction's writer, the perceiver, the
    reasoner (end to end the perceiver answers). None where the price table has none."""
    name: str | None = cell.perceiver if stage == "perceive" or cell.is_end_to_end else cell.reasoner
    if stage == "instruct":
        instruction = config.instructions.get(cell.instruction)
        name = instruction.written_by if instruction is not None else None
    return config.prices.get(name) if name is not None else None
