"""Attention per sample equals attention under the block-diagonal mask."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prismcap.configs.errors import ConfigError
from prismcap.model import segment_attention as module
from prismcap.model.attention import attention_inputs, register_segments
from prismcap.model.segment_attention import group_bounds, segment_attention, segment_groups

# three rows of 17: samples of many lengths, a full row, a row that begins with a new sample at once
ROWS = [[3, 1, 7, 4], [17], [5, 5, 1]]
# up to which length products are taken: never, for some of the groups, always
WAYS = {"kernel": 0, "both": 5, "products": 128}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "LONGEST_OF_PRODUCTS", WAYS[request.param])
    return str(request.param)


def packed_ids() -> tuple[Tensor, Tensor]:
    segment_ids, position_ids = torch.zeros(3, 17, dtype=torch.long), torch.zeros(3, 17, dtype=torch.long)
    for row, lengths in enumerate(ROWS):
        start = 0
        for number, length in enumerate(lengths, start=1):
            segment_ids[row, start : start + length] = number
            position_ids[row, start : start + length] = torch.arange(length)
            start += length
    return segment_ids, position_ids


def hidden(implementation: str, embeddings: Tensor, segment_ids: Tensor, position_ids: Tensor) -> Tensor:
    register_segments()
    config = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    inputs = attention_inputs(implementation, position_ids, segment_ids, embeddings.dtype)
    output: Tensor = model.model(inputs_embeds=embeddings, use_cache=False, **inputs).last_hidden_state
    return output


def outputs_and_gradients(segment_ids: Tensor, position_ids: Tensor, handed: Tensor) -> list[Tensor]:
    embeddings = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(1))
    real = segment_ids > 0
    found = []
    for implementation, ids in (("eager", segment_ids), ("segments", handed)):
        leaf = embeddings.clone().requires_grad_()
        output = hidden(implementation, leaf, ids, position_ids)
        output[real].square().sum().backward()
        assert leaf.grad is not None
        found += [output[real].detach(), leaf.grad[real]]
    return found


@pytest.mark.usefixtures("way")
def test_equal_to_the_block_diagonal_mask_forward_and_backward() -> None:
    segment_ids, position_ids = packed_ids()
    masked, masked_grad, segments, segments_grad = outputs_and_gradients(
        segment_ids, position_ids, segment_ids
    )
    torch.testing.assert_close(segments, masked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(segments_grad, masked_grad, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("way")
def test_a_leak_between_two_samples_is_seen() -> None:
    segment_ids, position_ids = packed_ids()
    leaking = segment_ids.clone()
    leaking[0, 3:4] = 1  # the second sample joins the first
    masked, _, segments, _ = outputs_and_gradients(segment_ids, position_ids, leaking)
    assert (segments - masked).abs().max() > 1e-3


def test_no_mask_over_rows_is_made() -> None:
    segment_ids, position_ids = packed_ids()
    inputs = attention_inputs("segments", position_ids, segment_ids, torch.float32)
    assert inputs["attention_mask"].shape == (1, 1, 1, 1)


def test_the_groups_hold_every_token_once_in_a_slot_of_its_own() -> None:
    segment_ids, _ = packed_ids()
    groups = segment_groups(segment_ids)
    assert [(group.num_samples, group.longest) for group in groups] == [(1, 17), (3, 7), (2, 4), (2, 1)]
    flat = torch.cat([group.flat_N for group in groups])
    assert flat.sort().values.tolist() == segment_ids.flatten().nonzero().squeeze(1).tolist()
    for group in groups:
        sample, offset = group.slot_N // group.longest, group.slot_N % group.longest
        assert len(group.slot_N.unique()) == len(group.slot_N)
        for i in range(group.num_samples):
            # the tokens of one sample, in their order, from the first slot on
            own = group.flat_N[sample == i]
            assert own.diff().eq(1).all() and offset[sample == i].tolist() == list(range(len(own)))
            assert len(segment_ids.flatten()[own].unique()) == 1


@pytest.mark.parametrize("seed", range(3))
def test_no_sample_is_padded_by_much(seed: int) -> None:
    lengths = torch.randint(1, 900, (60,), generator=torch.Generator().manual_seed(seed)).tolist()
    lengths.sort(reverse=True)
    bounds = group_bounds(lengths)
    assert (bounds[0], bounds[-1]) == (0, 60)
    for first, end in pairwise(bounds):
        assert lengths[end - 1] >= 0.7 * lengths[first]
        assert end == 60 or lengths[end] < 0.7 * lengths[first]
    assert group_bounds([]) == [0]


def test_attention_that_does_more_is_refused() -> None:
    heads = torch.randn(1, 2, 3, 4)
    with pytest.raises(ConfigError, match="eager"):
        segment_attention(torch.nn.Module(), heads, heads, heads, None, 1.0, softcap=30.0)
