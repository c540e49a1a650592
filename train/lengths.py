"""The lengths of a stage's samples, measured by all ranks together, and the order they make."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from prismcap.configs.schema.data import BatchConfig
from prismcap.data.encode import Encoder
from prismcap.data.grouping import GroupedOrder
from prismcap.data.lengths import LengthIndex, keep_index, measure, read_index
from prismcap.data.mix import Mix
from prismcap.data.plan import LENGTHS_BY_ENCODING_RANKS
from prismcap.train.distributed import Ranks

log = logging.getLogger(__name__)


def lengths_for(
    mix: Mix, encoder: Encoder, batch: BatchConfig, num_positions: int, num_workers: int, ranks: Ranks
) -> tuple[Mix, LengthIndex | None]:
    """The mix in the order that `batch.grouping` asks for, and the index where a plan needs one.

    num_positions: samples that the stage will see. Collective.
    """
    grouped = batch.grouping != "none"
    alone = ranks.world_size == 1
    # where pictures decide lengths, a rank that cannot read one would plan a step otherwise than the others
    alike = ranks.world_size <= LENGTHS_BY_ENCODING_RANKS and not encoder.token_spec.depends_on_size
    if not grouped and (alone or alike):
        return mix, None
    index = measured(mix, encoder, len(mix) if grouped else num_positions, num_workers, ranks)
    if not grouped:
        return mix, index
    tokens, num_images = index.of_epoch(mix)
    by_modality = batch.grouping == "modality_length"
    order = GroupedOrder(tokens, num_images > 0, batch.samples_per_step, mix.seed, by_modality)
    return replace(mix, order=order), index


def measured(mix: Mix, encoder: Encoder, num_positions: int, num_workers: int, ranks: Ranks) -> LengthIndex:
    """The index of the first positions of the mix: what is not kept is measured, by each rank its share.

    Collective.
    """
    # one rank looks: another could see what a third has written meanwhile, and share out otherwise
    index = ranks.on_first(lambda: read_index(mix, encoder))
    missing = index.missing(mix, num_positions)
    if len(missing) == 0:
        return index
    started_s = time.monotonic()
    if ranks.is_first:
        log.info("lengths: %d samples to measure, by encoding their text", len(missing))
    share = measure(mix, encoder, missing[ranks.rank :: ranks.world_size], num_workers)
    for rank, values in enumerate(ranks.gather(share)):
        index.fill(missing[rank :: ranks.world_size], values)
    ranks.on_first(lambda: keep_index(index, mix, encoder))
    if ranks.is_first:
        log.info("lengths: measured in %.0f s", time.monotonic() - started_s)
    return index
