"""Every recipe's tiny twin trains all its stages, resumes, exports, reloads and captions, and is its recipe
but for size and data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prismcap.configs.load import load_config, presets
from prismcap.configs.schema.run import RunConfig
from prismcap.data.encode import build_encoder
from prismcap.data.image import FileImage
from prismcap.data.schema import ImagePart, Message, TextPart
from prismcap.evaluate.inference import FeatureStore, Request, generate_texts, inference
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.hf.dry_run import compare
from prismcap.model.hf.files import read_marker
from prismcap.model.hf.load import load_exported
from prismcap.model.restore import load_trained
from prismcap.scripts.cli import cli
from prismcap.scripts.commands.caption import caption_batch
from prismcap.scripts.exporting import export_inputs
from prismcap.train.checkpoint import file_hash
from prismcap.train.fit import StepEvent
from prismcap.train.plan.recipes import recipe_names
from prismcap.train.run import run_training

STEPS, LAST_SAVED = 3, 2
NEW_TOKENS = 12
# a BLIP-2 and a model with its own code (a LLaVA is below); the others run with --slow
ALWAYS = {"minigpt4_7b", "mplug_owl_7b"}
TWINS = [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow]) for name in recipe_names()]
# a twin may have another size, other data and no GPU, and nothing else; keys by their ends
MAY_DIFFER = (
    ("model", "vision_encoder", "path"),
    ("model", "vision_encoder", "config"),
    ("model", "llm"),
    ("output_dir",),
    ("name",),
    ("num_threads",),
)
MAY_DIFFER_IN_CONNECTOR = {"path", "num_queries", "hidden", "layers", "heads", "intermediate"}
MAY_DIFFER_IN_STAGE = {
    ("data", "mix"),
    ("data", "max_tokens"),
    ("data", "max_text_tokens"),
    ("data", "num_workers"),
    ("batch", "samples_per_step"),
    ("batch", "row_tokens"),
    ("batch", "rows_per_micro_batch"),
    ("schedule", "epochs"),
    ("schedule", "max_steps"),
    ("schedule", "warmup_steps"),
    ("engine",),
    ("precision",),
    ("checkpoint", "every_steps"),
    ("train", "llm", "lora", "rank"),
    ("train", "llm", "lora", "alpha"),
    ("train", "llm", "lora", "quantize"),
    ("train", "vision_encoder", "only"),
}


def leaves(value: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(value, dict):
        return {at: value}
    return {key: item for part, below in value.items() for key, item in leaves(below, (*at, part)).items()}


def test_every_recipe_has_a_twin() -> None:
    twins = {name.removeprefix("recipes/tiny/") for name in presets() if name.startswith("recipes/tiny/")}
    assert twins == set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_twin_differs_in_size_and_data_alone(name: str) -> None:
    configs = [load_config(f"recipes/{name}"), load_config(f"recipes/tiny/{name}")]
    recipe, twin = (leaves(config.model_dump()) for config in configs)
    assert list(configs[0].stages) == list(configs[1].stages)
    for key in recipe.keys() | twin.keys():
        if recipe.get(key) == twin.get(key) or any(key[: len(start)] == start for start in MAY_DIFFER):
            continue
        if key[:2] == ("model", "connector"):
            assert key[2] in MAY_DIFFER_IN_CONNECTOR, key
        else:
            within = key[2:]
            assert any(within[: len(start)] == start for start in MAY_DIFFER_IN_STAGE), key
    for stages in zip(*(config.stages.values() for config in configs), strict=True):
        of_recipe, of_twin = ({item.name for item in stage.data.mix} for stage in stages)
        assert of_recipe == of_twin, "another source is another code path"


class Stop(Exception):
    pass


def stop_in(stage: str) -> Callable[[StepEvent], None]:
    def stop(event: StepEvent) -> None:
        if (event.stage, event.step) == (stage, STEPS):
            raise Stop

    return stop


def load_twin(name: str, folder: Path, run: str) -> RunConfig:
    return load_config(f"recipes/tiny/{name}", [f"output_dir={folder}", f"name={run}"])


def train_and_resume(name: str, folder: Path) -> Path:
    """A run that was stopped in its last stage, and resumed to the weights of one that was not."""
    whole = run_training(load_twin(name, folder, "whole"))
    config = load_twin(name, folder, "stopped")
    with pytest.raises(Stop):
        run_training(config, callbacks=[stop_in(list(config.stages)[-1])])
    steps: list[int] = []
    stopped = run_training(config, resume="auto", callbacks=[lambda event: steps.append(event.step)])
    assert steps == list(range(LAST_SAVED + 1, STEPS + 1))
    for stage in config.stages:
        weights = f"{stage}/final/weights.safetensors"
        assert file_hash(stopped / weights) == file_hash(whole / weights), stage
    return stopped


def check_trained(run: Path) -> None:
    """Every stage made its steps, and changed weights of every group that trains in it, and no others."""
    config = load_config(run / "config.yaml")
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for stage in config.stages:
        losses = {item["step"]: item["loss"] for item in records if item["stage"] == stage}
        assert losses.keys() == set(range(1, STEPS + 1)) and all(map(math.isfinite, losses.values()))
    before = build_captioner(config.model, seed=config.seed).state_dict()
    for stage, stage_config in config.stages.items():
        after = load_trained(run, last_stage=stage)[0].state_dict()
        changed = {key.partition(".")[0] for key, value in after.items() if not value.equal(before[key])}
        assert changed == set(stage_config.train), stage
        before = after


def own_captions(captioner: Captioner, config: RunConfig, pictures: list[FileImage]) -> list[str]:
    """What the training code says of each picture, asked as captioning asks."""
    stage = list(config.stages.values())[-1]
    spec, info = export_inputs(captioner, config)
    tokens = captioner.token_spec_of(stage.data)
    encoder = build_encoder(stage.template, captioner.tokenizer, tokens, stage.data.max_tokens)
    question = [Message("user", (ImagePart(0), TextPart(info.prompt)))]
    requests = [Request(encoder.encode_prompt(question, [picture])) for picture in pictures]
    with inference(captioner, "fp32"):
        store = FeatureStore(captioner, spec, batch_size=8)
        store.add(pictures)
        return generate_texts(
            captioner, requests, store, batch_size=8, max_new_tokens=NEW_TOKENS, stop=info.stop
        )


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_trains_resumes_exports_and_captions(name: str, tiny_data: Path, tmp_path: Path) -> None:
    run = train_and_resume(name, tmp_path)
    check_trained(run)
    done = CliRunner().invoke(cli, ["export", str(run)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    exported = load_exported(run / "model")
    captioner, config = load_trained(run)
    image_spec, info = export_inputs(captioner, config)
    assert compare(captioner, exported, info, image_spec) < 1e-4
    assert exported.prompt == load_config(f"recipes/{name}").prompt
    pictures = [FileImage(path, 10**6) for path in sorted((tiny_data / "images").iterdir())[:3]]
    images = [picture.load() for picture in pictures]
    assert caption_batch(exported, images, exported.prompt, NEW_TOKENS) == [
        text.strip() for text in own_captions(captioner, config, pictures)
    ]


def test_a_user_types_it(tiny_data: Path, tmp_path: Path) -> None:
    """With the doctor and the dry export before training."""
    name, run = "prismcaptioner_2b_paper", tmp_path / "prismcaptioner_2b_paper_tiny"
    command = ["train", f"recipes/tiny/{name}", f"output_dir={tmp_path}"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(cli, ["export", str(run)], catch_exceptions=False).exit_code == 0
    assert read_marker(run / "model")["format"] == "llava"
    out = tmp_path / "captions.jsonl"
    command = ["caption", str(run), str(tiny_data / "images"), "--limit", "2", "--max-new-tokens", "5"]
    done = CliRunner().invoke(cli, [*command, "--jsonl", str(out), "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(out.read_text().splitlines()) == 2
