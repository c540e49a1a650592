"""How long the samples of the usual training sets are, for planning and benchmarks without the sets.

Each file of this folder describes one mix: its parts with their numbers of rows, and a histogram of text
tokens for each, the chat template included. Where the figures come from, and that they are estimates,
stands in the files.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from prismcap.configs.errors import DataError, nearest
from prismcap.configs.schema.base import Section

_FOLDER = Path(__file__).parent
# patches of a picture: CLIP ViT-L/14 at 336 px (24 x 24), SigLIP-SO400M/14 at 384 px (27 x 27)
CLIP_336_TOKENS = 576
SIGLIP_384_TOKENS = 729


@dataclass(frozen=True)
class SampleLength:
    """One sample: prompt_tokens and target_tokens (supervised) are text, visual_tokens all its pictures'."""

    prompt_tokens: int
    target_tokens: int
    num_images: int
    visual_tokens: int

    @property
    def tokens(self) -> int:
        """The whole length."""
        return self.prompt_tokens + self.target_tokens + self.visual_tokens


class _Part(Section):
    name: str
    rows: int = Field(ge=1)
    num_images: int = Field(ge=0)
    target_share: float = Field(gt=0, le=1)
    text_tokens: tuple[tuple[int, int, float], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_a_histogram(self) -> _Part:
        if any(not 2 <= low <= high or share <= 0 for low, high, share in self.text_tokens):
            raise ValueError(f"{self.name}: text_tokens: [fewest >= 2, most, share > 0] expected")
        total = sum(share for _, _, share in self.text_tokens)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"{self.name}: the shares of text_tokens add up to {total}, not to 1")
        return self


class LengthMix(Section):
    """Parts of a mix, each drawn in proportion to its rows."""

    parts: tuple[_Part, ...] = Field(min_length=1)

    def sample(
        self, num: int, visual_tokens: int = CLIP_336_TOKENS, seed: int = 0, max_tokens: int = 2048
    ) -> list[SampleLength]:
        """`num` samples in a shuffled order, the same for the same arguments.

        visual_tokens: of one picture. Text over max_tokens, pictures included, is cut from its end.
        Raises DataError when the pictures alone leave less than two places for text.
        """
        rng = random.Random(f"{seed}")
        ends = list(accumulate(part.rows for part in self.parts))
        return [self._one(rng, ends, visual_tokens, max_tokens) for _ in range(num)]

    def _one(self, rng: random.Random, ends: list[int], visual_tokens: int, max_tokens: int) -> SampleLength:
        part = self.parts[bisect_left(ends, rng.random() * ends[-1])]
        low, high, _ = rng.choices(part.text_tokens, [share for _, _, share in part.text_tokens])[0]
        visual = part.num_images * visual_tokens
        if max_tokens - visual < 2:
            raise DataError(
                f"{part.name}: its pictures take {visual} tokens, max_tokens is {max_tokens}: raise it"
            )
        text = rng.randint(low, high)
        # one token at least asks, and one answers
        target = min(max(1, round(text * part.target_share)), text - 1)
        prompt = text - target
        cut = max(0, text + visual - max_tokens)
        prompt, target = (prompt, target - cut) if cut < target else (max_tokens - visual - 1, 1)
        return SampleLength(prompt, target, part.num_images, visual)


def length_mixes() -> list[str]:
    """The names that load_length_mix takes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_length_mix(name: str) -> LengthMix:
    """Raises DataError for an unknown name or a file that is no such mix."""
    path = _FOLDER / f"{name}.yaml"
    if name not in length_mixes():
        raise DataError(f"no length mix {name!r}.{nearest(name, length_mixes())}")
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return LengthMix.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {error}") from error
