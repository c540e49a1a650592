"""The largest micro-batch that a stage's config allows: every row full, as many pictures as may be.

Shape legend: B rows, T row length, P tiles, S tile side in pixels, K patches, D encoder width.
"""

from __future__ import annotations

import torch

from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, Tiling
from prismcap.model.captioner import Captioner

LARGEST = ("the largest batch that the config allows",)


def worst_batch(captioner: Captioner, stage: StageConfig, num_rows: int | None = None) -> Batch:
    """`num_rows` (by default batch.rows_per_micro_batch) rows of row_tokens, cut into samples of max_tokens.

    Pictures come first, until images_per_micro_batch or the rows are used up; all text after a sample's
    first token is supervised. Blank pixels, or features where the stage has a feature cache. With anyres
    every picture is the one of worst_tiling. A contrastive stage gets `num_rows` pairs of a picture and a
    text of max_tokens.
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
    tiling = worst_tiling(captioner, stage)
    tokens = captioner.token_spec.tokens_of(tiling)
    tiles_each = 1 if tiling is None else tiling.num_tiles
    most_pictures = stage.batch.images_per_micro_batch // tiles_each
    for row in range(num_rows):
        starts = range(0, shape[1], stage.data.max_tokens)
        for segment, start in enumerate(starts, start=1):
            end = min(start + stage.data.max_tokens, shape[1])
            position_ids[row, start:end] = torch.arange(end - start)
            segment_ids[row, start:end] = segment
            # a token opens the sample, and one is left to predict
            room = (end - start - 2) // tokens
            for place in range(max(0, min(room, most_pictures - len(spans)))):
                at = start + 1 + place * tokens
                spans.append((len(spans), row, at, tokens))
                labels[row, at : at + tokens] = IGNORE_INDEX
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        spans=torch.tensor(spans, dtype=torch.long).reshape(-1, 4),
        tile_image=torch.arange(len(spans)).repeat_interleave(tiles_each),
        **_sizes(captioner, tiling, len(spans)),
        **_blank_pictures(captioner, stage, len(spans) * tiles_each),
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


def worst_tiling(captioner: Captioner, stage: StageConfig) -> Tiling | None:
    """How the picture is cut that asks most of the encoder for the positions it takes, of those that leave
    room for text and are at most 8 times as long as wide; None where every picture is one tile."""
    spec = captioner.token_spec_of(stage.data)
    if spec.image_spec is None:
        return None
    longest = max(max(grid) for grid in spec.image_spec.grids) * spec.image_spec.size_px
    sides = [(longest, max(1, longest * eighths // 8)) for eighths in range(1, 9)]
    found = [spec.tiling(*size) for long, short in sides for size in ((short, long), (long, short))]
    cuts = [tiling for tiling in found if tiling is not None]
    fitting = [tiling for tiling in cuts if spec.tokens_of(tiling) <= stage.data.max_tokens - 2]
    return max(fitting or cuts, key=lambda tiling: tiling.num_tiles / spec.tokens_of(tiling))


def _sizes(captioner: Captioner, tiling: Tiling | None, num: int) -> dict[str, torch.Tensor]:
    """image_sizes [M, 2] of `num` pictures; with anyres also image_grids [M, 2]."""
    if tiling is None:
        return {"image_sizes": torch.full((num, 2), captioner.image_spec.size_px)}
    sizes = torch.tensor([[tiling.height, tiling.width]]).repeat(num, 1)
    return {"image_sizes": sizes, "image_grids": torch.tensor([[tiling.rows, tiling.columns]]).repeat(num, 1)}


def _blank_pictures(captioner: Captioner, stage: StageConfig, num: int) -> dict[str, torch.Tensor]:
    """tiles [P, 3, S, S] or features [P, K, D]; neither without pictures."""
    if num == 0:
        return {}
    if stage.feature_cache:
        encoder = captioner.vision_encoder
        return {"features": torch.zeros(num, encoder.features_per_tile, encoder.hidden_size)}
    size = captioner.image_spec.size_px
    return {"tiles": torch.zeros(num, 3, size, size)}
