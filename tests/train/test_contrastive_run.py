"""A contrastive stage on the engine of all others: it learns, resumes, is handed on, and is looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.model.build import build_captioner
from prismcap.model.hf.dry_run import dry_run
from prismcap.model.restore import load_trained
from prismcap.model.weights import load_weights
from prismcap.scripts.cli import cli
from prismcap.scripts.exporting import export_inputs
from prismcap.train.checkpoint import file_hash
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]
CONTRAST = {
    "train": {
        "vision_encoder": {"lr": 3e-3, "weight_decay": 0.1},
        "text_tower": {
            "lr": 3e-3,
            "sizes": {
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "max_text_tokens": 32,
            },
        },
    },
    "template": {"name": "plain"},
    "schedule": {"max_steps": 5},
    "batch": {"samples_per_step": 8, "packing": False, "rows_per_micro_batch": 8},
}


@pytest.fixture(scope="module")
def contrastive(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a contrastive stage before the others, which have two steps each."""
    values = json.loads((world / "config.yaml").read_text())
    stages = values["stages"]
    for stage in stages.values():
        stage["schedule"] = {"max_steps": 2}
    contrast = stages["align"] | CONTRAST
    # three of the 23 rows have no picture
    contrast["data"] = contrast["data"] | {"max_tokens": 32, "max_rejected_share": 0.5}
    values["stages"] = {"contrast": contrast, **stages}
    path = tmp_path_factory.mktemp("contrastive") / "config.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def make(contrastive: Path, tmp_path: Path) -> Make:
    def made(*overrides: str) -> RunConfig:
        return load_config(contrastive, [f"output_dir={tmp_path}", *overrides])

    return made


def records(run_dir: Path, stage: str = "contrast") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [record for record in found if record["stage"] == stage]


class Stop(Exception):
    pass


def stop(event: StepEvent) -> None:
    if (event.stage, event.step) == ("contrast", 3):
        raise Stop


def test_resumed_is_uninterrupted(make: Make) -> None:
    whole = run_training(make("name=whole"))
    with pytest.raises(Stop):
        run_training(make("name=stopped"), callbacks=[stop])
    steps: list[tuple[str, int]] = []
    stopped = run_training(
        make("name=stopped"), resume="auto", callbacks=[lambda event: steps.append((event.stage, event.step))]
    )
    assert steps[:3] == [("contrast", 3), ("contrast", 4), ("contrast", 5)], (
        "on from the checkpoint of step 2"
    )
    left = ("contrast/final/weights", "contrast/step-000004/weights", "contrast/step-000004/optimizer")
    for name in (*left, "align/final/weights", "instruct/final/weights"):
        assert file_hash(stopped / f"{name}.safetensors") == file_hash(whole / f"{name}.safetensors"), name
    saved = load_weights(whole / "contrast/final/weights.safetensors")
    assert any(name.startswith("text_tower.tower.") for name in saved)
    assert {"text_tower.logit_scale", "text_tower.logit_bias"} < saved.keys()
    assert [record["mfu"] for record in records(whole)] == [None] * 5


def test_the_encoder_is_handed_on_without_the_text_tower(make: Make) -> None:
    run_dir = run_training(make())
    saved = load_weights(run_dir / "contrast/final/weights.safetensors")
    captioner, config = load_trained(run_dir)
    assert captioner.text_tower is None
    state = captioner.state_dict()
    assert not any(name.startswith("text_tower.") for name in state)
    own = {name: value for name, value in saved.items() if name.startswith("vision_encoder.")}
    assert own and all(state[name].equal(value) for name, value in own.items())
    before = load_trained(run_training(make("name=other", "stages.contrast.schedule.max_steps=1")))[
        0
    ].state_dict()
    assert all(not before[name].equal(value) for name, value in own.items() if value.ndim > 1)
    # what it saw while training, it is
    image_spec, info = export_inputs(captioner, config)
    assert dry_run(captioner, image_spec=image_spec, info=info, format="llava") < 1e-4


def test_a_last_stage_that_is_contrastive_is_no_captioner(make: Make) -> None:
    config = make("stages.align=null", "stages.instruct=null")
    captioner = build_captioner(config.model)
    with pytest.raises(ConfigError, match=r"stages\.contrast: the last stage is contrastive"):
        export_inputs(captioner, config)
    splits = "evaluation.splits={unseen: {source: {name: scenes, num_scenes: 4}}}"
    with pytest.raises(ConfigError, match=r"caption_loss\.contrast: a contrastive stage writes no captions"):
        make(splits, "evaluation.caption_loss={contrast: unseen}")


def test_it_learns_to_tell_pairs_apart(make: Make) -> None:
    shorter = ["stages.align=null", "stages.instruct=null", "stages.contrast.checkpoint={}"]
    run_dir = run_training(make("stages.contrast.schedule={max_steps: 60, warmup_ratio: 0.1}", *shorter))
    found = records(run_dir)
    assert found[0]["loss"] == pytest.approx(10.0, abs=2.5), "where SigLIP starts"
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    right = [record["accuracy/token"] for record in found]
    assert sum(right[:5]) / 5 < 0.5 < 0.8 < sum(right[-5:]) / 5
    # pairs, and not tokens; some samples of a step have no picture
    assert max(record["supervised_tokens"] for record in found) == 8
    assert found[-1]["rejected"].keys() == {"not_a_pair"}


