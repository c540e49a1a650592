"""Our captioner against transformers' LlavaForConditionalGeneration with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, Encoded
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import prepare_stage, trainable_parameters

MakeConfig = Callable[..., ModelConfig]
MakeSample = Callable[..., Encoded]
Pack = Callable[..., Batch]
FAMILIES = ("siglip", "clip")
TOKENS = 16
IMAGE_TOKEN = 96


def pair(model_config: MakeConfig, family: str) -> tuple[Captioner, Any]:
    """Our captioner and transformers' model, with equal weights."""
    values = model_config()
    captioner = build_captioner(
        model_config(vision_encoder={"name": family, **values.vision_encoder.options})
    )
    tower, llm = captioner.vision_encoder.tower, captioner.llm
    config = LlavaConfig(
        vision_config=tower.config.to_dict(),
        text_config=llm.config.to_dict(),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if family == "clip" else "full",
        projector_hidden_act="gelu",
    )
    llava = LlavaForConditionalGeneration(config).eval()
    layers = captioner.connector.layers
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(llm.model.state_dict())
    llava.lm_head.load_state_dict(llm.lm_head.state_dict())
    llava.model.multi_modal_projector.linear_1.load_state_dict(layers[0].state_dict())
    llava.model.multi_modal_projector.linear_2.load_state_dict(layers[2].state_dict())
    return captioner, llava


def llava_inputs(samples: list[Encoded], tiles: Tensor) -> dict[str, Tensor]:
    """One right-padded row per sample, with the image token where a picture goes."""
    length = max(len(sample) for sample in samples)
    input_ids = torch.zeros(len(samples), length, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    mask = torch.zeros_like(input_ids)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = sample.input_ids
        labels[row, : len(sample)] = sample.labels
        mask[row, : len(sample)] = 1
        for _, start, size in sample.spans:
            input_ids[row, start : start + size] = IMAGE_TOKEN
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask, "pixel_values": tiles}


