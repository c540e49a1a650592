"""The largest micro-batch that a stage's config allows: every row full, as many pictures as may be.

Shape legend: B rows, T row length, P tiles, S tile side in pixels, K patches, D encoder width.
"""

from __future__ import annotations

import torch

from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import IGNORE_INDEX, Batch
from prismcap.model.captioner import Captioner

LARGEST = ("the largest batch that the config allows",)


def worst_batch(captioner: Captioner, stage: StageConfig, num_rows: int | None = None) -> Batch:
    """`num_rows` (by default batch.rows_per_micro_batch) rows of row_tokens, cut into samples of max_tokens.

    Pictures come first, until images_per_micro_batch or the rows are used up; all text after a sample's
    first token is supervised. Blank pixels, or features where the stage has a feature cache. A contrastive
    stage gets `num_rows` pairs of a picture and a text of max_tokens.
    """
    num_rows = num_rows or stage.batch.rows_per_micro_batch
    if stage.kind == "contrastive":
        return _worst_pairs(captioner, stage, num_rows)
    shape = (num_rows, stage.batch.row_tokens)
    vocabulary = captioner.llm.get_input_embeddings().num_embeddings
    input_ids = (torch.arange(shape[0] * shape[1]) % vocabulary).view(shape)
    labels = input_ids.clone()
    position_ids, segment_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    spans: list[tuple[int, int, int, int]] = []
    tokens = captioner.connector.num_tokens
    for row in range(num_rows):
        starts = range(0, shape[1], stage.data.max_tokens)
        for segment, start in enumerate(starts, start=1):
            end = min(start + stage.data.max_tokens, shape[1])
            position_ids[row, start:end] = torch.arange(end - start)
            segment_ids[row, start:end] = segment
            # a token opens the sample, and one is left to predict
            room = (end - start - 2) // tokens
            for place in range(max(0, min(room, stage.batch.images_per_micro_batch - len(spans)))):
                at = start + 1 + place * tokens
                spans.append((len(spans), row, at, tokens))
                labels[row, at : at + tokens] = IGNORE_INDEX
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        spans=torch.tensor(spans, dtype=torch.long).reshape(-1, 4),
        tile_image=torch.arange(len(spans)),
        image_sizes=torch.full((len(spans), 2), captioner.image_spec.size_px),
        **_blank_pictures(captioner, stage, len(spans)),
        sample_ids=LARGEST,
    )


def _worst_pairs(captioner: Captioner, stage: StageConfig, num_pairs: int) -> Batch:
    """Pairs as data/pairs.py makes them, of different pictures; the texts are all alike."""
    shape = (num_pairs, stage.data.max_tokens)
    labels = torch.full(shape, IGNORE_INDEX)
    labels[:, -1] = 0
    number = torch.arange(num_pairs)
    return Batch(
        input_ids=torch.zeros(shape, dtype=torch.long),
        labels=labels,
        position_ids=torch.arange(shape[1]).expand(shape).contiguous(),
        segment_ids=torch.ones(shape, dtype=torch.long),
        spans=torch.stack([number, number, torch.zeros_like(number), torch.ones_like(number)], dim=1),
        tile_image=number,
        image_sizes=torch.full((num_pairs, 2), captioner.image_spec.size_px),
        **_blank_pictures(captioner, stage, num_pairs),
        sample_ids=LARGEST,
    )


def _blank_pictures(captioner: Captioner, stage: StageConfig, num: int) -> dict[str, torch.Tensor]:
    """tiles [P, 3, S, S] or features [P, K, D]; neither without pictures."""
    if num == 0:
        return {}
    if stage.feature_cache:
        encoder = captioner.vision_encoder
        return {"features": torch.zeros(num, encoder.features_per_tile, encoder.hidden_size)}
    size = captioner.image_spec.size_px
    return {"tiles": torch.zeros(num, 3, size, size)}
