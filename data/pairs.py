"""What a stage's kind makes of a sample: a conversation to write, or a pair of a picture and a text.

A contrastive stage compares pairs. Its samples take the way of all others (source, template, encoder, rows of
a step), with one position in place of the picture's and without the text that is not supervised.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from prismcap.configs.schema.stage import StageConfig
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.schema import IGNORE_INDEX, Encoded, Sample, SampleRejected, TokenSpec


class PairEncoder(Encoder):
    """Encodes a sample as `[picture][text]`: one position for its only picture, then its supervised tokens.

    The last token alone is a target, so that the targets of a step are its pairs.
    """

    def encode(self, sample: Sample) -> Encoded:
        """See Encoder.encode. Raises SampleRejected also for not_a_pair: no picture, or several."""
        encoded = super().encode(sample)
        if len(encoded.spans) != 1:
            raise SampleRejected(
                "not_a_pair",
                f"{sample.source}, sample {sample.id!r}: it shows {len(encoded.spans)} pictures, a "
                "contrastive stage compares one with its text",
            )
        text_T = encoded.input_ids[encoded.labels != IGNORE_INDEX]
        input_ids = torch.cat([torch.tensor([self.pad_id]), text_T])
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        labels[-1] = input_ids[-1]
        return replace(encoded, input_ids=input_ids, labels=labels, spans=((0, 0, 1),))


def stage_encoder(stage: StageConfig, tokenizer: Any, token_spec: TokenSpec, where: str = "") -> Encoder:
    """The encoder of a stage, of its kind. `where` (file and key path of the stage) goes into errors.

    Raises ConfigError when the tokenizer cannot write the template.
    """
    encoder_type: type[Encoder] = Encoder
    if stage.kind == "contrastive":
        encoder_type, token_spec = PairEncoder, TokenSpec(tokens_per_tile=1)
    return build_encoder(
        stage.template,
        tokenizer,
        token_spec,
        stage.data.max_tokens,
        f"{where}.template",
        stage.data.max_text_tokens,
        encoder_type,
    )
