"""Image-text-to-text models of transformers with random weights, as folders that from_pretrained loads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 2048,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer_with(folder: Path, *tokens: str) -> Any:
    """The tokenizer of bytes of data/fetch/tiny.py, and these special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def _save(model: Any, processor: Any, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            # far from 0: the picture and each token must be seen in what is written
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.5))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava(folder: Path, tokenizer_folder: Path) -> Path:
    tokenizer = tokenizer_with(tokenizer_folder, "<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=32, patch_size=8),
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    pictures = _image_processor(
        "LlavaImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder)


def idefics3(folder: Path, tokenizer_folder: Path) -> Path:
    """SmolVLM's kind: pictures are cut into grids, so rows have different numbers of tiles."""
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = tokenizer_with(tokenizer_folder, *marks, *grid)
    config = Idefics3Config(
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    pictures = _image_processor(
        "Idefics3ImageProcessor", size={"longest_edge": 48}, max_image_size={"longest_edge": 16}
    )
    processor = Idefics3Processor(
        pictures, tokenizer, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    )
    return _save(Idefics3ForConditionalGeneration(config), processor, folder)


def qwen2_vl(folder: Path, tokenizer_folder: Path) -> Path:
    """Positions in three dimensions, and as many image tokens as the picture's size gives."""
    marks = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = tokenizer_with(tokenizer_folder, *marks)
    start, image, end, video = tokenizer.convert_tokens_to_ids(list(marks))
    text = {**copy.deepcopy(TEXT), "vocab_size": len(tokenizer)}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={"embed_dim": 16, "depth": 2, "num_heads": 2, "hidden_size": 32, "patch_size": 4},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    pictures = _image_processor("Qwen2VLImageProcessor", size=size, patch_size=4, merge_size=2)
    processor = Qwen2VLProcessor(
        pictures,
        tokenizer,
        _video_processor(),
        chat_template=TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _save(Qwen2VLForConditionalGeneration(config), processor, folder)


def _image_processor(name: str, **options: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**options)


def _video_processor() -> Any:
    from transformers import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor()


KINDS: dict[str, Callable[[Path, Path], Path]] = {"llava": llava, "idefics3": idefics3, "qwen2_vl": qwen2_vl}
