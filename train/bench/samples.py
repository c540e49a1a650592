"""The samples of a benchmark: random tokens and features, in the lengths of a committed mix.

Shape legend: P tiles, K patches, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from prismcap.data.length_mixes import SampleLength, load_length_mix
from prismcap.data.schema import IGNORE_INDEX, Encoded, ImageRef
from prismcap.train.bench.cases import LLMS, VISION_WIDTHS, TrainCase

# the last id of the vocabulary marks a picture's place for LLaVA, and is in no text
_FIRST_TEXT_ID = 3
_MOST_IMAGES = 16


@dataclass(frozen=True)
class NumberedPicture:
    """A picture that exists as features alone."""

    number: int

    def load(self) -> Image.Image:
        raise AssertionError("a benchmark's pictures are features; none is decoded")

    def fingerprint(self) -> str:
        return str(self.number)


@dataclass
class DrawnFeatures:
    """ImageInputs (data/pack.py) of drawn features, made ahead so that no contender pays for them."""

    num_patches: int
    width: int
    seed: int
    kind: Literal["tiles", "features"] = "features"
    _drawn: dict[ImageRef, Tensor] = field(default_factory=dict, repr=False)

    def draw(self, samples: Sequence[Encoded]) -> None:
        """Make the features of these samples' pictures, and let go of all others."""
        self._drawn = {}
        for ref in (ref for sample in samples for ref in sample.images):
            assert isinstance(ref, NumberedPicture)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + ref.number)
            self._drawn[ref] = torch.randn(1, self.num_patches, self.width, generator=generator)

    def read(self, image: ImageRef) -> tuple[Tensor, tuple[int, int]]:
        """features [1, K, D] fp32, and a size in pixels that nothing reads."""
        return self._drawn[image], (1, 1)


def features_of(case: TrainCase) -> DrawnFeatures:
    """The features of a case's pictures, none of them drawn yet."""
    return DrawnFeatures(case.visual_tokens, VISION_WIDTHS[case.size], case.seed)


def all_samples(case: TrainCase) -> list[Encoded]:
    """Every sample of the case, in order: step k has those from k * samples_per_step on."""
    lengths = load_length_mix(case.mix).sample(
        case.num_steps * case.samples_per_step,
        visual_tokens=case.visual_tokens,
        seed=case.seed,
        max_tokens=case.longest_sample,
    )
    vocab_size = LLMS[case.size]["vocab_size"]
    return [random_sample(length, number, vocab_size, case.seed) for number, length in enumerate(lengths)]


def random_sample(length: SampleLength, number: int, vocab_size: int, seed: int) -> Encoded:
    """A sample of this length: its pictures after the first token, its last tokens supervised."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    input_ids = torch.randint(_FIRST_TEXT_ID, vocab_size - 1, (length.tokens,), generator=generator)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[-length.target_tokens :] = input_ids[-length.target_tokens :]
    size = length.visual_tokens // max(1, length.num_images)
    spans = tuple((i, 1 + i * size, size) for i in range(length.num_images))
    for _, start, _ in spans:
        input_ids[start : start + size] = 0
    images = tuple(NumberedPicture(number * _MOST_IMAGES + i) for i in range(length.num_images))
    return Encoded(id=str(number), input_ids=input_ids, labels=labels, images=images, spans=spans)
