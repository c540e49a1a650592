"""The share of the device's rate that a step's model FLOPs take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import Batch
from prismcap.model.captioner import Captioner
from prismcap.train.device_rate import device_rate
from prismcap.train.distributed import Ranks
from prismcap.train.flops import FlopModel, shape_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MfuMeter:
    """flops_per_s: the rates of all ranks' devices together."""

    model: FlopModel
    flops_per_s: float

    @classmethod
    def of(cls, captioner: Captioner, stage: StageConfig, ranks: Ranks) -> MfuMeter | None:
        """For a captioner made ready by prepare_stage, before apply_kernels and the engine. None, with a
        warning, for a model that cannot be counted, and for a contrastive stage. Takes about a second.
        Collective."""
        if stage.kind == "contrastive":
            log.info("mfu is not logged: operations are not counted for contrastive stages")
            return None
        try:
            model = FlopModel.of(captioner)
        except RuntimeError as error:
            log.warning("mfu is not logged: the operations of this model cannot be counted (%s)", error)
            return None
        positions = stage.batch.rows_per_micro_batch * stage.batch.row_tokens
        rate = device_rate(captioner, ranks.device, stage.precision, positions)
        log.info("mfu is a share of %.3g FLOP/s a process: %s", rate.flops_per_s, rate.source)
        return cls(model, ranks.sum([rate.flops_per_s])[0])

    def flops(self, micro_batches: Sequence[Batch]) -> float:
        """Model FLOPs of this rank's part of a step."""
        return self.model.step(map(shape_of, micro_batches)).total_model
