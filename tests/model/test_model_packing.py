"""Packed rows are as good as single samples, whatever attention runs; and disagreement is loud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, DataError, Encoded
from prismcap.model import captioner as captioner_module
from prismcap.model.attention import attention_inputs, check_window
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.loss import supervised_positions
from prismcap.model.trainable import prepare_stage

MakeConfig = Callable[..., ModelConfig]
MakeSample = Callable[..., Encoded]
Pack = Callable[..., Batch]
TOKENS = 16


@pytest.fixture
def captioner(model_config: MakeConfig) -> Captioner:
    return build_captioner(model_config())


@pytest.fixture
def samples(make_sample: MakeSample) -> list[Encoded]:
    shapes = [(1, 3, 4), (0, 5, 2), (2, 2, 6), (1, 7, 3), (0, 2, 2)]
    return [
        make_sample(f"s{i}", images, TOKENS, prompt=prompt, answer=answer, seed=i)
        for i, (images, prompt, answer) in enumerate(shapes)
    ]


TILES = 4


def tiles_of(samples: Sequence[Encoded], index: int, tiles: Tensor) -> Tensor | None:
    first = sum(len(sample.images) for sample in samples[:index])
    count = len(samples[index].images)
    return tiles[first : first + count] if count else None


def packed_and_single(
    captioner: Captioner, samples: list[Encoded], pack: Pack, change: Callable[[Batch], Batch] = lambda b: b
) -> tuple[list[Tensor], list[Tensor], float, float]:
    """Logits of each sample in the packed batch and alone, and the two summed losses."""
    tiles = torch.randn(TILES, 3, 16, 16)
    batch = change(pack([samples[:3], samples[3:]], tiles, length=90))
    with torch.no_grad():
        logits = captioner.logits(batch)
        loss = captioner(batch)
        packed, single, single_loss = [], [], 0.0
        for index, (row, segment) in enumerate([(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]):
            packed.append(logits[row, batch.segment_ids[row] == segment])
            alone = pack([[samples[index]]], tiles_of(samples, index, tiles))
            single.append(captioner.logits(alone)[0])
            single_loss += captioner(alone).loss_sum.item()
    assert loss.num_target_tokens == batch.num_target_tokens
    return packed, single, loss.loss_sum.item(), single_loss


@pytest.mark.parametrize("implementation", ["segments", "sdpa", "eager"])
@pytest.mark.parametrize("vision", ["siglip", "clip"])
def test_packed_equals_single(
    model_config: MakeConfig, samples: list[Encoded], pack: Pack, implementation: str, vision: str
) -> None:
    values = model_config()
    captioner = build_captioner(
        model_config(
            vision_encoder={"name": vision, **values.vision_encoder.options},
            llm={"name": "random", **values.llm.options, "attn_implementation": implementation},
        )
    )
    packed, single, loss, single_loss = packed_and_single(captioner, samples, pack)
    for ours, theirs in zip(packed, single, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert loss == pytest.approx(single_loss, rel=1e-5)


def _positions_run_on(batch: Batch) -> Batch:
    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids))


def test_a_planted_leak_is_caught(
    captioner: Captioner, samples: list[Encoded], pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = captioner_module.attention_inputs

    def leaking(implementation: str, position_ids: Tensor, segment_ids: Tensor, **_: Any) -> dict[str, Any]:
        return real(implementation, position_ids, (segment_ids > 0).long(), torch.float32)

    monkeypatch.setattr(captioner_module, "attention_inputs", leaking)
    packed, single, loss, single_loss = packed_and_single(captioner, samples, pack)
    assert (packed[1] - single[1]).abs().max() > 1e-2
    assert loss != pytest.approx(single_loss, rel=1e-5)
    # the first sample of a row has nothing before it: the check is not red for another reason
    torch.testing.assert_close(packed[0], single[0], atol=1e-5, rtol=1e-5)


def test_positions_that_run_on_are_caught(
    model_config: MakeConfig, samples: list[Encoded], pack: Pack
) -> None:
    """Rotary positions are relative and would hide it behind a right mask: GPT-2's are absolute."""
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    config = model_config(llm={"name": "random", "config": gpt2 | {"initializer_range": 0.3}})
    captioner = build_captioner(config)
    packed, single, _, _ = packed_and_single(captioner, samples, pack)
    for ours, theirs in zip(packed, single, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    packed, single, _, _ = packed_and_single(captioner, samples, pack, _positions_run_on)
    assert (packed[1] - single[1]).abs().max() > 1e-2


def test_the_first_token_of_a_sample_is_never_a_target(samples: list[Encoded], pack: Pack) -> None:
    # a label on the first token of a sample is a target only if positions do not restart
    labels = samples[1].labels.clone()
    labels[0] = samples[1].input_ids[0]
    marked = replace(samples[1], labels=labels)
    batch = pack([[samples[0], marked]])
    right = supervised_positions(batch.labels, batch.position_ids)[1]
    assert len(right) == batch.num_target_tokens == samples[0].num_target_tokens + marked.num_target_tokens
    wrong = _positions_run_on(batch)
    assert len(supervised_positions(wrong.labels, wrong.position_ids)[1]) == len(right) + 1


def test_flash_attention_is_handed_the_lengths_of_every_segment() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]])
    inputs = attention_inputs("flash_attention_2", positions, segments, torch.bfloat16)
    assert inputs["attention_mask"] is None
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 0, 1, 2, 3]]
    for side in ("q", "k"):
        lengths = inputs[f"cu_seq_lens_{side}"]
        assert lengths.dtype == torch.int32
        assert lengths.tolist() == [0, 3, 5, 6, 8, 12]
        assert inputs[f"max_length_{side}"] == 4


