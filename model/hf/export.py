"""A captioner as a Hugging Face model directory, and the check of it before a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import ImageSpec
from prismcap.model.captioner import Captioner
from prismcap.model.generate import stop_ids
from prismcap.model.hf import blip2, custom, llava_next, native
from prismcap.model.hf.adapter import FOLDER, Adapter, write_adapter
from prismcap.model.hf.card import model_card
from prismcap.model.hf.files import MARKER, whole_folder, write_json, write_weights
from prismcap.model.hf.llm import DROPPED_KEYS
from prismcap.model.hf.processor import TokenRule, any_number_of_tokens, with_image_token, write_processor
from prismcap.model.lora import lora_modules

Layout = Literal["llava", "llava_next", "blip2", "custom"]
Format = Literal["auto"] | Layout
Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class ExportInfo:
    """What an export says besides the weights.

    chat_template: Jinja of the training template. stop: its stop strings. prompt: what to ask by
    default. template_options: of the training template, where they are not its defaults. origin: a sentence
    on whose weights they are. details: rows of the model card's table (what was trained, on what). sections:
    Markdown that stands after them: how it was trained, what was measured, licences of the data.
    """

    name: str
    template: str
    chat_template: str
    stop: tuple[str, ...]
    prompt: str
    template_options: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "Trained with prismcap."
    details: Mapping[str, str] = field(default_factory=dict)
    sections: str = ""


@dataclass(frozen=True)
class _Plan:
    config: dict[str, Any]
    state: dict[str, Tensor]
    rule: TokenRule


def export_captioner(
    captioner: Captioner,
    destination: Path,
    *,
    image_spec: ImageSpec,
    info: ExportInfo,
    format: Format = "auto",
    precision: Precision = "fp32",
    max_shard_size: str = "5GB",
    adapter: Adapter | None = None,
) -> Path:
    """Write `destination`, whole or not at all; an older export there is replaced.

    auto: LlavaForConditionalGeneration or Blip2ForConditionalGeneration where the captioner is exactly that,
    LlavaNextForConditionalGeneration where it sees anyres pictures, else the custom model.
    `image_spec` is that of the last stage, geometry included. adapter: what take_adapter took out of the
    captioner, written beside it. Raises ConfigError when the format
    cannot hold the captioner, LoRA is not merged, or `destination` holds something else; OSError
    when it cannot be written.
    """
    if lora_modules(captioner):
        raise ConfigError("LoRA is not merged into the weights: export after the stage has finished")
    tokenizer, image_token_id = with_image_token(captioner.tokenizer)
    rows = captioner.llm.get_input_embeddings().num_embeddings
    layout = choose_layout(captioner, image_spec, format)
    generation = _generation_config(captioner.tokenizer, info.stop)
    end_ids = generation.get("eos_token_id", [])
    plan = _plan(captioner, image_spec, layout, image_token_id, max(rows, image_token_id + 1), end_ids)
    dtype = DTYPES[precision]
    state = {
        name: value.detach().to(dtype) if value.is_floating_point() else value.detach()
        for name, value in plan.state.items()
    }
    with whole_folder(Path(destination)) as folder:
        write_json(folder / "config.json", _clean(plan.config, str(dtype).removeprefix("torch.")))
        write_weights(state, folder, max_shard_size)
        write_processor(folder, tokenizer, image_spec, plan.rule, info.chat_template)
        write_json(folder / "generation_config.json", generation)
        if layout == "custom":
            custom.write_code(folder)
        if adapter is not None:
            write_adapter(folder / FOLDER, adapter, layout)
        weights = "merged" if adapter is None else "adapter"
        write_json(folder / MARKER, marker(info, layout, image_spec, weights))
        card = model_card(info, layout, image_spec, weights)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(destination)


def choose_layout(captioner: Captioner, image_spec: ImageSpec, format: Format) -> Layout:
    """The first that says the captioner exactly. Raises ConfigError when the one asked for does not."""
    if llava_next.is_format(captioner, image_spec, format):
        return "llava_next"
    native_ones: dict[Layout, Callable[[Captioner], str | None]] = {
        "llava": native.why_not_llava,
        "blip2": blip2.why_not_blip2,
    }
    for layout, why_not in native_ones.items():
        if format not in ("auto", layout):
            continue
        obstacle = why_not(captioner)
        if obstacle is None:
            return layout
        if format == layout:
            raise ConfigError(f"--format {format}: {obstacle}; take --format custom (or auto)")
    return "custom"


def _plan(
    captioner: Captioner,
    image_spec: ImageSpec,
    layout: Layout,
    image_token_id: int,
    vocab_size: int,
    end_ids: list[int],
) -> _Plan:
    if layout == "llava_next":
        return _Plan(
            config=llava_next.llava_next_config(captioner, image_spec, image_token_id, vocab_size),
            state=llava_next.llava_next_state(captioner, vocab_size),
            rule=native.llava_rule(captioner),
        )
    if layout == "llava":
        return _Plan(
            config=native.llava_config(captioner, image_token_id, vocab_size),
            state=native.llava_state(captioner, vocab_size),
            rule=native.llava_rule(captioner),
        )
    if layout == "blip2":
        return _Plan(
            config=blip2.blip2_config(captioner, image_token_id, vocab_size, end_ids),
            state=blip2.blip2_state(captioner, vocab_size),
            rule=any_number_of_tokens(captioner),
        )
    return _Plan(
        config=custom.custom_config(captioner, image_token_id, vocab_size),
        state=custom.custom_state(captioner, vocab_size),
        rule=any_number_of_tokens(captioner),
    )


def _clean(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Without labels and paths of this machine, and with the dtype at every level."""
    cleaned: dict[str, Any] = {}
    for key, value in config.items():
        if key in DROPPED_KEYS and key != "transformers_version":
            continue
        cleaned[key] = _clean(value, dtype) if key.endswith("_config") and isinstance(value, dict) else value
    cleaned["dtype"] = dtype
    return cleaned


def _generation_config(tokenizer: Any, stop: tuple[str, ...]) -> dict[str, Any]:
    """Greedy, and made from nothing: an LLM's own may hold values that fail validation when saved."""
    ends, texts = stop_ids(tokenizer, stop)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1:
            ends.add(int(ids[0]))
    values = {
        "do_sample": False,
        "max_new_tokens": MAX_NEW_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sorted(ends) or None,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    }
    return {key: value for key, value in values.items() if value is not None}


def marker(info: ExportInfo, format: str, image_spec: ImageSpec, weights: str = "merged") -> dict[str, Any]:
    """What the export is, for programs: nothing of it is to be read from the folder's name."""
    return {
        "name": info.name,
        "format": format,
        "weights": weights,
        "details": dict(info.details),
        "template": info.template,
        "template_options": dict(info.template_options),
        "stop": list(info.stop),
        "prompt": info.prompt,
        "image": {"size_px": image_spec.size_px, "geometry": image_spec.geometry}
        | ({"grids": [list(grid) for grid in image_spec.grids]} if image_spec.grids else {}),
    }