def two_samples(make_sample: MakeSample, seed: int) -> list[Encoded]:
    return [
        make_sample(f"{seed}a", 1, TOKENS, prompt=3, answer=4, seed=2 * seed),
        make_sample(f"{seed}b", 1, TOKENS, prompt=6, answer=7, seed=2 * seed + 1),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_are_llavas(
    model_config: MakeConfig, make_sample: MakeSample, pack: Pack, family: str
) -> None:
    captioner, llava = pair(model_config, family)
    samples, tiles = two_samples(make_sample, 0), torch.randn(2, 3, 16, 16)
    batch = pack([samples], tiles)  # ours: both in one row
    with torch.no_grad():
        expected = llava(**llava_inputs(samples, tiles), use_cache=False)
        logits, output = captioner.logits(batch)[0], captioner(batch)
    for row, sample in enumerate(samples):
        ours = logits[batch.segment_ids[0] == row + 1]
        torch.testing.assert_close(ours, expected.logits[row, : len(sample)], atol=1e-5, rtol=1e-5)
    loss = output.loss_sum / output.num_target_tokens
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def plant(captioner: Captioner, fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the captioner see other patches than it is given. A shifted mask is a matter of the batch."""
    encode = captioner.encode_images

    def faulty(tiles: Tensor) -> Tensor:
        features = encode(tiles).clone()
        if fault == "patch dropped":
            features[:, -1] = 0
        elif fault == "patches swapped":
            features[:, [0, 1]] = features[:, [1, 0]]
        elif fault == "tiles swapped":
            features = features.flip(0)
        return features

    monkeypatch.setattr(captioner, "encode_images", faulty)


@pytest.mark.parametrize("fault", ["patch dropped", "patches swapped", "tiles swapped", "mask shifted"])
def test_a_planted_fault_turns_parity_red(
    model_config: MakeConfig,
    make_sample: MakeSample,
    pack: Pack,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captioner, llava = pair(model_config, "siglip")
    samples, tiles = two_samples(make_sample, 0), torch.randn(2, 3, 16, 16)
    batch = pack([samples], tiles)
    plant(captioner, fault, monkeypatch)
    if fault == "mask shifted":
        batch.labels = batch.labels.roll(1, dims=1)
    with torch.no_grad():
        expected = llava(**llava_inputs(samples, tiles), use_cache=False).loss.item()
        output = captioner(batch)
    assert (output.loss_sum / output.num_target_tokens).item() != pytest.approx(expected, rel=1e-4)


def twenty_steps(
    captioner: Captioner, llava: Any, make_sample: MakeSample, pack: Pack, shift: int = 0
) -> tuple[list[float], list[float]]:
    """Train both alike: our losses and those of the plain loop. `shift`: by how much our mask is off."""
    prepare_stage(captioner, {"connector": GroupConfig(lr=1e-3), "llm": GroupConfig(lr=1e-3)})
    captioner.train()
    llava.train()
    llava.model.vision_tower.requires_grad_(False)
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}
    ours = torch.optim.AdamW(trainable_parameters(captioner).values(), **settings)
    theirs = torch.optim.AdamW([p for p in llava.parameters() if p.requires_grad], **settings)
    losses, expected_losses = [], []
    for step in range(20):
        samples, tiles = two_samples(make_sample, step % 5), torch.randn(2, 3, 16, 16)
        expected = llava(**llava_inputs(samples, tiles), use_cache=False).loss
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        batch = pack([samples], tiles)
        batch.labels = batch.labels.roll(shift, dims=1)
        output = captioner(batch)
        loss = output.loss_sum / output.num_target_tokens
        ours.zero_grad()
        loss.backward()
        ours.step()
        losses.append(loss.item())
        expected_losses.append(expected.item())
    return losses, expected_losses


@pytest.mark.parametrize(
    ("family", "fault"),
    [("siglip", None), ("clip", None), ("siglip", "mask shifted"), ("clip", "patch dropped")],
)
def test_twenty_steps_are_those_of_a_plain_loop(
    model_config: MakeConfig,
    make_sample: MakeSample,
    pack: Pack,
    family: str,
    fault: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same weights, same order: losses and weights stay equal to a loop over transformers' own loss."""
    captioner, llava = pair(model_config, family)
    plant(captioner, fault, monkeypatch)
    shift = 1 if fault == "mask shifted" else 0
    losses, expected_losses = twenty_steps(captioner, llava, make_sample, pack, shift)
    assert (losses == pytest.approx(expected_losses, rel=1e-4)) is (fault is None)
    if fault is not None:
        assert losses[-1] != pytest.approx(expected_losses[-1], rel=1e-3), "it does not heal either"
        return
    assert losses[-1] < losses[0] - 0.5  # it did learn
    projector = llava.model.multi_modal_projector
    torch.testing.assert_close(
        captioner.connector.layers[2].weight, projector.linear_2.weight, atol=1e-4, rtol=0
    )
    for name, value in captioner.llm.model.state_dict().items():
        other = llava.model.language_model.state_dict()[name]
        torch.testing.assert_close(
            value, other, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_overfits_one_batch(model_config: MakeConfig, make_sample: MakeSample, pack: Pack) -> None:
    """Only the pictures tell the two samples apart: a low loss means that they are seen."""
    captioner = build_captioner(model_config())
    answers = [make_sample("a", 1, TOKENS, 3, 4, seed=0), make_sample("b", 1, TOKENS, 3, 4, seed=0)]
    answers[1].input_ids[-4:] = torch.tensor([5, 6, 7, 8])
    answers[1].labels[-4:] = torch.tensor([5, 6, 7, 8])
    batch = pack([answers], torch.randn(2, 3, 16, 16))
    train = {"connector": GroupConfig(lr=3e-3), "llm": GroupConfig(lr=3e-3)}
    prepare_stage(captioner, train)
    captioner.train()
    optimizer = torch.optim.AdamW(trainable_parameters(captioner).values(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        output = captioner(batch)
        (output.loss_sum / output.num_target_tokens).backward()
        optimizer.step()
    assert output.loss_sum.item() / output.num_target_tokens < 0.01
    with torch.no_grad():
        batch.tiles = batch.tiles.flip(0) if batch.tiles is not None else None
        wrong = captioner(batch)
    assert wrong.loss_sum.item() / wrong.num_target_tokens > 0.5
