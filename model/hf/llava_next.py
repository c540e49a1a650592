"""From a captioner that sees anyres pictures to LlavaNextForConditionalGeneration, which transformers 4.57
and 5 load without remote code: it has the grids, the unpadding and the newline, and nothing else has.

Source of the layout: transformers, models/llava_next and conversion_mapping.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImageSpec
from prismcap.model.captioner import Captioner
from prismcap.model.hf import native
from prismcap.model.hf.processor import grid_pinpoints

FORMAT = "llava_next"


def is_format(captioner: Captioner, image_spec: ImageSpec, format: str) -> bool:
    """Whether the export is a LLaVA-NeXT.

    Raises ConfigError where `format` and the geometry do not go together, or the captioner is none.
    """
    if image_spec.geometry != "anyres":
        if format == FORMAT:
            raise ConfigError(
                f"--format {FORMAT}: the last stage's data.geometry is {image_spec.geometry}, and LLaVA-NeXT "
                "cuts every picture into tiles (anyres); take --format auto"
            )
        return False
    if format not in ("auto", FORMAT):
        raise ConfigError(
            f"--format {format}: the model sees pictures in tiles (data.geometry: anyres), which "
            f"{FORMAT} alone can say; take --format auto"
        )
    obstacle = native.why_not_llava(captioner)
    if obstacle is None and captioner.connector.newline is None:
        obstacle = "it has no image_newline"
    if obstacle is not None:
        raise ConfigError(
            f"data.geometry: anyres exports to LLaVA-NeXT alone, and the captioner is none: {obstacle}. Take "
            "parts that LLaVA has, or train without an export (--no-dry-export)"
        )
    return True


def llava_next_config(
    captioner: Captioner, image_spec: ImageSpec, image_token_id: int, vocab_size: int
) -> dict[str, Any]:
    """config.json of LlavaNextForConditionalGeneration."""
    from transformers import LlavaNextConfig

    pinpoints = grid_pinpoints(image_spec)
    values = native.llava_values(
        LlavaNextConfig, captioner, image_token_id, vocab_size, image_grid_pinpoints=pinpoints
    )
    values["architectures"] = ["LlavaNextForConditionalGeneration"]
    return values


def llava_next_state(captioner: Captioner, vocab_size: int) -> dict[str, Tensor]:
    """LLaVA's weights, and the newline; names as in native.llava_state."""
    assert captioner.connector.newline is not None
    state = native.llava_state(captioner, vocab_size)
    state["image_newline"] = captioner.connector.newline.weight
    return state
