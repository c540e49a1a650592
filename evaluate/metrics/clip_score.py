"""CLIPScore, and with references RefCLIPScore, of any local CLIP or SigLIP.

Source: Hessel et al., CLIPScore (arXiv 2104.08718): w max(cos(caption, picture), 0) with w = 2.5, which
stretches the cosines of CLIP ViT-B/32, about 0 to 0.4, over 0 to 1. Those of another model lie elsewhere:
compare only scores of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field
from torch import Tensor

from prismcap.configs.schema.base import Section
from prismcap.evaluate.local_models import model_identity
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._dual_encoder import DualEncoder
from prismcap.evaluate.metrics._encoders import model_folder, text_cut
from prismcap.evaluate.metrics._shares import that_apply

VERSION = 1  # raise it whenever a figure changes
WEIGHT = 2.5  # w of the paper's equation 1


class Options(Section):
    """The model, and what stands before each text."""

    path: str = Field(description="directory (or cache:…) of a CLIP or SigLIP as transformers saves it")
    prefix: str = Field(default="A photo depicts", description="the paper's; empty for none")


def build(options: Options, context: MetricContext) -> ClipScore:
    """Raises ConfigError for a directory that is not there."""
    return ClipScore(options, context)


class ClipScore:
    """clip_score, ref_clip_score (of items with references) and text_cut.

    RefCLIPScore is the harmonic mean of the CLIPScore and the largest cosine to a reference, 0 where either
    is 0. CLIP reads 77 tokens and SigLIP 64: of longer texts, and text_cut tells how many there are, the
    end is not scored.
    """

    needs: frozenset[Need] = frozenset({"image"})

    def __init__(self, options: Options, context: MetricContext) -> None:
        self._options = options
        self._context = context
        self._folder = model_folder(options.path, f"{context.where}: clip_score.path")

    @cached_property
    def identity(self) -> str:
        """Of the model's files."""
        return f"clip_score {VERSION} {model_identity(str(self._folder))} prefix {self._options.prefix!r}"

    @cached_property
    def _encoder(self) -> DualEncoder:
        return DualEncoder(self._folder, self._context.device, self._context.batch_size)

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """Raises ConfigError where the model cannot be loaded, DataError for a picture that cannot be."""
        pictures = self._pictures(items)
        given = [self._given(item.text) for item in items]
        references = [[self._given(text) for text in item.references] for item in items]
        different = dict.fromkeys([*given, *(text for others in references for text in others)])
        place = {text: row for row, text in enumerate(different)}
        texts = self._encoder.texts(list(place))
        scores: list[float] = []
        with_references: list[float | None] = []
        for text, others, picture in zip(given, references, pictures, strict=True):
            own = texts[place[text]]
            score = WEIGHT * max(float(own @ picture), 0.0)
            scores.append(score)
            nearest = max((float(own @ texts[place[other]]) for other in others), default=None)
            with_references.append(None if nearest is None else _harmonic(score, max(nearest, 0.0)))
        return that_apply(
            [
                ItemFigure(
                    "clip_score", scores, "2.5 x cosine of text and picture, at least 0", unit="score"
                ),
                ItemFigure(
                    "ref_clip_score",
                    with_references,
                    "harmonic mean of clip_score and the largest cosine to a reference",
                    unit="score",
                ),
                text_cut(self._encoder.too_long(given)),
            ]
        )

    def _given(self, text: str) -> str:
        prefix = self._options.prefix
        return f"{prefix} {text}" if prefix else text

    def _pictures(self, items: Sequence[CaptionItem]) -> list[Tensor]:
        """The vector of each item's picture; a picture that several share is loaded once."""
        place: dict[object, int] = {}
        first: list[CaptionItem] = []
        for item in items:
            if item.image not in place:
                place[item.image] = len(first)
                first.append(item)
        images = [item.image for item in first if item.image is not None]
        vectors = self._encoder.pictures(images, [item.where or item.id for item in first])
        return [vectors[place[item.image]] for item in items]


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other > 0 else 0.0
