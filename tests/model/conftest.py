"""Tiny models and hand-made batches. The packing here is the tests' own, on purpose: the model is
tested without the data layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from prismcap.configs.schema.run import ModelConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, Encoded

VOCABULARY = 97
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class FakeImage:
    """Stands for a picture in Encoded.images; the tests hand the pixels over themselves."""

    name: str

    def load(self) -> Any:
        raise AssertionError("the model must not load pictures")

    def fingerprint(self) -> str:
        return self.name


@pytest.fixture
def model_config() -> Callable[..., ModelConfig]:
    """ModelConfig of a tiny captioner; keyword arguments replace whole components."""

    def make(**components: dict[str, Any]) -> ModelConfig:
        values: dict[str, Any] = {
            "vision_encoder": {"name": "siglip", "config": TOWER},
            "connector": {"name": "mlp"},
            "llm": {"name": "random", "config": LLAMA},
        }
        return ModelConfig.model_validate(values | components)

    return make


@pytest.fixture
def make_sample() -> Callable[..., Encoded]:
    """Random tokens: a prompt that opens with the pictures, then an answer that is supervised."""

    def make(
        name: str, num_images: int, tokens_per_image: int, prompt: int = 4, answer: int = 5, seed: int = 0
    ) -> Encoded:
        generator = torch.Generator().manual_seed(seed)
        length = 1 + num_images * tokens_per_image + prompt + answer
        input_ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        spans = tuple((i, 1 + i * tokens_per_image, tokens_per_image) for i in range(num_images))
        for _, start, size in spans:
            input_ids[start : start + size] = 0
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        labels[-answer:] = input_ids[-answer:]
        images = tuple(FakeImage(f"{name}-{i}") for i in range(num_images))
        return Encoded(id=name, input_ids=input_ids, labels=labels, images=images, spans=spans)

    return make


@pytest.fixture
def pack() -> Callable[..., Batch]:
    """Rows of samples to a Batch, right-padded to `length`; pictures in the order of the samples."""

    def make(
        rows: Sequence[Sequence[Encoded]],
        tiles: Tensor | None = None,
        length: int | None = None,
        features: Tensor | None = None,
    ) -> Batch:
        length = length or max(sum(len(sample) for sample in row) for row in rows)
        shape = (len(rows), length)
        batch = Batch(
            input_ids=torch.zeros(shape, dtype=torch.long),
            labels=torch.full(shape, IGNORE_INDEX),
            position_ids=torch.zeros(shape, dtype=torch.long),
            segment_ids=torch.zeros(shape, dtype=torch.long),
            spans=torch.zeros(0, 4, dtype=torch.long),
            tile_image=torch.zeros(0, dtype=torch.long),
            image_sizes=torch.zeros(0, 2, dtype=torch.long),
            tiles=tiles,
            features=features,
        )
        spans: list[tuple[int, int, int, int]] = []
        num_images = 0
        for row, samples in enumerate(rows):
            start = 0
            for segment, sample in enumerate(samples, start=1):
                part = slice(start, start + len(sample))
                batch.input_ids[row, part] = sample.input_ids
                batch.labels[row, part] = sample.labels
                batch.position_ids[row, part] = torch.arange(len(sample))
                batch.segment_ids[row, part] = segment
                spans += [(num_images + image, row, start + at, size) for image, at, size in sample.spans]
                num_images += len(sample.images)
                start += len(sample)
        batch.spans = torch.tensor(spans, dtype=torch.long).reshape(-1, 4)
        batch.tile_image = torch.arange(num_images)
        batch.image_sizes = torch.full((num_images, 2), 16)
        return batch

    return make


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> tuple[Path, Any]:
    """A GGUF file as llama.cpp's converter lays it out, fp32, and the LlamaForCausalLM that it holds."""
    import gguf

    config = LlamaConfig(**{**LLAMA, "vocab_size": 264, "tie_word_embeddings": True})
    model = LlamaForCausalLM(config).eval()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "re", "red"]
    tokens += [f"extra{i}" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["r e", "re d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        kind = name.split(".")[-2]
        if kind in heads:  # llama.cpp rotates neighbouring pairs, transformers the two halves
            half = config.head_dim // 2
            value = value.view(heads[kind], 2, half, -1).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model
