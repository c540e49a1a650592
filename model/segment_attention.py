"""Attention per packed sample, for devices without a variable-length kernel.

A row of packed samples under one square mask pays for every pair of samples that may not see each
other, and the CPU's flash kernel is slow backwards on short sequences. Here the samples of the batch
are gathered to [S, L] (S samples, L the longest), attended causally with two batched products, and
put back. In a profile of full training on samples of 45 tokens, SDPA took 30% of a step.

Shape legend: B rows, T row length, S samples, L longest sample, A query heads, G key-value heads,
F head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prismcap.configs.errors import ConfigError

# what some models hand their attention besides, which changes its result
UNSUPPORTED = ("softcap", "s_aux")


@dataclass(frozen=True)
class SegmentIndex:
    """Where the samples of a packed batch lie: the token at flat position flat_N of [B * T] is at slot_N
    of [S * L]. Padding (segment 0) has no slot."""

    flat_N: Tensor
    slot_N: Tensor
    num_samples: int
    longest: int


def segment_index(segment_ids_BT: Tensor) -> SegmentIndex:
    """The index of every sample of the batch."""
    num_rows, row_length = segment_ids_BT.shape
    rows = torch.arange(num_rows, device=segment_ids_BT.device)[:, None]
    key_N = (rows * (row_length + 1) + segment_ids_BT).flatten()
    flat_N = segment_ids_BT.flatten().nonzero().squeeze(1)
    _, sample_N, lengths_S = torch.unique_consecutive(key_N[flat_N], return_inverse=True, return_counts=True)
    starts_S = lengths_S.cumsum(0) - lengths_S
    offset_N = torch.arange(len(flat_N), device=flat_N.device) - starts_S[sample_N]
    longest = int(lengths_S.max()) if len(lengths_S) else 0
    return SegmentIndex(flat_N, sample_N * longest + offset_N, len(lengths_S), longest)


def segment_attention(
    module: torch.nn.Module,
    query_BATF: Tensor,
    key_BGTF: Tensor,
    value_BGTF: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    segments: SegmentIndex | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers' AttentionInterface. Returns ([B, T, A, F], None).

    Without `segments`, as in generation and for batches that a mask suits better, it is SDPA with the mask.
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
    num_groups = key_BGTF.shape[1]
    num_samples, longest = segments.num_samples, segments.longest
    shared = num_heads // num_groups
    if scaling is None:
        scaling = head_size**-0.5

    def gather(heads_BHTF: Tensor) -> Tensor:
        flat = heads_BHTF.transpose(1, 2).reshape(num_rows * row_length, -1)
        # a copy by index has a gather as its gradient; indexing would have a slow scatter that adds
        slots = flat.new_zeros(num_samples * longest, flat.shape[1])
        slots = slots.index_copy(0, segments.slot_N, flat.index_select(0, segments.flat_N))
        return slots.view(num_samples, longest, -1, head_size).transpose(1, 2)

    query = gather(query_BATF).reshape(num_samples, num_groups, shared * longest, head_size)
    key, value = gather(key_BGTF), gather(value_BGTF)
    scores = (query @ key.transpose(-1, -2)).view(num_samples, num_groups, shared, longest, longest)
    # a padded slot sits behind its sample's tokens, so the causal mask alone hides it from them
    hidden_LL = torch.ones(longest, longest, dtype=torch.bool, device=query.device).triu(1)
    scores = (scores.float() * scaling).masked_fill(hidden_LL, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    mixed = weights.view(num_samples, num_groups, shared * longest, longest) @ value
    mixed = mixed.view(num_samples, num_heads, longest, head_size).transpose(1, 2)
    mixed = mixed.reshape(num_samples * longest, num_heads * head_size)
    output = mixed.new_zeros(num_rows * row_length, num_heads * head_size)
    output = output.index_copy(0, segments.flat_N, mixed.index_select(0, segments.slot_N))
    return output.view(num_rows, row_length, num_heads, head_size), None
