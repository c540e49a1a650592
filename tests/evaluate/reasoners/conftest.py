"""A tiny LLaMA with random weights, in a folder as transformers saves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prismcap.data.fetch.tiny import make_tiny

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
# of 262 tokens, so that some texts end before the limit and others do not
ENDS = list(range(2, 262, 11))
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)

SaveModel = Callable[..., Path]


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Writes a model's folder; keyword arguments are of its config, model_type included."""
    tokenizer_folder = make_tiny(tmp_path_factory.mktemp("cache"), lambda _: None) / "tokenizer"

    def save(template: str | None = TEMPLATE, seed: int = 0, **sizes: Any) -> Path:
        folder = tmp_path_factory.mktemp("llm")
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        torch.manual_seed(seed)
        fixed = {"vocab_size": len(tokenizer), "pad_token_id": 0}
        config = AutoConfig.for_model(
            **{"model_type": "llama", **SIZES, "max_position_embeddings": 512, **sizes, **fixed}
        )
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = ENDS
        model.generation_config.repetition_penalty = 3.0  # a default of the model's, not to be obeyed
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_llm(save_model: SaveModel) -> Path:
    return save_model()


@pytest.fixture(autouse=True)
def own_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of files are remembered beside the test, and models are found where they are."""
    monkeypatch.setattr("prismcap.evaluate.local_models.cache_dir", lambda: tmp_path / "cache")
