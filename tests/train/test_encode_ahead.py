"""A frozen encoder that runs ahead of the micro-batches: losses and gradients as within, in fewer calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor

from prismcap.configs.schema.run import RunConfig
from prismcap.data.schema import Batch, DataError
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import prepare_stage
from prismcap.train import encode_ahead
from prismcap.train.distributed import Ranks
from prismcap.train.encode_ahead import with_features
from prismcap.train.engines import torch as torch_engine
from prismcap.train.engines.torch import TorchEngine
from prismcap.train.run import build_engine, stage_loader
from prismcap.train.step import AgreedStep, agree

Make = Callable[..., RunConfig]
FROZEN = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}}"
FULL = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}, vision_encoder: {lr: 0.01}}"
# two epochs at once: each of the 20 pictures comes in two samples, mostly of different micro-batches
TWICE = "stages.instruct.batch.samples_per_step=46"
NUM_PICTURES = 20


def parts(config: RunConfig) -> tuple[Captioner, list[Batch], TorchEngine]:
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    engine = build_engine(config, "instruct", captioner, 10, Ranks())
    assert isinstance(engine, TorchEngine)
    loader = stage_loader(config, "instruct", captioner, Ranks())
    return captioner, loader.load(0).micro_batches, engine


@contextmanager
def counted(captioner: Captioner) -> Iterator[list[int]]:
    """The tiles of every call of the encoder."""
    calls: list[int] = []
    handle = captioner.vision_encoder.register_forward_hook(lambda *passed: calls.append(len(passed[1][0])))
    yield calls
    handle.remove()


def loss_and_gradients(config: RunConfig) -> tuple[float, dict[str, Tensor], list[int]]:
    """Of the first step, and the tiles of every call of the encoder."""
    captioner, batches, engine = parts(config)
    found: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        for name, parameter in zip(engine.names, engine.parameters, strict=True):
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()

    handle = engine.optimizer.register_step_pre_hook(look)
    with counted(captioner) as calls:
        loss = engine.train_step(batches).loss
    handle.remove()
    return loss, found, calls


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Of a gradient, as a share of the largest value in it, or of a hundredth of the largest in any."""
    assert first.keys() == second.keys()
    floor = 1e-2 * max(float(value.abs().max()) for value in first.values())
    return max(
        float((value - second[name]).abs().max()) / max(float(value.abs().max()), floor)
        for name, value in first.items()
    )


def as_it_is(step: AgreedStep, *_: Any) -> AgreedStep:
    return step


def exchanged(step: AgreedStep, captioner: Captioner, device: torch.device) -> AgreedStep:
    """The planted fault: two micro-batches with each other's features."""
    batches = list(with_features(step, captioner, device).micro_batches)
    shapes = [None if batch.features is None else batch.features.shape for batch in batches]
    first, second = next(
        (i, j)
        for j in range(len(batches))
        for i in range(j)
        if shapes[i] is not None
        and shapes[i] == shapes[j]
        and not torch.equal(batches[i].features, batches[j].features)  # type: ignore[arg-type]
    )
    own = batches[first].features
    batches[first] = replace(batches[first], features=batches[second].features)
    batches[second] = replace(batches[second], features=own)
    return replace(step, micro_batches=tuple(batches))


