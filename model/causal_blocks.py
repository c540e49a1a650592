"""Causal attention of whole samples in blocks of queries, by plain matrix products.

For CPUs: their fused kernel runs at a fraction of the rate of matrix products, backwards above all. Nothing
above the diagonal is computed but within a block, and only a block's scores are alive at a time; the backward
pass makes them again, as FlashAttention does (arXiv 2205.14135, section 3.1).

Shape legend: S samples, L length, A query heads, G key-value heads, R = A / G, F head size, Q queries of a
block, J keys that its last query may see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# few enough scores for a core's cache, enough rows for the rate of a product
BLOCK_TOKENS = 128


def block_bounds(length: int) -> Iterator[tuple[int, int]]:
    """First query of each block, and the one after its last."""
    for first in range(0, length, BLOCK_TOKENS):
        yield first, min(first + BLOCK_TOKENS, length)


def causal_attention(query_SALF: Tensor, key_SGLF: Tensor, value_SGLF: Tensor, scaling: float) -> Tensor:
    """[S, A, L, F]: every position attends to itself and those before it. Head a reads key head a // R."""
    # under autocast rotary positions may leave queries and keys in fp32
    dtype = value_SGLF.dtype
    mixed: Tensor = _CausalBlocks.apply(query_SALF.to(dtype), key_SGLF.to(dtype), value_SGLF, scaling)
    return mixed


class _CausalBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value)
        mixed = torch.empty_like(query)
        for first, end in block_bounds(query.shape[2]):
            weights = _weights(_fold(query[:, :, first:end], key), key[:, :, :end], first, scaling)
            mixed[:, :, first:end] = (weights @ value[:, :, :end]).view(query[:, :, first:end].shape)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        # LoRA may leave some of the three without anything that trains before them
        needed = ctx.needs_input_grad[: len(saved)]
        grads = [torch.zeros_like(part) if need else None for part, need in zip(saved, needed, strict=True)]
        for first, end in block_bounds(grad.shape[2]):
            _add_gradients(grads, *saved, grad, first, end, ctx.scaling)
        return (*grads, None)


def _add_gradients(
    grads: Sequence[Tensor | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad: Tensor,
    first: int,
    end: int,
    scaling: float,
) -> None:
    """What the block's queries add to the gradients of query, key and value (None: not asked for)."""
    grad_query, grad_key, grad_value = grads
    seen_key, seen_value = key[:, :, :end], value[:, :, :end]
    queries, grad_mixed = (_fold(part[:, :, first:end], key) for part in (query, grad))
    weights = _weights(queries, seen_key, first, scaling)
    if grad_value is not None:
        grad_value[:, :, :end] += weights.transpose(-1, -2) @ grad_mixed
    if grad_query is None and grad_key is None:
        return
    # through the softmax; in place, since these are the largest tensors here
    grad_scores = (grad_mixed @ seen_value.transpose(-1, -2)).mul_(weights)
    grad_scores -= weights.mul_(grad_scores.sum(-1, keepdim=True))
    grad_scores *= scaling
    if grad_query is not None:
        grad_query[:, :, first:end] = (grad_scores @ seen_key).view(query[:, :, first:end].shape)
    if grad_key is not None:
        grad_key[:, :, :end] += grad_scores.transpose(-1, -2) @ queries


def _fold(heads_SAQF: Tensor, key_SGLF: Tensor) -> Tensor:
    """[S, G, R * Q, F]: the query heads that share a key head, one below the other."""
    num_samples, num_groups = key_SGLF.shape[:2]
    return heads_SAQF.reshape(num_samples, num_groups, -1, heads_SAQF.shape[-1])


def _weights(queries_SGRF: Tensor, key_SGJF: Tensor, first: int, scaling: float) -> Tensor:
    """Softmax over the keys that each query may see: [S, G, R * Q, J], in the dtype of the queries."""
    scores = (queries_SGRF @ key_SGJF.transpose(-1, -2)).float().mul_(scaling)
    num_keys = key_SGJF.shape[2]
    num_queries = num_keys - first
    hidden_QQ = torch.ones(num_queries, num_queries, dtype=torch.bool, device=scores.device).triu_(1)
    by_query = scores.view(*scores.shape[:2], -1, num_queries, num_keys)
    by_query[..., first:].masked_fill_(hidden_QQ, float("-inf"))
    return torch.softmax(scores, dim=-1).to(queries_SGRF.dtype)
