"""The other side of a contrastive stage: a text tower, and SigLIP's sigmoid loss over pictures and texts.

SigLIP (arXiv 2303.15343): each picture of a micro-batch is asked of each of its texts whether they belong
together, N x N questions for N pairs, answered by the cosine of the two embeddings, scaled and shifted.

Shape legend: N pairs, M different pictures, P tiles (one of each picture), S tile side in pixels, B rows (one
for each pair), T positions of a row, L positions of the text tower, D width of the embeddings.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipTextConfig, SiglipTextModel

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import TextTowerConfig
from prismcap.data.schema import Batch, DataError
from prismcap.model.contracts import VisionEncoder

# where the scale starts (section 3.2)
START_SCALE = 10.0


class TextTower(nn.Module):
    """transformers' SiglipTextModel over the LLM's tokens, and the loss's scale (its logarithm) and bias.

    A text is filled up to L with `pad_id`, which the tower reads too; its last position speaks for it, or,
    with `pool: mean`, the mean over its own tokens.
    """

    def __init__(self, config: TextTowerConfig, vocabulary: int, embedding_size: int, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.pool = config.pool
        self.max_text_tokens = config.max_text_tokens
        sizes = config.model_dump(exclude={"max_text_tokens", "start_bias", "pool"})
        self.tower: Any = SiglipTextModel(
            SiglipTextConfig(
                vocab_size=vocabulary,
                max_position_embeddings=config.max_text_tokens,
                projection_size=embedding_size,
                pad_token_id=pad_id,
                bos_token_id=None,
                eos_token_id=None,
                **sizes,
            )
        ).float()
        self.logit_scale = nn.Parameter(torch.tensor([math.log(START_SCALE)]))
        # nearly all questions are answered with no at first, as often as that is right: a start far from
        # there is made good by making all embeddings alike
        self.logit_bias = nn.Parameter(torch.tensor([config.start_bias]))

    def forward(self, text_NL: Tensor) -> Tensor:
        """embeddings_ND of token ids, not normalised."""
        output = self.tower(input_ids=text_NL)
        embeddings_ND: Tensor = output.pooler_output
        if self.pool == "mean":
            own_NL1 = (text_NL != self.pad_id)[..., None]
            mean_ND = (output.last_hidden_state * own_NL1).sum(1) / own_NL1.sum(1).clamp(min=1)
            embeddings_ND = self.tower.head(mean_ND)
        return embeddings_ND

    def logits(self, images_ND: Tensor, texts_ND: Tensor) -> Tensor:
        """[N, N]: of every picture (row) and every text, in fp32 whatever autocast says."""
        with torch.autocast(images_ND.device.type, enabled=False):
            cosine_NN = _unit(images_ND) @ _unit(texts_ND).T
            return cosine_NN * self.logit_scale.exp() + self.logit_bias


def _unit(embeddings_ND: Tensor) -> Tensor:
    return functional.normalize(embeddings_ND.float(), dim=-1)


def build_text_tower(
    config: TextTowerConfig, vision_encoder: VisionEncoder, llm: Any, tokenizer: Any, seed: int
) -> TextTower:
    """A text tower that starts at random from `seed`, on the LLM's device. The random state stays as it was.

    Raises ConfigError for a vision encoder without one embedding for a whole picture.
    """
    if vision_encoder.pooled_size is None:
        raise ConfigError(
            "train.text_tower: the vision encoder gives no embedding of a whole picture to compare "
            "texts with: take vision_encoder.name: siglip, with its head"
        )
    words = llm.get_input_embeddings()
    pad_id = getattr(tokenizer, "pad_token_id", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = TextTower(config, words.num_embeddings, vision_encoder.pooled_size, pad_id or 0)
    return tower.to(words.weight.device)


def pair_loss(
    vision_encoder: VisionEncoder, text_tower: TextTower, batch: Batch
) -> tuple[Tensor, int, Tensor]:
    """The summed loss of a micro-batch of pairs (data/pairs.py), their number, and for how many pictures the
    likeliest text is their own.

    Two pairs belong together when they show the same picture or say the same text: composed scenes and plain
    captions repeat, and a text that is true is no counterexample. What is compared are the pairs of this
    micro-batch on this rank. Raises DataError for rows that are no pairs.
    """
    if len(batch.spans) == 0:
        # every rank runs the same modules in every step, or collectives over gradients hang
        return 0.0 * _idle_loss(vision_encoder, text_tower), 0, torch.zeros((), dtype=torch.long)
    image_N, text_NL = _pairs(batch, text_tower)
    assert batch.tiles is not None
    images_ND = vision_encoder.pooled(batch.tiles)[image_N]
    logits_NN = text_tower.logits(images_ND, text_tower(text_NL))
    text_N = text_NL.unique(dim=0, return_inverse=True)[1]
    match_NN = (image_N[:, None] == image_N) | (text_N[:, None] == text_N)
    loss_sum, num_correct = sigmoid_loss(logits_NN, match_NN)
    return loss_sum, len(image_N), num_correct


def sigmoid_loss(logits_NN: Tensor, match_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropies summed over all N x N, and for how many rows the largest logit is a match."""
    sign_NN = 2.0 * match_NN - 1.0
    loss_sum = -functional.logsigmoid(sign_NN * logits_NN).sum()
    best_N1 = logits_NN.detach().argmax(dim=1, keepdim=True)
    return loss_sum, match_NN.gather(1, best_N1).sum()


def _pairs(batch: Batch, text_tower: TextTower) -> tuple[Tensor, Tensor]:
    """image_N: each pair's picture, by number. text_NL: its tokens, filled up."""
    image_N, row_N, start_N, length_N = batch.spans.unbind(1)
    rows_B = torch.arange(len(batch.input_ids), device=row_N.device)
    one_each = torch.equal(row_N, rows_B) and bool(((start_N == 0) & (length_N == 1)).all())
    if batch.tiles is None or not one_each or bool((batch.segment_ids > 1).any()):
        raise DataError(f"rows that are not one picture and its text{_of(batch)}")
    if not torch.equal(batch.tile_image, torch.arange(len(batch.tiles), device=batch.tile_image.device)):
        raise DataError(f"a picture of several tiles, where whole pictures are compared{_of(batch)}")
    limit = text_tower.max_text_tokens
    is_text_NT = batch.segment_ids[:, 1:] > 0
    if bool(is_text_NT[:, limit:].any()):
        longest = int(is_text_NT.sum(1).max())
        raise DataError(f"a text of {longest} tokens, the text tower reads {limit}{_of(batch)}")
    text_NT = batch.input_ids[:, 1:].where(is_text_NT, text_tower.pad_id)[:, :limit]
    return image_N, functional.pad(text_NT, (0, limit - text_NT.shape[1]), value=text_tower.pad_id)


def _idle_loss(vision_encoder: VisionEncoder, text_tower: TextTower) -> Tensor:
    """Of one blank picture and an empty text."""
    device, size = text_tower.logit_scale.device, vision_encoder.image_spec.size_px
    text_NL = torch.full((1, text_tower.max_text_tokens), text_tower.pad_id, device=device)
    images_ND = vision_encoder.pooled(torch.zeros(1, 3, size, size, device=device))
    return text_tower.logits(images_ND, text_tower(text_NL)).sum()


def _of(batch: Batch) -> str:
    return f" (samples {', '.join(batch.sample_ids)})" if batch.sample_ids else ""
