"""A tiny run with random weights, on scenes of coloured rectangles."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import prismcap.evaluate.run as module
from prismcap.configs.cache import cache_dir
from prismcap.configs.load import to_yaml
from prismcap.configs.schema.run import RunConfig
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.restore import load_trained
from prismcap.model.trainable import finish_stage, prepare_stage, trainable_state
from prismcap.model.weights import save_weights

TOKENIZER = "cache:models/smollm2-135m-instruct"
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn_scenes() -> Iterator[str]:
    """The dotted name of the tests' own source."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield "drawn_scenes_source.drawn"


def run_values(source: str, **evaluation: Any) -> dict[str, Any]:
    def stage(template: str, groups: dict[str, Any]) -> dict[str, Any]:
        return {
            "train": groups,
            "data": {"mix": [{"name": source}], "max_tokens": 128},
            "batch": {"row_tokens": 128},
            "template": {"name": template},
            "schedule": {"max_steps": 1},
            "precision": "fp32",
        }

    splits = {
        "unseen_pairs": {"source": {"name": source, "num_scenes": 60}, "num_items": 12},
        "unseen_stamps": {
            "source": {
                "name": source,
                "num_scenes": 40,
                "kinds": ["short"],
                "num_objects": [2],
                "unseen": True,
            },
            "num_items": 10,
        },
    }
    defaults = {"splits": splits, "caption_loss": {"align": "unseen_pairs"}}
    defaults |= {"batch_size": 16, "max_new_tokens": 6}
    return {
        "name": "tiny",
        "seed": 3,
        "model": {
            "vision_encoder": {"name": "siglip", "config": {**VISION, "image_size": 32, "patch_size": 8}},
            "connector": {"name": "patch_concat"},
            "llm": {"name": "random", "config": LLAMA, "tokenizer": TOKENIZER},
        },
        "stages": {
            "align": stage("plain", {"connector": {"lr": 1e-3}}),
            "instruct": stage("chatml", {"connector": {"lr": 1e-3}, "llm": {"lr": 1e-3}}),
        },
        "evaluation": defaults | evaluation,
    }


@pytest.fixture(scope="session")
def make_run(drawn_scenes: str) -> Callable[..., Path]:
    """Writes a finished run into a folder; keyword arguments replace keys of `evaluation`."""

    def make(folder: Path, tokenizer: str = TOKENIZER, **evaluation: Any) -> Path:
        if (
            tokenizer == TOKENIZER
            and not (cache_dir() / "models/smollm2-135m-instruct/tokenizer.json").is_file()
        ):
            pytest.skip("the SmolLM2 tokenizer is not fetched: prismcap fetch")
        values = run_values(drawn_scenes, **evaluation)
        values["model"]["llm"]["tokenizer"] = tokenizer
        config = RunConfig.model_validate(values)
        folder.mkdir()
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        captioner = build_captioner(config.model, seed=config.seed)
        generator = torch.Generator().manual_seed(0)
        for name, stage in config.stages.items():
            prepare_stage(captioner, stage.train, seed=config.seed)
            with torch.no_grad():
                # each stage leaves other weights behind
                for weight in trainable_state(captioner).values():
                    weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
            (folder / name / "final").mkdir(parents=True)
            save_weights(folder / name / "final" / "weights.safetensors", trainable_state(captioner))
            finish_stage(captioner)
        return folder

    return make


@pytest.fixture
def loaded_once(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a module's run `measured` have its weights: load them from that one, once."""

    def load(_run_dir: Path, device: str, last_stage: str | None = None) -> tuple[Captioner, RunConfig]:
        return _loaded(measured, device, last_stage)

    monkeypatch.setattr(module, "load_trained", load)


@functools.cache
def _loaded(run: Path, device: str, last_stage: str | None) -> tuple[Captioner, RunConfig]:
    return load_trained(run, device, last_stage)
