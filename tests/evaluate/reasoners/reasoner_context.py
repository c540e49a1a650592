"""What reasoners of the tests are built with."""

from __future__ import annotations

from typing import Any

from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.reasoners._contract import ReasonerContext


def context(batch_size: int = 4, seed: int = 0, **decoding: Any) -> ReasonerContext:
    return ReasonerContext(
        name="x",
        decoding=Decoding(**{"max_new_tokens": 12, **decoding}),
        device="cpu",
        batch_size=batch_size,
        seed=seed,
    )
