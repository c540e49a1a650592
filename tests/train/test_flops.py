"""Operations of a step: as many as torch's counter sees in a real one, and as a formula by hand says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prismcap.configs.schema.run import RunConfig
from prismcap.data.schema import Batch
from prismcap.model import loss as loss_module
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.lora import lora_modules
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.flops import BatchShape, FlopModel, shape_of
from prismcap.train.mfu import MfuMeter
from prismcap.train.run import stage_loader

Make = Callable[..., RunConfig]
LORA = "{{rank: 2, target_modules: [{}]}}"
QV = LORA.format("q_proj, v_proj")
TRAIN = {
    "align": "{connector: {lr: 0.01}}",
    "full": "{connector: {lr: 0.01}, llm: {lr: 0.01}}",
    "everything": "{connector: {lr: 0.01}, llm: {lr: 0.01}, vision_encoder: {lr: 0.01}}",
    "lora": f"{{connector: {{lr: 0.01}}, llm: {{lr: 0.01, lora: {QV}}}}}",
    # nothing before the first layer's query trains: no gradient goes further down
    "lora_alone": f"{{llm: {{lr: 0.01, lora: {QV}}}}}",
    "lora_of_mlp": f"{{llm: {{lr: 0.01, lora: {LORA.format('down_proj')}}}}}",
    "encoder_alone": "{vision_encoder: {lr: 0.01}}",
}
RESNET = "model.vision_encoder={name: timm, model: resnet10t, image_size: 32}"


def ready(config: RunConfig, *, checkpointing: bool = False) -> tuple[Captioner, list[Batch]]:
    captioner = build_captioner(config.model, seed=0)
    prepare_stage(captioner, config.stages["instruct"].train)
    if checkpointing:
        captioner.enable_gradient_checkpointing()
    batches = stage_loader(config, "instruct", captioner, Ranks()).load(0).micro_batches
    return captioner.train(), batches


def counted(captioner: Captioner, batch: Batch) -> float:
    """What torch sees; attention as products, since the CPU's fused kernel is unknown to its counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        captioner(batch).loss_sum.backward()
    return float(counter.get_total_flops())


def shown(*overrides: str) -> tuple[str, ...]:
    # samples of like lengths: then attention goes per sample, and not under a mask
    return ("stages.instruct.batch.samples_per_step=12", *overrides)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("train", TRAIN)
def test_executed_operations_are_those_that_torch_counts(
    make_config: Make, train: str, checkpointing: bool
) -> None:
    captioner, batches = ready(
        make_config(*shown(f"stages.instruct.train={TRAIN[train]}")), checkpointing=checkpointing
    )
    model = FlopModel.of(captioner)
    assert len(batches) > 2
    kinds = set()
    for batch in batches:
        shape = shape_of(batch)
        predicted = model.micro_batch(shape)
        assert predicted.total_executed == pytest.approx(counted(captioner, batch), rel=1e-9), shape
        kinds.add((len(shape.segments) > 1, shape.tiles > 0))
    assert (True, True) in kinds
    assert any(value > 0 for value in predicted.executed.values())


@pytest.mark.parametrize("implementation", ["eager", "segments"])
@pytest.mark.parametrize("shape", ["many_rows", "one_long_sample", "no_picture", "features"])
def test_every_kind_of_batch_is_counted(make_config: Make, implementation: str, shape: str) -> None:
    rows = 8 if shape == "many_rows" else 1
    config = make_config(
        *shown(f"stages.instruct.batch.rows_per_micro_batch={rows}"),
        "stages.instruct.batch.images_per_micro_batch=64",
        f"model.llm.attn_implementation={implementation}",
        f"stages.instruct.train={TRAIN['everything' if shape == 'no_picture' else 'full']}",
    )
    captioner, batches = ready(config)
    batch = batches[0]
    if shape == "one_long_sample":
        batch = replace(batch, segment_ids=torch.ones_like(batch.segment_ids))
    if shape == "no_picture":
        batch = replace(
            batch, tiles=None, tile_image=batch.tile_image[:0], image_sizes=batch.image_sizes[:0],
            spans=batch.spans[:0],
        )  # fmt: skip
    if shape == "features":
        with torch.no_grad():
            batch = replace(batch, features=captioner.encode_images(batch.tiles), tiles=None)
    predicted = FlopModel.of(captioner).micro_batch(shape_of(batch))
    assert predicted.total_executed == pytest.approx(counted(captioner, batch), rel=1e-9)


