"""Attention per sample equals attention under the block-diagonal mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prismcap.configs.errors import ConfigError
from prismcap.model.attention import attention_inputs, register_segments
from prismcap.model.segment_attention import segment_attention, segment_index

# three rows of 17; the first: samples of many lengths, a full row, a row that begins with a new sample at
# once. Padded to the longest, its samples would take more room than a mask; the second's take less.
PACKINGS = {"mask": [[3, 1, 7, 4], [17], [5, 5, 1]], "segments": [[3, 1, 4, 5], [5, 5, 5], [5, 2, 1]]}


def packed_ids(packing: str = "mask") -> tuple[Tensor, Tensor]:
    rows = PACKINGS[packing]
    segment_ids, position_ids = torch.zeros(3, 17, dtype=torch.long), torch.zeros(3, 17, dtype=torch.long)
    for row, lengths in enumerate(rows):
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


@pytest.mark.parametrize("packing", PACKINGS)
def test_equal_to_the_block_diagonal_mask_forward_and_backward(packing: str) -> None:
    segment_ids, position_ids = packed_ids(packing)
    masked, masked_grad, segments, segments_grad = outputs_and_gradients(
        segment_ids, position_ids, segment_ids
    )
    torch.testing.assert_close(segments, masked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(segments_grad, masked_grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_smaller_of_mask_and_segments_is_handed_over(packing: str) -> None:
    segment_ids, position_ids = packed_ids(packing)
    inputs = attention_inputs("segments", position_ids, segment_ids, torch.float32)
    assert ("segments" in inputs) == (packing == "segments")
    assert inputs["attention_mask"].shape == ((1, 1, 1, 1) if packing == "segments" else (3, 1, 17, 17))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_leak_between_two_samples_is_seen(packing: str) -> None:
    segment_ids, position_ids = packed_ids(packing)
    leaking = segment_ids.clone()
    leaking[0, 3:4] = 1  # the second sample joins the first
    masked, _, segments, _ = outputs_and_gradients(segment_ids, position_ids, leaking)
    assert (segments - masked).abs().max() > 1e-3


def test_the_index_gives_every_token_a_slot_of_its_own() -> None:
    segment_ids, _ = packed_ids()
    index = segment_index(segment_ids)
    assert (index.num_samples, index.longest) == (8, 17)
    assert index.flat_N.tolist() == segment_ids.flatten().nonzero().squeeze(1).tolist()
    assert len(index.slot_N.unique()) == len(index.slot_N)


def test_attention_that_does_more_is_refused() -> None:
    heads = torch.randn(1, 2, 3, 4)
    with pytest.raises(ConfigError, match="eager"):
        segment_attention(torch.nn.Module(), heads, heads, heads, None, 1.0, softcap=30.0)
