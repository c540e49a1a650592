"""What a contender is: something that makes one optimiser step of given samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prismcap.data.schema import Encoded
from prismcap.train.bench.samples import DrawnFeatures
from prismcap.train.flops import Flops


@dataclass(frozen=True)
class StepFigures:
    """loss: mean over the step's supervised tokens. num_positions: computed by the LLM, padding included.
    batching_s: time to make the batches, within the step."""

    loss: float
    num_positions: int
    batching_s: float


class Contender(Protocol):
    def step(self, samples: Sequence[Encoded], features: DrawnFeatures) -> StepFigures:
        """One optimiser step over these samples; features of their pictures are ready to be read."""

    def flops(self, samples: Sequence[Encoded], features: DrawnFeatures) -> Flops:
        """The operations of a step over these samples."""