@pytest.mark.parametrize(
    "train", ["{connector: {lr: 0.01}}", "{connector: {lr: 0.01}, vision_encoder: {lr: 0.01}}"]
)
def test_convolutions_are_counted(make_config: Make, train: str) -> None:
    captioner, batches = ready(make_config(*shown(RESNET, f"stages.instruct.train={train}")))
    model = FlopModel.of(captioner)
    for batch in batches:
        assert model.micro_batch(shape_of(batch)).total_executed == pytest.approx(
            counted(captioner, batch), rel=1e-9
        )


def test_compiled_layers_attend_in_one_group(make_config: Make) -> None:
    captioner, batches = ready(make_config(*shown(f"stages.instruct.train={TRAIN['full']}")))
    model = FlopModel.of(captioner)
    captioner.compiled = True  # how samples are grouped; nothing is compiled here
    found = 0.0
    for batch in batches:
        predicted = replace(model, compiled=True).micro_batch(shape_of(batch)).total_executed
        assert predicted == pytest.approx(counted(captioner, batch), rel=1e-9)
        found += predicted - model.micro_batch(shape_of(batch)).total_executed
    assert found > 0  # or no batch has samples of unlike length, and nothing was tested


def test_a_head_in_chunks_is_run_once_more(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, batches = ready(make_config(*shown(f"stages.instruct.train={TRAIN['full']}")))
    model, shape = FlopModel.of(captioner), shape_of(batches[0])
    whole = model.micro_batch(shape)
    monkeypatch.setattr(loss_module, "LOGITS_CHUNK_BYTES", 4000)
    predicted = model.micro_batch(shape)
    assert predicted.total_executed == pytest.approx(counted(captioner, batches[0]), rel=1e-9)
    assert predicted.total_executed > whole.total_executed
    assert predicted.model == whole.model


def test_a_head_with_lora_is_counted(make_config: Make) -> None:
    lora = f"{{connector: {{lr: 0.01}}, llm: {{lr: 0.01, lora: {LORA.format('lm_head, q_proj')}}}}}"
    untied = "model.llm.config.tie_word_embeddings=false"
    captioner, batches = ready(make_config(*shown(f"stages.instruct.train={lora}", untied)))
    model = FlopModel.of(captioner)
    assert model.micro_batch(shape_of(batches[0])).total_executed == pytest.approx(
        counted(captioner, batches[0]), rel=1e-9
    )


def test_dora_counts_as_lora(make_config: Make) -> None:
    """What it adds is done once for each weight, and would else be counted for each position."""
    models = []
    for dora in ("false", "true"):
        train = f"{{connector: {{lr: 0.01}}, llm: {{lr: 0.01, lora: {{rank: 2, dora: {dora}}}}}}}"
        captioner, _ = ready(make_config(f"stages.instruct.train={train}"))
        models.append(FlopModel.of(captioner))
        variants = [len(module.lora_variant) for module in lora_modules(captioner).values()]
        assert variants == [int(dora == "true")] * 14, "afterwards they are as before"
    assert models[0] == models[1]


def test_model_operations_by_hand(make_config: Make) -> None:
    """The world's LLaMA: 2 layers, 32 wide, 4 heads of 8 (2 for keys and values), MLP of 48, 258 tokens."""
    captioner, _ = ready(make_config(f"stages.instruct.train={TRAIN['full']}"))
    shape = BatchShape(rows=2, row_tokens=40, segments=(30, 9, 33), targets=11, tiles=3)
    found = FlopModel.of(captioner).micro_batch(shape).model
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert found["llm"] == 6 * weights * (30 + 9 + 33)
    pairs = 30 * 31 // 2 + 9 * 10 // 2 + 33 * 34 // 2
    # two products forward and four backward, in each of 4 heads of 8 and 2 layers
    assert found["attention"] == 6 * 2 * 4 * 8 * 2 * pairs
    assert found["head"] == 6 * 32 * 258 * 11
    # 16 wide features to 32 and 32 to 32, four tokens a tile; the features want no gradient
    assert found["connector"] == 4 * 3 * (4 * 16 * 32 + 6 * 32 * 32)
    # one of the tower's two layers is run (hidden_states[-2]), forward only: patches of 8 x 8 x 3
    layer = 4 * 16 * 16 + 2 * 16 * 32
    assert found["vision_encoder"] == 3 * 2 * (4 * (192 * 16 + layer) + 2 * 4 * 4 * 16)


def test_frozen_parts_cost_less(make_config: Make) -> None:
    shape = BatchShape(rows=1, row_tokens=64, segments=(30, 34), targets=20, tiles=2)
    costs = {
        train: FlopModel.of(ready(make_config(f"stages.instruct.train={TRAIN[train]}"))[0]) for train in TRAIN
    }
    assert costs["align"].llm.model == pytest.approx(costs["full"].llm.model * 4 / 6)
    assert costs["align"].head.model == pytest.approx(costs["full"].head.model * 4 / 6)
    assert costs["lora_alone"].llm.model < costs["lora"].llm.model < costs["full"].llm.model
    assert costs["everything"].encoder.model > 2 * costs["full"].encoder.model
    cached = replace(shape, cached_features=True)
    assert costs["full"].micro_batch(cached).model["vision_encoder"] == 0


def test_padding_and_repeated_layers_are_executed_but_not_asked_for(make_config: Make) -> None:
    captioner, _ = ready(make_config(f"stages.instruct.train={TRAIN['full']}"))
    short = BatchShape(rows=1, row_tokens=64, segments=(30,), targets=20, tiles=2)
    model = FlopModel.of(captioner)
    captioner.enable_gradient_checkpointing()
    again = FlopModel.of(captioner)
    assert again.micro_batch(short).model == model.micro_batch(short).model
    assert again.llm.repeated > again.llm.forward / 2 and again.attention.repeated == again.attention.forward
    padded = model.micro_batch(short)
    assert padded.executed["llm"] * 30 == padded.model["llm"] * 64


def test_nothing_is_left_changed(make_config: Make) -> None:
    captioner, batches = ready(
        make_config(*shown(f"stages.instruct.train={TRAIN['lora']}")), checkpointing=True
    )
    captioner.connector.eval()
    state, modes = torch.get_rng_state(), [module.training for module in captioner.modules()]
    FlopModel.of(captioner)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in captioner.modules()] == modes
    assert captioner.llm.config._attn_implementation == "segments"
    assert captioner.llm.is_activation_checkpointing
    assert all(type(value) in (torch.nn.Parameter, torch.Tensor) for value in captioner.parameters())
    assert all(value.grad is None for value in captioner.parameters())
    captioner(batches[0]).loss_sum.backward()