@pytest.mark.slow
def test_two_ranks_compare_their_own_pairs(
    contrastive: Path, world: Path, tmp_path: Path, torchrun: Any
) -> None:
    """As one rank does with micro-batches of half the size. An odd number would not be halved alike."""
    rows = json.loads((world / "rows.json").read_text())
    (tmp_path / "pairs.json").write_text(json.dumps([row for row in rows if "image" in row]))
    mix = f"stages.contrast.data.mix=[{{name: llava_json, path: {tmp_path}/pairs.json, image_root: {world}}}]"
    overrides = [f"output_dir={tmp_path}", "stages.instruct=null", "stages.align=null", mix]
    module = ["-m", "prismcap.scripts.train", str(contrastive)]
    torchrun(2, *module, *overrides, "name=two", "--no-dry-export", "--no-doctor")
    halves = "stages.contrast.batch.rows_per_micro_batch=4"
    one = run_training(load_config(contrastive, [*overrides, "name=one", halves]))
    whole = run_training(load_config(contrastive, [*overrides, "name=whole"]))
    for key in ("loss", "grad_norm"):
        found = {
            name: [record[key] for record in records(tmp_path / name)] for name in ("two", "one", "whole")
        }
        assert found["two"] == pytest.approx(found["one"], rel=1e-4), key
        assert found["two"] != pytest.approx(found["whole"], rel=1e-2), key
    assert one.name == "one" and whole.name == "whole"


def test_doctor_and_plan_know_it(contrastive: Path, tmp_path: Path) -> None:
    def prismcap(*arguments: str) -> str:
        done = CliRunner().invoke(
            cli,
            [arguments[0], str(contrastive), f"output_dir={tmp_path}", *arguments[1:]],
            catch_exceptions=False,
        )
        assert done.exit_code == 0, done.output
        return done.output

    said = prismcap("doctor")
    assert " 0 errors" in said
    for words in (
        "contrast: pairs of a picture and a text; there is no mask to check",
        "contrast: text_tower trains",
        "contrast: vision_encoder trains",
        "contrast: the loss of 3 pairs is",
        "contrast: gradient norm of text_tower",
        "contrast: the largest micro-batch (8 x 32 tokens, 8 pictures) ran",
        "align: vision_encoder is frozen",
    ):
        assert words in said, words
    assert "align: text_tower" not in said
    pairs, _, others = said.partition("align: ")
    assert (
        len(re.findall(r": a picture compared with \d+ tokens of text\n +<picture 1>⟦.+\n +⟧$", pairs, re.M))
        == 3
    )
    assert "supervised" not in pairs and " supervised" in others
    planned = prismcap("plan", "--num-gpus", "1")
    assert "8 pairs a micro-batch" in planned and "text_tower" in planned
    assert "time: not counted for contrastive stages" in planned
    pairs, _, others = planned.partition("stage align")
    assert (
        "most pairs that fit" in pairs and "rows" not in pairs and "ZeRO" not in pairs and "torch*" in pairs
    )
    assert "most rows that fit" in others and "ZeRO-3" in others


def test_the_page_shows_pairs_as_pairs(contrastive: Path, tmp_path: Path) -> None:
    for stage in ("contrast", "instruct"):
        out = tmp_path / f"{stage}.html"
        done = CliRunner().invoke(
            cli, ["data", "inspect", str(contrastive), "--stage", stage, "--out", str(out)]
        )
        assert done.exit_code == 0, done.output
    page = (tmp_path / "contrast.html").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"a pair of a picture and (\d+) tokens of text", page)]
    compared = re.findall(r'<span class="compared" title="(\d+) tokens">', page)
    assert numbers and numbers == [int(number) for number in compared]
    assert "supervised" not in page and 'class="trained"' not in page and "carry the loss" not in page
    page = (tmp_path / "instruct.html").read_text(encoding="utf-8")
    assert "supervised" in page and 'class="compared"' not in page and "carry the loss" in page


def test_memory_of_the_stage_is_counted_as_it_is(make: Make) -> None:
    """Shapes alone count what real tensors take."""
    from prismcap.model.build import build_captioner
    from prismcap.model.trainable import prepare_stage
    from prismcap.train.plan.activations import activation_bytes
    from prismcap.train.plan.memory import StageMemory
    from prismcap.train.plan.static import Sharding
    from prismcap.train.plan.worst_case import worst_batch

    config = make()
    stage = config.stages["contrast"]
    captioner = build_captioner(config.model)
    prepare_stage(captioner, stage.train)
    real = activation_bytes(captioner, worst_batch(captioner, stage), "fp32")
    planned = StageMemory(config.model, stage).of(Sharding(None))
    assert planned.passing == real
    trained = sum(value.numel() for value in captioner.parameters() if value.requires_grad)
    assert planned.static.optimizer == pytest.approx(8 * trained, rel=0.05)
    assert torch.is_grad_enabled()
