"""The processor files of an export: tokenizer, chat template, image preprocessing.

Written by hand rather than by `save_pretrained`, because the two live versions of transformers
disagree: 5.x alone writes no preprocessor_config.json and a tokenizer class that 4.57 refuses.
The files written here are read by both.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImageSpec
from prismcap.model.captioner import Captioner
from prismcap.model.hf.files import write_json

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class TokenRule:
    """How LlavaProcessor counts image positions: (size // patch_size)^2 + additional, minus 1 if
    the strategy is "default"."""

    patch_size: int
    additional: int
    strategy: str


def any_number_of_tokens(captioner: Captioner) -> TokenRule:
    """One for the whole picture, and the rest of the connector's tokens."""
    size = captioner.image_spec.size_px
    return TokenRule(patch_size=size, additional=captioner.connector.num_tokens - 1, strategy="full")


def with_image_token(tokenizer: Any) -> tuple[Any, int]:
    """A copy of the tokenizer that knows IMAGE_TOKEN as one special token, and its id.

    Raises ConfigError when there is no tokenizer, or it takes the token apart.
    """
    if tokenizer is None:
        raise ConfigError(
            "the captioner has no tokenizer, and no export can be used without: give llm.tokenizer"
        )
    tokenizer = copy.deepcopy(tokenizer)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    ids = tokenizer.encode(f"a{IMAGE_TOKEN}{IMAGE_TOKEN}b", add_special_tokens=False)
    if ids.count(image_id) != 2:
        raise ConfigError(f"the tokenizer does not keep {IMAGE_TOKEN!r} as one token: it reads it as {ids}")
    return tokenizer, image_id


def image_processor_config(spec: ImageSpec) -> dict[str, Any]:
    """preprocessor_config.json: LlavaImageProcessor is the one native class that has all geometries of one
    tile, LlavaNextImageProcessor has anyres (its do_pad makes numbers of tiles equal in a batch)."""
    side = {"height": spec.size_px, "width": spec.size_px}
    centre = spec.geometry == "center_crop"
    anyres = spec.geometry == "anyres"
    return {
        "image_processor_type": "LlavaNextImageProcessor" if anyres else "LlavaImageProcessor",
        "processor_class": processor_class(spec),
        "do_convert_rgb": True,
        "do_pad": spec.geometry in ("pad", "anyres"),
        "do_resize": True,
        "size": {"shortest_edge": spec.size_px} if centre else side,
        "resample": 3,  # PIL bicubic
        "do_center_crop": centre,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    } | ({"image_grid_pinpoints": grid_pinpoints(spec)} if anyres else {})


def grid_pinpoints(spec: ImageSpec) -> list[list[int]]:
    """The grids as transformers names them: [height, width] in pixels, the preferred of equals first."""
    return [[rows * spec.size_px, columns * spec.size_px] for rows, columns in spec.grids]


def processor_class(spec: ImageSpec) -> str:
    """Of transformers."""
    return "LlavaNextProcessor" if spec.geometry == "anyres" else "LlavaProcessor"


def write_processor(
    destination: Path, tokenizer: Any, spec: ImageSpec, rule: TokenRule, chat_template: str
) -> None:
    """Tokenizer files, processor_config.json, preprocessor_config.json and chat_template.jinja.

    `tokenizer` must come from with_image_token.
    """
    tokenizer.chat_template = None
    tokenizer.save_pretrained(destination)
    _rewrite_tokenizer_config(destination / "tokenizer_config.json", tokenizer, processor_class(spec))
    write_json(destination / "preprocessor_config.json", image_processor_config(spec))
    processor = {
        "processor_class": processor_class(spec),
        "image_token": IMAGE_TOKEN,
        "patch_size": rule.patch_size,
        "num_additional_image_tokens": rule.additional,
        "vision_feature_select_strategy": rule.strategy,
    }
    write_json(destination / "processor_config.json", processor)
    (destination / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _rewrite_tokenizer_config(path: Path, tokenizer: Any, processor: str) -> None:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # the names of 5.x, and traces of where this tokenizer was read from
    for key in ("backend", "extra_special_tokens", "is_local", "local_files_only", "chat_template"):
        config.pop(key, None)
    special: Sequence[str] = [str(token) for token in tokenizer.extra_special_tokens]
    config["additional_special_tokens"] = list(dict.fromkeys([*special, IMAGE_TOKEN]))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["processor_class"] = processor
    config["model_input_names"] = ["input_ids", "attention_mask"]  # 4.57 would add token_type_ids
    config["padding_side"] = "left"  # batched generation continues at the right end
    write_json(path, config)
