"""The torch engine in one process: the loss of a step, what it refuses, what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.data.loader import StepLoader
from prismcap.data.schema import IGNORE_INDEX, Batch
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner, Output
from prismcap.model.loss import supervised_positions
from prismcap.model.trainable import prepare_stage, trainable_state
from prismcap.train.distributed import Ranks
from prismcap.train.engines._contract import NonFiniteError
from prismcap.train.engines.torch import TorchEngine
from prismcap.train.run import build_engine, stage_loader

Make = Callable[..., RunConfig]
FULL = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}, vision_encoder: {lr: 0.01}}"
BIG = "stages.instruct.batch.rows_per_micro_batch=64"
MANY_IMAGES = "stages.instruct.batch.images_per_micro_batch=64"


def parts(
    config: RunConfig, stage: str = "instruct", steps: int = 10, thawed: str | None = None
) -> tuple[Captioner, StepLoader, TorchEngine]:
    """What a stage's steps need. `thawed`: a frozen weight let go, as a fault."""
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages[stage].train, seed=config.seed)
    if thawed is not None:
        captioner.get_parameter(thawed).requires_grad_(True)
    engine = build_engine(config, stage, captioner, steps, Ranks())
    assert isinstance(engine, TorchEngine)
    return captioner, stage_loader(config, stage, captioner, Ranks()), engine


def gradients(engine: TorchEngine, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """What the optimiser is handed (before clipping, which the test's config turns off)."""
    found: dict[str, torch.Tensor] = {}

    def look(*_: Any) -> None:
        for name, parameter in zip(engine.names, engine.parameters, strict=True):
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()

    handle = engine.optimizer.register_step_pre_hook(look)
    engine.train_step(batches)
    handle.remove()
    return found


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    # some gradients are zero but for rounding (the bias of a key): a floor under what they are held against
    floor = 1e-2 * max(float(value.abs().max()) for value in first.values())
    assert floor > 0
    return max(
        float((value - second[name]).abs().max()) / max(float(value.abs().max()), floor)
        for name, value in first.items()
    )


def test_big_batch_equals_uneven_micro_batches(make_config: Make) -> None:
    no_clip = "stages.instruct.optimizer.clip_norm=1.0e9"
    _, loader, engine = parts(make_config(FULL, BIG, MANY_IMAGES, no_clip))
    (big,) = loader.load(0).micro_batches
    expected = gradients(engine, [big])
    _, loader, engine = parts(make_config(FULL, no_clip))
    small = loader.load(0).micro_batches
    counts = [batch.num_target_tokens for batch in small]
    assert len(small) > 1
    assert len(set(counts)) > 1, "equal counts would hide a mean of means"
    assert sum(counts) == big.num_target_tokens
    assert largest_difference(expected, gradients(engine, small)) < 1e-4

    # the planted fault: each micro-batch's mean, averaged
    _, loader, engine = parts(make_config(FULL, no_clip))
    forward = engine.forward

    def mean_of_means(batch: Batch) -> Output:
        output = forward(batch)
        scale = sum(counts) / (len(counts) * output.num_target_tokens)
        return Output(output.loss_sum * scale, output.num_target_tokens, output.num_correct)

    engine.forward = mean_of_means
    assert largest_difference(expected, gradients(engine, small)) > 1e-2


def test_the_reported_loss_is_the_mean_over_tokens(make_config: Make) -> None:
    captioner, loader, engine = parts(make_config(FULL))
    batches = loader.load(0).micro_batches
    with torch.no_grad():
        outputs = [captioner(batch) for batch in batches]
    tokens = sum(output.num_target_tokens for output in outputs)
    expected = sum(float(output.loss_sum) for output in outputs) / tokens
    result = engine.train_step(batches)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.num_target_tokens == tokens


def test_the_reported_accuracy_is_the_share_of_tokens_that_are_the_likeliest(make_config: Make) -> None:
    captioner, loader, engine = parts(make_config(FULL))
    batches = loader.load(0).micro_batches
    for _ in range(5):
        engine.train_step(batches)
    right = tokens = 0
    for batch in batches:
        position_N, target_N = supervised_positions(batch.labels, batch.position_ids)
        with torch.no_grad():
            likeliest_N = captioner.logits(batch).flatten(0, 1)[position_N].argmax(-1)
        right += int((likeliest_N == target_N).sum())
        tokens += len(target_N)
    assert 0 < right < tokens
    assert engine.train_step(batches).accuracy == pytest.approx(right / tokens)


def test_a_parameter_that_nothing_reads_is_named_at_the_first_step(make_config: Make) -> None:
    config = make_config(FULL)
    captioner = build_captioner(config.model, seed=config.seed)
    captioner.connector.register_parameter("unread", torch.nn.Parameter(torch.zeros(1)))
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    engine = build_engine(config, "instruct", captioner, 10, Ranks())
    batches = stage_loader(config, "instruct", captioner, Ranks()).load(0).micro_batches
    with pytest.raises(ConfigError, match=r"1 parameters are to train, .*\(connector\.unread\)"):
        engine.train_step(batches)
    assert engine.step == 0


def test_clipping_bounds_the_step_and_reports_the_norm_before(make_config: Make) -> None:
    _, loader, engine = parts(make_config(FULL, "stages.instruct.optimizer.clip_norm=0.01"))
    batches = loader.load(0).micro_batches
    norms: list[float] = []
    engine.optimizer.register_step_pre_hook(
        lambda *_: norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in engine.parameters)))
    )
    assert engine.train_step(batches).grad_norm > 0.1
    assert norms == [pytest.approx(0.01, rel=1e-3)]