def test_flash_attention_rows_end_where_the_next_row_goes_on_with_the_same_number() -> None:
    segments = torch.ones(2, 3, dtype=torch.long)
    inputs = attention_inputs("flash_attention_2", segments, segments, torch.bfloat16)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 6]


def test_the_captioner_hands_flash_attention_one_row(
    captioner: Captioner, samples: list[Encoded], pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashAttention needs a GPU; here its stand-in attends per `cu_seq_lens`, over the one row."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: list[dict[str, Any]] = []

    def varlen(
        _: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kw: Any
    ) -> tuple[Tensor, None]:
        seen.append({"mask": attention_mask, "shape": query.shape, **kw})
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        bounds = kw["cu_seq_lens_q"].tolist()
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling
            )
            for a, b in pairwise(bounds)
        ]
        return torch.cat(parts, 2).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", varlen)
    batch = pack([samples[:3], samples[3:]], torch.randn(TILES, 3, 16, 16), length=90)
    with torch.no_grad():
        reference = captioner.logits(batch)
        monkeypatch.setattr(captioner.llm.config, "_attn_implementation_internal", "flash_attention_2")
        logits = captioner.logits(batch)
    assert len(seen) == 2  # layers
    assert seen[0]["mask"] is None and seen[0]["shape"][0] == 1 and seen[0]["shape"][2] == 180
    inside = batch.segment_ids > 0
    torch.testing.assert_close(logits[inside], reference[inside], atol=1e-5, rtol=1e-5)


