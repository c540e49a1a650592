"""Planned activations against what torch's profiler sees a real pass allocate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import Batch
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.encode_ahead import with_features
from prismcap.train.plan.activations import LLM, LOGITS, VISION
from prismcap.train.plan.memory import Memory, StageMemory, held_features_bytes
from prismcap.train.plan.static import Sharding, StaticBytes
from prismcap.train.plan.worst_case import worst_batch
from prismcap.train.step import agree

MakeStage = Callable[..., StageConfig]
CONNECTOR = {"connector": {"lr": 1e-3}}
EVERYTHING = {"connector": {"lr": 1e-3}, "llm": {"lr": 1e-3}, "vision_encoder": {"lr": 1e-3}}
LORA = {"connector": {"lr": 1e-3}, "llm": {"lr": 1e-3, "lora": {"rank": 8}}}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "bf16": {"precision": "bf16"},
    "connector": {"train": CONNECTOR},
    "connector_bf16": {"train": CONNECTOR, "precision": "bf16"},
    "everything": {"train": EVERYTHING},
    "lora": {"train": LORA},
    "checkpointed": {"gradient_checkpointing": True},
    "cached": {"train": CONNECTOR, "feature_cache": True},
}


def real_captioner(model: ModelConfig, stage: StageConfig) -> Captioner:
    captioner = build_captioner(model)
    prepare_stage(captioner, stage.train)
    hold_frozen(captioner, stage.precision)
    if stage.gradient_checkpointing:
        captioner.enable_gradient_checkpointing()
    return captioner.train()


def copied(batch: Batch) -> Batch:
    return Batch(
        **{key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(batch).items()}
    )


def measured_peak_bytes(captioner: Captioner, batch: Batch, precision: str) -> int:
    """The allocator's own account of one forward and backward pass, the batch included."""
    for parameter in captioner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        own = copied(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = captioner(own).loss_sum
        loss.backward()
        del own
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        now += size
        peak = max(peak, now)
    assert peak > 0
    return peak


@pytest.mark.parametrize("case", CASES)
def test_planned_activations_are_those_of_a_real_pass(
    small_model: ModelConfig, make_stage: MakeStage, case: str
) -> None:
    stage = make_stage(**CASES[case])
    captioner = real_captioner(small_model, stage)
    batch = worst_batch(captioner, stage)
    measured_peak_bytes(captioner, batch, stage.precision)  # what is made once is not of the pass
    measured = measured_peak_bytes(captioner, batch, stage.precision)
    planned = StageMemory(small_model, stage).of(Sharding(None)).passing.total()
    assert planned == pytest.approx(measured, rel=0.10)


def test_memory_grows_with_rows_and_shrinks_with_checkpointing(
    small_model: ModelConfig, make_stage: MakeStage
) -> None:
    plain, checkpointed = (
        StageMemory(small_model, make_stage(gradient_checkpointing=on)) for on in (False, True)
    )
    two, four = (plain.of(Sharding(None), rows).passing[LLM] for rows in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.1)
    assert checkpointed.of(Sharding(None)).passing[LLM] < 0.6 * two


def test_parts_are_told_apart(small_model: ModelConfig, make_stage: MakeStage) -> None:
    def parts(**batch: int) -> Any:
        values = {"row_tokens": 256, "rows_per_micro_batch": 2, "images_per_micro_batch": 6} | batch
        stage = make_stage(batch=values, train=EVERYTHING)
        return StageMemory(small_model, stage).of(Sharding(None)).passing

    few, many = parts(images_per_micro_batch=1), parts(images_per_micro_batch=10)
    assert many[VISION] > 5 * few[VISION] > 0
    # pictures take the place of text: fewer positions are supervised
    assert 0 < many[LOGITS] < few[LOGITS]


def test_features_of_the_whole_step_are_held(small_model: ModelConfig, make_stage: MakeStage) -> None:
    """The plan against what encode_ahead makes of a step of several micro-batches, a picture a sample."""
    sizes = {"row_tokens": 128, "rows_per_micro_batch": 1, "images_per_micro_batch": 3}
    stage = make_stage(batch=sizes | {"samples_per_step": 12})
    captioner = real_captioner(small_model, stage)
    batches = [worst_batch(captioner, stage) for _ in range(4)]
    pictures = len(batches[0].spans)
    unlike = [
        replace(batch, tiles=torch.rand(pictures, *batch.tiles.shape[1:]))
        for batch in batches
        if batch.tiles is not None
    ]
    ahead = with_features(agree(unlike, Ranks()), captioner, captioner.device).micro_batches
    storages = {
        batch.features.untyped_storage().data_ptr(): batch.features.untyped_storage()
        for batch in ahead
        if batch.features is not None
    }
    made = sum(storage.nbytes() for storage in storages.values())
    assert held_features_bytes(captioner, stage, Sharding(None), pictures) == made * 3 // 4 > 0
    planned = StageMemory(small_model, stage)
    alone = StageMemory(small_model, make_stage(batch=sizes | {"samples_per_step": 3}))
    assert (
        planned.of(Sharding(None)).passing[VISION] - alone.of(Sharding(None)).passing[VISION] == made * 3 // 4
    )
    assert planned.of(Sharding(None, num_gpus=4)).passing == alone.of(Sharding(None)).passing
    cached = make_stage(batch=sizes | {"samples_per_step": 12}, feature_cache=True)
    assert held_features_bytes(captioner, cached, Sharding(None), pictures) == 0


@pytest.mark.parametrize("pictures", [0, 50, 400])
def test_the_search_finds_the_largest_micro_batch(
    small_model: ModelConfig, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch, pictures: int
) -> None:
    """Of a pass whose memory bends where the pictures are used up."""
    memory, alone = StageMemory(small_model, make_stage()), Sharding(None)
    tried: list[int] = []

    def of(_: StageMemory, __: Sharding, rows: int) -> Memory:
        tried.append(rows)
        taken = 7 * rows + pictures * min(rows, 6)
        return Memory(StaticBytes(100, 0, 0, 0), Counter({LLM: taken}))

    monkeypatch.setattr(StageMemory, "of", of)
    for rows in (1, 2, 5, 6, 7, 40, 255):
        tried.clear()
        assert memory.most_rows(alone, of(memory, alone, rows).total) == rows
        assert memory.most_rows(alone, of(memory, alone, rows).total - 1) == rows - 1
        assert len(tried) < 40


def test_the_largest_batch_is_a_batch(small_model: ModelConfig, make_stage: MakeStage) -> None:
    stage = make_stage()
    captioner = real_captioner(small_model, stage)
    batch = worst_batch(captioner, stage)
    assert batch.input_ids.shape == (2, 256) and batch.num_tokens == 512
    assert len(batch.tile_image) == 6 and batch.tiles is not None
    visual = 6 * captioner.connector.num_tokens
    # all text but the first token of each of the four samples
    assert batch.num_target_tokens == 512 - 4 - visual
    assert torch.isfinite(captioner(batch).loss_sum)
    without = worst_batch(captioner, make_stage(batch={"row_tokens": 128, "images_per_micro_batch": 1}))
    assert len(without.tile_image) == 1
    cached = worst_batch(captioner, make_stage(feature_cache=True, train=CONNECTOR))
    assert cached.tiles is None and cached.features is not None
    assert torch.isfinite(captioner(replace(cached, features=torch.randn_like(cached.features))).loss_sum)