BASE = "llm.model.layers.0.self_attn.q_proj.base_layer.weight"


@pytest.mark.parametrize(("stage", "thawed"), [("align", None), ("instruct", None), ("instruct", BASE)])
def test_only_what_trains_changes(make_config: Make, stage: str, thawed: str | None) -> None:
    """With a planted fault: LoRA's base weight was not frozen."""
    captioner, loader, engine = parts(make_config(), stage, thawed=thawed)
    trains = set(trainable_state(captioner)) - {thawed}
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    for step in range(3):
        engine.train_step(loader.load(step).micro_batches)
    changed = {name for name, value in captioner.state_dict().items() if not torch.equal(value, before[name])}
    assert (changed == trains) is (thawed is None)
    assert changed - trains == {thawed} - {None}
    adapters = (".lora_A.", ".lora_B.") if stage == "instruct" else ()
    assert all(name.startswith("connector.") or any(part in name for part in adapters) for name in trains)


def test_a_weight_of_a_frozen_group_that_requires_a_gradient_is_refused(make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"llm\.model\.norm\.weight requires a gradient, but llm is not in"):
        parts(make_config(), "align", thawed="llm.model.norm.weight")


def test_one_batch_is_overfitted(make_config: Make) -> None:
    _, loader, engine = parts(make_config(FULL, "stages.instruct.schedule.name=constant"))
    batches = loader.load(0).micro_batches
    losses = [engine.train_step(batches).loss for _ in range(60)]
    assert losses[0] > 3
    assert losses[-1] < 0.05


def unsupervised(batch: Batch) -> Batch:
    batch.labels = torch.full_like(batch.labels, IGNORE_INDEX)
    return batch


@pytest.mark.parametrize("some", [True, False])
def test_a_step_without_supervised_tokens_is_skipped(make_config: Make, some: bool) -> None:
    captioner, loader, engine = parts(make_config(FULL))
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    result = engine.train_step(
        [unsupervised(batch) for batch in loader.load(0).micro_batches] if some else []
    )
    assert result.skipped
    assert engine.step == 1
    for name, value in captioner.state_dict().items():
        assert torch.equal(value, before[name]), name


def nan_loss(captioner: Captioner, output: Output) -> torch.Tensor:  # noqa: ARG001
    return output.loss_sum * math.nan


def infinite_gradient(captioner: Captioner, output: Output) -> torch.Tensor:
    # sqrt is 0 at 0, and infinitely steep there
    weight = next(captioner.connector.parameters()).flatten()[0]
    return output.loss_sum + (weight - weight.detach()).sqrt()


@pytest.mark.parametrize(
    ("fault", "what"),
    [(nan_loss, "the loss is not finite"), (infinite_gradient, "the gradient is not finite")],
)
def test_a_step_that_is_not_finite_never_reaches_the_weights(
    make_config: Make, fault: Any, what: str
) -> None:
    captioner, loader, engine = parts(make_config(FULL))
    batches = loader.load(0).micro_batches
    engine.train_step(batches)
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    moments = {p: {k: v.clone() for k, v in state.items()} for p, state in engine.optimizer.state.items()}
    forward = engine.forward
    bad = batches[1].sample_ids

    def broken(batch: Batch) -> Output:
        output = forward(batch)
        if batch.sample_ids == bad:
            output.loss_sum = fault(captioner, output)
        return output

    engine.forward = broken
    with pytest.raises(NonFiniteError, match=what) as caught:
        engine.train_step(batches)
    assert set(bad) <= set(caught.value.sample_ids)
    if fault is nan_loss:
        assert caught.value.sample_ids == bad
    assert engine.step == 1
    for name, value in captioner.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter, state in moments.items():
        for key, value in state.items():
            assert torch.equal(engine.optimizer.state[parameter][key], value)


def test_saved_and_loaded_goes_on_bit_for_bit(make_config: Make, tmp_path: Path) -> None:
    config = make_config(FULL)
    captioner, loader, engine = parts(config)
    for step in range(2):
        engine.train_step(loader.load(step).micro_batches)
    engine.save(tmp_path)
    captioner_2, _, engine_2 = parts(config)
    engine_2.load(tmp_path)
    assert engine_2.step == 2
    assert engine_2.learning_rates() == engine.learning_rates()
    for step in range(2, 4):
        batches = loader.load(step).micro_batches
        assert engine.train_step(batches) == engine_2.train_step(batches)
    for name, value in trainable_state(captioner).items():
        assert torch.equal(value, trainable_state(captioner_2)[name]), name


@pytest.mark.parametrize("setting", ["precision=bf16", "gradient_checkpointing=true"])
def test_precision_and_checkpointing_do_not_change_the_task(make_config: Make, setting: str) -> None:
    _, loader, engine = parts(make_config(FULL))
    batches = loader.load(0).micro_batches
    expected = engine.train_step(batches)
    config = make_config(FULL, f"stages.instruct.{setting}")
    captioner, _, engine = parts(config)
    if config.stages["instruct"].gradient_checkpointing:
        captioner.enable_gradient_checkpointing()
    found = engine.train_step(batches)
    tolerance = 1e-6 if "gradient" in setting else 0.02
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=max(tolerance * 5, 1e-5))
    assert (found.loss == expected.loss) == ("gradient" in setting)
    assert {value.dtype for value in captioner.parameters()} == {torch.float32}
    with engine.eval_context():
        assert not captioner.training
        assert not torch.is_grad_enabled()
    assert captioner.training