def test_rotary_embeddings_that_look_at_positions_are_counted(make_config: Make) -> None:
    dynamic = "model.llm.config.rope_parameters={rope_type: dynamic, factor: 2.0, rope_theta: 10000.0}"
    train = f"stages.instruct.train={TRAIN['full']}"
    found = [FlopModel.of(ready(make_config(train, *more))[0]) for more in ([], [dynamic])]
    assert found[0] == found[1]


def test_weights_without_values_will_do(make_config: Make) -> None:
    captioner, batches = ready(make_config(f"stages.instruct.train={TRAIN['everything']}"))
    expected = FlopModel.of(captioner)
    assert FlopModel.of(captioner.to("meta")) == expected
    assert expected.micro_batch(shape_of(batches[0])).total_model > 0


def test_the_shape_of_a_batch(make_config: Make) -> None:
    _, batches = ready(make_config("stages.instruct.batch.rows_per_micro_batch=3"))
    shape = shape_of(batches[0])
    ids = batches[0].segment_ids
    expected = [int((row == s).sum()) for row in ids for s in range(1, int(row.max()) + 1)]
    assert list(shape.segments) == expected and sum(expected) == batches[0].num_tokens
    assert (shape.rows, shape.row_tokens) == ids.shape
    assert shape.targets == batches[0].num_target_tokens


def test_a_rank_without_samples_has_operations_but_none_that_count(make_config: Make) -> None:
    captioner, _ = ready(make_config(f"stages.instruct.train={TRAIN['full']}"))
    flops = FlopModel.of(captioner).micro_batch(
        BatchShape(rows=1, row_tokens=1, segments=(), targets=0, tiles=0)
    )
    assert flops.total_model == 0 < flops.total_executed


def test_a_model_that_cannot_be_counted_is_trained_without_mfu(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    captioner, _ = ready(config)

    def looks_at_values(features: Any) -> Any:
        return features * float(features.sum())

    monkeypatch.setattr(captioner.connector, "forward", looks_at_values)
    assert MfuMeter.of(captioner, config.stages["instruct"], Ranks()) is None
    assert "mfu is not logged" in caplog.text
