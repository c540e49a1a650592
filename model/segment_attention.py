"""Attention per packed sample, for devices without a variable-length kernel.

A row of packed samples under one square mask pays for every pair of samples that may not see each
other. Here samples of like length are gathered to [S, L], attended causally, and put back. Short ones go
through two batched products: the CPU's flash kernel is slow backwards on them. Long ones go through that
kernel, which keeps no scores for the backward pass: those of one layer and one sample of 760 tokens are
21 MB at SmolLM2's 9 heads, kept twice.

Shape legend: B rows, T row length, S samples of a group, L the longest of them, A query heads, G key-value
heads, F head size, N tokens of a group, M tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prismcap.configs.errors import ConfigError

# what some models hand their attention besides, which changes its result
UNSUPPORTED = ("softcap", "s_aux")

# up to this length batched products are faster than the flash kernel, forward and backward
LONGEST_OF_PRODUCTS = 128
# the shortest of a group is at least so long, as a share of its longest: what it is padded to
LEAST_OF_LONGEST = 0.7


@dataclass(frozen=True)
class SegmentGroup:
    """Samples that are attended together: the token at flat position flat_N of [B * T] is at slot_N of
    [S * L]."""

    flat_N: Tensor
    slot_N: Tensor
    num_samples: int
    longest: int


def segment_groups(segment_ids_BT: Tensor, least_of_longest: float = LEAST_OF_LONGEST) -> list[SegmentGroup]:
    """Every sample of the batch in one of the groups, those of the longest first. Padding (segment 0) is in
    none. least_of_longest: 0 makes one group of all."""
    num_rows, row_length = segment_ids_BT.shape
    device = segment_ids_BT.device
    rows = torch.arange(num_rows, device=device)[:, None]
    key_BT = (rows * (row_length + 1) + segment_ids_BT).flatten()
    key, length = torch.unique_consecutive(key_BT, return_counts=True)
    start = length.cumsum(0) - length
    real = key % (row_length + 1) > 0
    length, order = length[real].sort(descending=True, stable=True)
    start = start[real][order]
    bounds = group_bounds(length.tolist(), least_of_longest)
    return [_group(start[first:end], length[first:end]) for first, end in pairwise(bounds)]


def group_bounds(lengths: Sequence[int], least_of_longest: float = LEAST_OF_LONGEST) -> list[int]:
    """Where groups begin among samples sorted by falling length, and where the last one ends."""
    bounds = [0] if lengths else []
    for i, length in enumerate(lengths):
        if length < least_of_longest * lengths[bounds[-1]]:
            bounds.append(i)
    return [*bounds, len(lengths)]


def _group(start_S: Tensor, length_S: Tensor) -> SegmentGroup:
    longest = int(length_S[0])
    offset_SL = torch.arange(longest, device=start_S.device).expand(len(start_S), -1)
    real_SL = offset_SL < length_S[:, None]
    slot_N = real_SL.flatten().nonzero().squeeze(1)
    return SegmentGroup((start_S[:, None] + offset_SL)[real_SL], slot_N, len(start_S), longest)


def segment_attention(
    module: torch.nn.Module,
    query_BATF: Tensor,
    key_BGTF: Tensor,
    value_BGTF: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    segments: Sequence[SegmentGroup] | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers' AttentionInterface. Returns ([B, T, A, F], None).

    Without `segments`, as in generation, it is SDPA with the mask.
    """
    for name in UNSUPPORTED:
        if others.get(name) is not None:
            raise ConfigError(
                f"this model's attention uses {name}: set model.llm.attn_implementation to eager"
            )
    if segments is None:
        plain: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query_BATF, key_BGTF, value_BGTF, attention_mask, dropout, scaling, **others
        )
        return plain
    num_rows, num_heads, row_length, head_size = query_BATF.shape
    scaling = head_size**-0.5 if scaling is None else scaling
    dropout = dropout if module.training else 0.0
    heads = [_by_token(heads) for heads in (query_BATF, key_BGTF, value_BGTF)]
    attended = []
    for group in segments:
        query, key, value = (_gather(part, group, head_size) for part in heads)
        attend = _by_products if group.longest <= LONGEST_OF_PRODUCTS else _by_kernel
        mixed = attend(query, key, value, scaling, dropout).transpose(1, 2)
        mixed = mixed.reshape(group.num_samples * group.longest, num_heads * head_size)
        attended.append(mixed.index_select(0, group.slot_N))
    flat_M = torch.cat([group.flat_N for group in segments])
    output = heads[0].new_zeros(num_rows * row_length, num_heads * head_size)
    output = output.index_copy(0, flat_M, torch.cat(attended))
    return output.view(num_rows, row_length, num_heads, head_size), None


def _by_token(heads_BHTF: Tensor) -> Tensor:
    return heads_BHTF.transpose(1, 2).flatten(2).flatten(0, 1)


def _gather(tokens: Tensor, group: SegmentGroup, head_size: int) -> Tensor:
    """[B * T, H * F] -> [S, H, L, F]."""
    # a copy by index has a gather as its gradient; indexing would have a slow scatter that adds
    slots = tokens.new_zeros(group.num_samples * group.longest, tokens.shape[1])
    slots = slots.index_copy(0, group.slot_N, tokens.index_select(0, group.flat_N))
    return slots.view(group.num_samples, group.longest, -1, head_size).transpose(1, 2)


def _by_products(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """Causal attention [S, A, L, F]: a padded slot sits behind its sample's tokens, so that the causal mask
    alone hides it from them."""
    num_samples, num_heads, longest, head_size = query.shape
    num_groups = key.shape[1]
    shared = num_heads // num_groups
    query = query.reshape(num_samples, num_groups, shared * longest, head_size)
    scores = (query @ key.transpose(-1, -2)).view(num_samples, num_groups, shared, longest, longest)
    hidden_LL = torch.ones(longest, longest, dtype=torch.bool, device=query.device).triu(1)
    scores = (scores.float() * scaling).masked_fill(hidden_LL, float("-inf"))
    weights = drop(torch.softmax(scores, dim=-1).to(value.dtype), dropout)
    mixed = weights.view(num_samples, num_groups, shared * longest, longest) @ value
    return mixed.view(num_samples, num_heads, longest, head_size)


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """The same, without keeping scores."""
    return scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
    )