def test_losses_and_gradients_are_as_without_in_fewer_calls(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(FROZEN, TWICE, "stages.instruct.optimizer.clip_norm=1.0e9")
    monkeypatch.setattr(encode_ahead, "ENCODED_AT_ONCE", 8)
    loss, gradients, calls = loss_and_gradients(config)
    assert calls == [8, 8, 4] and len(calls) == ceil(NUM_PICTURES / 8)
    with monkeypatch.context() as without:
        without.setattr(torch_engine, "with_features", as_it_is)
        expected, expected_gradients, calls = loss_and_gradients(config)
    assert len(calls) > 5 and sum(calls) > NUM_PICTURES, "no picture is in two micro-batches"
    assert loss == pytest.approx(expected, rel=1e-5)
    assert largest_difference(expected_gradients, gradients) < 1e-5
    monkeypatch.setattr(torch_engine, "with_features", exchanged)
    loss, gradients, _ = loss_and_gradients(config)
    assert loss != pytest.approx(expected, rel=1e-4)
    assert largest_difference(expected_gradients, gradients) > 1e-3


def test_thirty_two_pictures_go_through_at_once(make_config: Make) -> None:
    _, _, calls = loss_and_gradients(make_config(FROZEN, "stages.instruct.batch.samples_per_step=9"))
    assert len(calls) == 1


@pytest.mark.parametrize("how", ["trained", "gathered"])
def test_an_encoder_that_trains_or_is_gathered_is_left_to_the_micro_batches(
    make_config: Make, how: str
) -> None:
    captioner, batches, _ = parts(make_config(FULL if how == "trained" else FROZEN))
    captioner.always_encodes = how == "gathered"
    step = agree(batches, Ranks())
    with counted(captioner) as calls:
        assert with_features(step, captioner, torch.device("cpu")) is step
    assert not calls


def test_features_are_without_a_graph_and_text_stays_as_it_is(make_config: Make) -> None:
    captioner, batches, _ = parts(make_config(FROZEN, TWICE))
    text = agree([], Ranks(world_size=1)).micro_batches
    assert text == ()
    pictures = next(batch for batch in batches if batch.tiles is not None)
    alone = replace(
        pictures,
        tiles=None,
        spans=pictures.spans[:0],
        tile_image=pictures.tile_image[:0],
        sample_ids=("text",),
    )
    step = AgreedStep((alone, pictures, alone, pictures), 1)
    found = with_features(step, captioner, torch.device("cpu"))
    assert found.num_target_tokens == 1
    assert found.micro_batches[0] is alone and found.micro_batches[2] is alone
    assert pictures.tiles is not None, "the caller's own batch is not changed"
    expected = captioner.encode_images(pictures.tiles)
    for batch in (found.micro_batches[1], found.micro_batches[3]):
        assert batch.tiles is None and batch.features is not None
        assert not batch.features.requires_grad and batch.sample_ids == pictures.sample_ids
        torch.testing.assert_close(batch.features, expected, rtol=1e-5, atol=1e-6)
    with counted(captioner) as calls:
        only_text = with_features(AgreedStep((alone,), 1), captioner, torch.device("cpu"))
    assert only_text.micro_batches[0] is alone and not calls


def test_equal_tiles_of_one_micro_batch_stay_apart(make_config: Make) -> None:
    """A trial of the largest micro-batch has blank pictures: it must cost what real ones do."""
    captioner, batches, _ = parts(make_config(FROZEN))
    pictures = next(batch for batch in batches if batch.tiles is not None and len(batch.tiles) > 1)
    assert pictures.tiles is not None
    blank = replace(pictures, tiles=torch.zeros_like(pictures.tiles))
    with counted(captioner) as calls:
        with_features(AgreedStep((blank, blank), 1), captioner, torch.device("cpu"))
    assert sum(calls) == len(pictures.tiles)


def test_tiles_and_features_at_once_are_still_refused(make_config: Make) -> None:
    captioner, batches, engine = parts(make_config(FROZEN))
    pictures = next(batch for batch in batches if batch.tiles is not None)
    assert pictures.tiles is not None
    both = replace(pictures, features=captioner.encode_images(pictures.tiles))
    with pytest.raises(DataError, match="both tiles and features"):
        engine.train_step([both])


def test_bf16_runs_the_encoder_under_autocast(make_config: Make) -> None:
    captioner, batches, engine = parts(make_config(FROZEN, "stages.instruct.precision=bf16"))
    dtypes: set[torch.dtype] = set()
    linear = next(
        module for module in captioner.vision_encoder.modules() if isinstance(module, torch.nn.Linear)
    )
    linear.register_forward_hook(lambda *passed: dtypes.add(passed[2].dtype))
    engine.train_step(batches)
    assert dtypes == {torch.bfloat16}
