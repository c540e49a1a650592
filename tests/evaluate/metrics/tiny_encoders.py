"""A CLIP, a SigLIP and a BERT with random weights and a tokenizer of bytes, as folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from prismcap.data.fetch.tiny import make_tiny

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDE_PX = 32
START, END = "<|im_start|>", "<|im_end|>"


def tokenizer(folder: Path, max_tokens: int) -> Any:
    """A token for each byte between START and END."""
    made = AutoTokenizer.from_pretrained(make_tiny(folder / "cache", lambda _: None) / "tokenizer")
    made.bos_token, made.eos_token = START, END
    made.model_max_length = max_tokens
    ids = [(token, made.convert_tokens_to_ids(token)) for token in (START, END)]
    made.backend_tokenizer.post_processor = TemplateProcessing(f"{START} $A {END}", special_tokens=ids)
    return made


def _filled(model: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            # far from 0: each token and each part of a picture must be seen in the vector
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.5))
    return model


def clip(folder: Path, seed: int = 14, max_tokens: int = 77) -> Path:
    """The seed: with it some of the tests' cosines are below 0 and others above."""
    made = tokenizer(folder, max_tokens)
    end = made.eos_token_id
    text = {**SIZES, "vocab_size": len(made), "max_position_embeddings": max_tokens}
    vision = {**SIZES, "image_size": SIDE_PX, "patch_size": 8}
    marks = {"eos_token_id": end, "bos_token_id": made.bos_token_id, "pad_token_id": made.pad_token_id}
    config = CLIPConfig(text_config={**text, **marks}, vision_config=vision, projection_dim=12)
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
    )
    return _save(_filled(CLIPModel(config), seed), CLIPProcessor(pictures, made), folder / "clip")


def siglip(folder: Path, seed: int = 32, max_tokens: int = 64) -> Path:
    """The seed: with it some of the tests' cosines are below 0 and others above."""
    made = tokenizer(folder, max_tokens)
    text = {**SIZES, "vocab_size": len(made), "max_position_embeddings": max_tokens, "projection_size": 16}
    vision = {**SIZES, "image_size": SIDE_PX, "patch_size": 8}
    config = SiglipConfig(text_config=text, vision_config=vision)
    pictures = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    return _save(_filled(SiglipModel(config), seed), SiglipProcessor(pictures, made), folder / "siglip")


def bert(folder: Path, seed: int = 0, max_tokens: int = 64) -> Path:
    made = tokenizer(folder, max_tokens)
    config = BertConfig(
        **{**SIZES, "num_hidden_layers": 3},
        vocab_size=len(made),
        max_position_embeddings=max_tokens,
        pad_token_id=made.pad_token_id,
    )
    return _save(_filled(BertModel(config), seed), made, folder / "bert")


def _save(model: Any, processor: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
