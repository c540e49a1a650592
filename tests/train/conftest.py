"""A tiny run: random SigLIP tower, MLP, two-layer LLaMA, a byte tokenizer, 23 rows with pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.train.run import run_training

WORKERS = Path(__file__).parent / "workers"
NUM_ROWS = 23
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer, pictures, rows.json and config.yaml of the tiny run."""
    folder = tmp_path_factory.mktemp("world")
    write_tokenizer(folder / "tokenizer")
    write_rows(folder)
    data = {"mix": [{"name": "llava_json", "path": str(folder / "rows.json")}], "num_workers": 0}
    batch = {"samples_per_step": 6, "row_tokens": 96, "rows_per_micro_batch": 1, "images_per_micro_batch": 4}
    stage = {
        "data": data | {"max_tokens": 96},
        "batch": batch,
        "precision": "fp32",
        "checkpoint": {"every_steps": 2},
    }
    config = {
        "name": "tiny",
        "seed": 3,
        "num_threads": 1,
        "model": {
            "vision_encoder": {"name": "siglip", "config": TOWER},
            "connector": {"name": "mlp"},
            "llm": {"name": "random", "config": LLAMA, "tokenizer": str(folder / "tokenizer")},
        },
        "stages": {
            "align": stage
            | {
                "train": {"connector": {"lr": 1e-2}},
                "template": {"name": "plain"},
                "schedule": {"max_steps": 4},
            },
            "instruct": stage
            | {
                # dropout: a resumed run must also have the random state right
                "train": {
                    "connector": {"lr": 5e-3},
                    "llm": {
                        "lr": 1e-2,
                        "lora": {"rank": 2, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
                    },
                },
                "template": {"name": "chatml"},
                "schedule": {"max_steps": 7, "name": "linear", "warmup_ratio": 0.2},
            },
        },
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML too
    return folder


def write_tokenizer(folder: Path) -> None:
    """Bytes, and the marks of chatml."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """Answers of very different lengths, so that supervised counts are uneven; two rows without picture."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(NUM_ROWS):
        row: dict[str, Any] = {"id": f"row{i}"}
        question = "Say it."
        if i % 9 != 4:
            pixels = torch.randint(0, 256, (12 + i % 5, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
            row["image"] = f"{i}.png"
            question = f"<image>\n{question}"
        answer = "abcdefgh"[i % 8] * (1 + (i * 7) % 23)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append(row | {"conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))


@pytest.fixture
def make_config(world: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The tiny run, writing into this test's folder, with overrides."""

    def make(*overrides: str) -> RunConfig:
        return load_config(world / "config.yaml", [f"output_dir={tmp_path / 'runs'}", *overrides])

    return make


Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Starts Python with arguments, in a process of its own with one thread, and expects its exit code."""

    def start(*arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return start


@pytest.fixture(scope="session")
def torchrun(launch: Launch) -> Launch:
    """Starts a script of workers/, or a module (`-m`), on several ranks and a free port."""

    def start(processes: int, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        first, *rest = arguments
        script = first if first == "-m" else str(WORKERS / first)
        return launch(*launcher, script, *rest, expect=expect)

    return start


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, not to be changed."""
    config = load_config(world / "config.yaml", [f"output_dir={tmp_path_factory.mktemp('finished')}"])
    return run_training(config)
