"""Each way to train a group, stopped between two checkpoints and resumed, is the uninterrupted run bit for
bit, and so is the model that is loaded from either."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prismcap.configs.schema.run import RunConfig
from prismcap.model.restore import load_trained
from prismcap.train.checkpoint import file_hash
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]
DORA = "lora: {rank: 2, dropout: 0.1, target_modules: all-linear, dora: true}"
KINDS = {
    "dora": f"{{connector: {{lr: 0.005, {DORA}}}, vision_encoder: {{lr: 0.01, {DORA}}}, "
    f"llm: {{lr: 0.01, {DORA}}}}}",
    "part": (
        '{connector: {lr: 0.005, only: ["layers.2.*"]}, '
        'vision_encoder: {lr: 0.01, layer_lr_decay: 0.5, only: ["tower.encoder.*", "*.patch_embedding.*"]}, '
        'llm: {lr: 0.01, layer_lr_decay: 0.9, only: ["*_proj.weight"]}}'
    ),
}
LEFT = ("instruct/final/weights.safetensors", "instruct/step-000006/optimizer.safetensors")


class Stop(Exception):
    pass


def stop(event: StepEvent) -> None:
    if (event.stage, event.step) == ("instruct", 5):
        raise Stop


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(make_config: Make, kind: str) -> None:
    overrides = [
        f"stages.instruct.train={KINDS[kind]}",
        "model.vision_encoder.config.num_hidden_layers=3",
        "stages.align.schedule.max_steps=1",
    ]
    whole = run_training(make_config("name=whole", *overrides))
    with pytest.raises(Stop):
        run_training(make_config("name=stopped", *overrides), callbacks=[stop])
    steps: list[int] = []
    stopped = run_training(
        make_config("name=stopped", *overrides),
        resume="auto",
        callbacks=[lambda event: steps.append(event.step)],
    )
    assert steps == [5, 6, 7], "it went on from the checkpoint of step 4"
    for name in LEFT:
        assert file_hash(stopped / name) == file_hash(whole / name), name
    before, _ = load_trained(whole, last_stage="align")
    states = [load_trained(folder)[0].state_dict() for folder in (whole, stopped)]
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    changed = [name for name, value in before.state_dict().items() if not value.equal(states[0][name])]
    assert changed, "the stage trained nothing"