def test_padding_makes_no_nan_and_no_difference(
    captioner: Captioner, samples: list[Encoded], pack: Pack
) -> None:
    tiles = torch.randn(1, 3, 16, 16)
    prepare_stage(captioner, {"connector": GroupConfig(lr=1e-3), "llm": GroupConfig(lr=1e-3)})
    losses = []
    for length in (None, 64):
        captioner.zero_grad()
        output = captioner(pack([[samples[0]]], tiles, length=length))
        output.loss_sum.backward()
        assert all(value.grad.isfinite().all() for value in captioner.parameters() if value.requires_grad)
        losses.append(output.loss_sum.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("train", [("connector",), ("vision_encoder", "connector", "llm")])
def test_a_batch_without_pictures_gives_zero_gradients_not_none(
    captioner: Captioner, samples: list[Encoded], pack: Pack, train: tuple[Any, ...]
) -> None:
    prepare_stage(captioner, {group: GroupConfig(lr=1e-3) for group in train})
    captioner.train()
    output = captioner(pack([[samples[1], samples[4]]]))
    output.loss_sum.backward()
    for name, value in captioner.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, name
            if not name.startswith("llm."):
                assert not value.grad.any(), name
    # and the dummy changes nothing
    plain = captioner.llm(samples[1].input_ids[None], labels=samples[1].labels[None], use_cache=False)
    alone = captioner(pack([[samples[1]]]))
    assert (alone.loss_sum / alone.num_target_tokens).item() == pytest.approx(plain.loss.item(), rel=1e-5)


@pytest.mark.parametrize("implementation", ["segments", "sdpa", "eager"])
def test_a_batch_of_padding_alone_trains_nothing_and_does_not_fail(
    model_config: MakeConfig, pack: Pack, implementation: str
) -> None:
    llm = model_config().llm.options | {"name": "random", "attn_implementation": implementation}
    captioner = build_captioner(model_config(llm=llm))
    prepare_stage(captioner, {"connector": GroupConfig(lr=1e-3), "llm": GroupConfig(lr=1e-3)})
    output = captioner(pack([[]], length=1))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0.0 and output.num_target_tokens == 0
    for name, value in captioner.named_parameters():
        if value.requires_grad:
            assert value.grad is not None and not value.grad.any(), name


def test_features_in_place_of_tiles(captioner: Captioner, samples: list[Encoded], pack: Pack) -> None:
    tiles = torch.randn(TILES, 3, 16, 16)
    with torch.no_grad():
        features = captioner.encode_images(tiles)
        from_tiles = captioner(pack([samples], tiles)).loss_sum
        from_features = captioner(pack([samples], features=features)).loss_sum
        swapped = captioner(pack([samples], features=features.flip(0))).loss_sum
    assert torch.equal(from_tiles, from_features)
    assert not torch.isclose(from_tiles, swapped, rtol=1e-4)


def test_an_image_of_several_tiles_and_an_image_in_several_spans(captioner: Captioner) -> None:
    """Image 0 has two tiles; image 1 has one, and is shown twice."""
    features = torch.randn(3, TOKENS, 16)
    input_ids = torch.randint(3, 90, (2, 40))
    batch = Batch(
        input_ids=input_ids,
        labels=torch.full_like(input_ids, IGNORE_INDEX),
        position_ids=torch.arange(40).repeat(2, 1),
        segment_ids=torch.ones_like(input_ids),
        spans=torch.tensor([[1, 1, 20, TOKENS], [0, 0, 2, 2 * TOKENS], [1, 1, 1, TOKENS]]),
        tile_image=torch.tensor([0, 0, 1]),
        image_sizes=torch.zeros(2, 2, dtype=torch.long),
        features=features,
    )
    with torch.no_grad():
        embedded = captioner.embed(batch)
        expected = captioner.llm.get_input_embeddings()(input_ids)
        tokens = captioner.connector(features)
        expected[0, 2 : 2 + 2 * TOKENS] = tokens[:2].flatten(0, 1)
        expected[1, 20 : 20 + TOKENS] = tokens[2]
        expected[1, 1 : 1 + TOKENS] = tokens[2]
    assert torch.equal(embedded, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": [[0, 0, 1, 15]]}, "its image has 16 tokens"),
        ({"spans": [[1, 0, 1, 16]]}, "lies outside 1 images"),
        ({"spans": [[0, 0, 20, 16]]}, "lies outside"),
        ({"spans": [[0, 2, 1, 16]]}, "lies outside"),
        ({"spans": [[0, 0, 1, 16], [0, 0, 3, 16]]}, "overlap"),
        ({"spans": [[0, 0, 8, 16]]}, "a label falls on an image token"),
        ({"tiles": None}, "neither tiles nor features"),
        ({"tiles": 2}, "2 tiles, but tile_image names 1"),
        ({"spans": []}, "no span that shows them"),
        ({"features": 1}, "both tiles and features"),
    ],
)
def test_disagreement_is_loud(
    captioner: Captioner, samples: list[Encoded], pack: Pack, change: dict[str, Any], message: str
) -> None:
    batch = pack([[samples[0]]], torch.zeros(1, 3, 16, 16))
    batch.sample_ids = ("s0",)
    if "spans" in change:
        batch.spans = torch.tensor(change["spans"], dtype=torch.long).reshape(-1, 4)
    if "tiles" in change:
        batch.tiles = None if change["tiles"] is None else torch.zeros(change["tiles"], 3, 16, 16)
    if "features" in change:
        batch.features = torch.zeros(1, 16, 16)
    with pytest.raises(DataError, match=message):
        captioner(batch)


def test_two_images_must_both_be_shown_in_order(
    captioner: Captioner, samples: list[Encoded], pack: Pack
) -> None:
    batch = pack([[samples[2]]], torch.zeros(2, 3, 16, 16))
    with pytest.raises(DataError, match="spans show only 1"):
        captioner(replace(batch, spans=batch.spans[:1]))
    with pytest.raises(DataError, match="must lie together"):
        captioner(replace(batch, tile_image=torch.tensor([1, 0])))


def test_a_sliding_window_shorter_than_a_row_is_refused() -> None:
    from transformers import MistralConfig, Qwen2Config

    check_window(MistralConfig(sliding_window=64), 64)
    with pytest.raises(DataError, match="sliding window of 64"):
        check_window(MistralConfig(sliding_window=64), 65)
    check_window(Qwen2Config(use_sliding_window=False, sliding_window=64), 65)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    model_config: MakeConfig, samples: list[Encoded], pack: Pack, checkpointing: bool
) -> None:
    gradients = []
    tiles = torch.randn(TILES, 3, 16, 16)
    for enabled in (False, checkpointing):
        captioner = build_captioner(model_config())
        prepare_stage(captioner, {"vision_encoder": GroupConfig(lr=1e-3), "connector": GroupConfig(lr=1e-3)})
        if enabled:
            captioner.enable_gradient_checkpointing()
            assert captioner.llm.is_activation_checkpointing
        captioner.train()
        captioner(pack([samples[:3], samples[3:]], tiles)).loss_sum.backward()
        gradients.append({n: p.grad for n, p in captioner.named_parameters() if p.requires_grad})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)
