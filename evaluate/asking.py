"""Held-out items, asked of a captioner: prompts, greedy texts in batches, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import EvaluationConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.encode import Encoder
from prismcap.data.pairs import stage_encoder
from prismcap.data.scenes.text import CAPTION_KINDS
from prismcap.evaluate.inference import FeatureStore, Progress, Request, generate_texts, no_progress
from prismcap.evaluate.scenes.controls import BlankImage
from prismcap.evaluate.scenes.figures import Control, Result
from prismcap.evaluate.scenes.items import Item
from prismcap.evaluate.scenes.scoring import score
from prismcap.model.captioner import Captioner

BLANK = BlankImage()
# an item, and the item whose picture it is asked with; None stands for the blank picture
Asked = tuple[Control, Item, Item | None]


def encoder_of(captioner: Captioner, stage: StageConfig, where: str) -> Encoder:
    """What makes prompts of items, as the stage does. Raises ConfigError for an LLM without a tokenizer."""
    if captioner.tokenizer is None:
        raise ConfigError(f"{where}: the LLM has no tokenizer, so there is no text to measure")
    return stage_encoder(stage, captioner.tokenizer, captioner.token_spec_of(stage.data), where)


def store_of(captioner: Captioner, stage: StageConfig, batch_size: int, **options: Any) -> FeatureStore:
    """An empty store of pictures, drawn as the stage does. options: of FeatureStore."""
    return FeatureStore(captioner, captioner.image_spec_of(stage.data), batch_size, **options)


def ask(
    captioner: Captioner,
    encoder: Encoder,
    asked: Sequence[Asked],
    store: FeatureStore,
    evaluation: EvaluationConfig,
    progress: Progress = no_progress,
) -> list[Result]:
    """The text of each and its flags, in their order. Pictures must be in the store.

    Use in eval mode without gradients, in the stage's precision: inside `inference`, or for a captioner
    that is training inside its engine's eval_context.
    """
    texts = generate_texts(
        captioner,
        [_request(encoder, item, shown, control) for control, item, shown in asked],
        store,
        batch_size=evaluation.batch_size,
        max_new_tokens=evaluation.max_new_tokens,
        stop=encoder.template.spec.stop,
        progress=progress,
    )
    return [
        Result(item, control, text, dict(score(item.kind, text, item.truth, item.graph)), shown)
        for (control, item, shown), text in zip(asked, texts, strict=True)
    ]


def _request(encoder: Encoder, item: Item, shown: Item | None, control: Control) -> Request:
    image = BLANK if shown is None else shown.image
    prompt = encoder.encode_prompt(item.question, (image,), id=f"{item.id}/{control}")
    # a caption grows with the objects in sight; every answer to a question is short
    length = 0 if item.kind not in CAPTION_KINDS else (item if shown is None else shown).num_objects
    return Request(prompt, likely_length=length + (100 if item.kind == "long" else 0))
