"""Our contender: the real loader's packing and the real engine, one optimiser step at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from prismcap.data.loader import StepLoader
from prismcap.data.schema import Batch, Encoded
from prismcap.model.build import build_captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.kernels import apply_kernels
from prismcap.model.trainable import prepare_stage
from prismcap.train.bench.cases import TrainCase, model_config, stage_config
from prismcap.train.bench.contender import StepFigures
from prismcap.train.bench.samples import DrawnFeatures
from prismcap.train.distributed import Ranks
from prismcap.train.engines import torch as torch_engine
from prismcap.train.flops import FlopModel, Flops, shape_of


@dataclass(frozen=True)
class _Given:
    """Stands for the mix and its encoder: the step's samples, tokenised already."""

    samples: Sequence[Encoded]
    pad_id: int = 0
    per_step: None = None

    def sample_at(self, position: int) -> Encoded:
        return self.samples[position]

    def encode(self, sample: Encoded) -> Encoded:
        return sample


class Ours:
    """The torch engine over a packed captioner."""

    def __init__(self, case: TrainCase, device: torch.device, compiled: bool = False) -> None:
        stage = stage_config(case, compiled)
        self.batch = stage.batch
        captioner = build_captioner(model_config(case.size, case.visual_tokens), seed=case.seed)
        prepare_stage(captioner, stage.train, seed=case.seed)
        hold_frozen(captioner, stage.precision)
        self.flop_model = replace(FlopModel.of(captioner), compiled=compiled)
        apply_kernels(captioner, stage.kernels, device)
        total = stage.schedule.max_steps
        assert total is not None
        self.engine = torch_engine.build(
            torch_engine.Options(), captioner.to(device), stage, total, Ranks(device=device)
        )

    def step(self, samples: Sequence[Encoded], features: DrawnFeatures) -> StepFigures:
        """Pack the samples and train on them."""
        started_s = time.perf_counter()
        batches = self._batches(samples, features)
        batching_s = time.perf_counter() - started_s
        result = self.engine.train_step(batches)
        return StepFigures(
            loss=result.loss,
            num_positions=sum(batch.input_ids.numel() for batch in batches),
            batching_s=batching_s,
        )

    def flops(self, samples: Sequence[Encoded], features: DrawnFeatures) -> Flops:
        """See Contender."""
        return self.flop_model.step([shape_of(batch) for batch in self._batches(samples, features)])

    def _batches(self, samples: Sequence[Encoded], features: DrawnFeatures) -> list[Batch]:
        given: Any = _Given(samples)
        return StepLoader(mix=given, encoder=given, batch=self.batch, images=features).load(0).micro_batches
