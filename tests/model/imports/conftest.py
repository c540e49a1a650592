"""Small random models as files, and what their imports must compute."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import make_blip2
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from prismcap.data.schema import Batch, Encoded
from prismcap.model.captioner import Captioner

sys.path.append(str(Path(__file__).parents[1] / "convert"))  # internlm2_files

MARKS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = len(MARKS) + 256
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},  # not the default
}
TOWER_CLASSES = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
}
PATCHES = 16


@torch.no_grad()
def shake(module: Any) -> Any:
    """Noise on every weight: no norm is one, no bias zero, and a mix-up of two is seen."""
    for parameter in module.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def write_tokenizer(folder: Path, extra: Sequence[str] = ()) -> None:
    """Marks, bytes, then `extra` tokens."""
    vocabulary = {token: i for i, token in enumerate([*MARKS, *sorted(ByteLevel.alphabet())])}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": [*MARKS[3:], *extra]})
    fast.save_pretrained(folder)


def write_weights(folder: Path, state: Mapping[str, Tensor], layout: str = "safetensors") -> None:
    """layout: safetensors or bin, alone or `sharded-`: every second name in the second file."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    parts = [names[::2], names[1::2]] if layout.startswith("sharded") else [names]
    stem, suffix = ("model", ".safetensors") if "safetensors" in layout else ("pytorch_model", ".bin")
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        place = f"{stem}{suffix}" if len(parts) == 1 else f"{stem}-{number:05d}-of-00002{suffix}"
        shard = {name: state[name].contiguous().clone() for name in part}
        if suffix == ".bin":
            torch.save(shard, folder / place)
        else:
            save_file(shard, folder / place, metadata={"format": "pt"})
        places |= dict.fromkeys(part, place)
    if len(parts) > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


def write_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, int]], rank: int = 3, alpha: int = 5, **config: Any
) -> dict[str, Tensor]:
    """A LoRA adapter of these layers ({name: (rows, columns)}). Returns what it adds to each."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    state: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    for name, (rows, columns) in shapes.items():
        down, up = 0.3 * torch.randn(rank, columns), 0.3 * torch.randn(rows, rank)
        state[f"base_model.model.{name}.lora_A.weight"] = down
        state[f"base_model.model.{name}.lora_B.weight"] = up
        deltas[name] = up @ down * alpha / rank
    save_file(state, folder / "adapter_model.safetensors")
    return deltas


def change_bin(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Read a file of torch.save's, change it, write it again."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


class Foreign:
    """Unpickling it would run code: it would make the file `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@dataclass(frozen=True)
class Tools:
    """The functions of this file, for test modules (which cannot import a conftest)."""

    tmp_path: Path
    make_sample: Callable[..., Encoded]
    pack: Callable[..., Batch]

    shake = staticmethod(shake)
    write_tokenizer = staticmethod(write_tokenizer)
    write_weights = staticmethod(write_weights)
    write_adapter = staticmethod(write_adapter)
    change_bin = staticmethod(change_bin)
    foreign = Foreign
    tower_config = TOWER
    llama_config = LLAMA
    vocabulary = VOCABULARY
    patches = PATCHES

    def llm(self, name: str = "base") -> tuple[Path, Any]:
        """A LLaMA's directory, tokenizer included, and the model."""
        model = shake(LlamaForCausalLM(LlamaConfig(**LLAMA)))
        folder = self.tmp_path / name
        model.save_pretrained(folder)
        write_tokenizer(folder)
        return folder, model

    def tower(self, family: str, name: str = "tower") -> tuple[Path, Any]:
        """A tower's directory, and the model."""
        model_class, config_class = TOWER_CLASSES[family]
        model = shake(model_class(config_class(**TOWER)))
        model.save_pretrained(self.tmp_path / name)
        return self.tmp_path / name, model

    def samples(self, num_tokens: int) -> tuple[list[Encoded], Tensor]:
        """Two samples of one picture each, and the pictures."""
        samples = [
            self.make_sample("a", 1, num_tokens, prompt=3, answer=4, seed=1),
            self.make_sample("b", 1, num_tokens, prompt=6, answer=7, seed=2),
        ]
        return samples, torch.randn(2, 3, TOWER["image_size"], TOWER["image_size"])

    def logits(self, captioner: Captioner, samples: list[Encoded], tiles: Tensor) -> list[Tensor]:
        """Ours of each sample: both in one row."""
        batch = self.pack([samples], tiles)
        with torch.no_grad():
            logits = captioner.logits(batch)[0]
        return [logits[batch.segment_ids[0] == row + 1] for row in range(len(samples))]

    def expected_logits(self, llm: Any, samples: list[Encoded], tokens_PNH: Tensor) -> list[Tensor]:
        """The LLM's, with these image tokens where a picture goes: each sample on its own."""
        result = []
        for sample, tokens in zip(samples, tokens_PNH, strict=True):
            embeddings = llm.get_input_embeddings()(sample.input_ids).clone()
            for _, start, size in sample.spans:
                embeddings[start : start + size] = tokens
            with torch.no_grad():
                result.append(llm(inputs_embeds=embeddings[None], use_cache=False).logits[0])
        return result


@pytest.fixture
def tools(tmp_path: Path, make_sample: Callable[..., Encoded], pack: Callable[..., Batch]) -> Tools:
    return Tools(tmp_path, make_sample, pack)


@pytest.fixture
def blip2(tools: Tools) -> Any:
    return make_blip2(tools)
