"""The only place where labels are shifted: which positions predict what, and how wrong they are.

Shape legend: B rows, T positions, N supervised positions, H LLM width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from prismcap.data.schema import IGNORE_INDEX

# Logits that are held at once, counted in fp32. More are made in chunks, and made again in the backward pass.
LOGITS_CHUNK_BYTES = 256 * 2**20
# The softmax works in fp32 on so much of a chunk at a time: on a CPU what its cache holds; elsewhere more,
# since a GPU wants few and large kernels.
_BLOCK_BYTES_CPU = 4 * 2**20
_BLOCK_BYTES = 64 * 2**20


def supervised_positions(labels_BT: Tensor, position_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices [N] into B*T of the positions that predict, and their target ids [N].

    Position t predicts the label of t + 1. The first token of a sample (position id 0) is never a
    target: what stands before it in the row is another sample.
    """
    target_BT = labels_BT[:, 1:]
    is_target = (target_BT != IGNORE_INDEX) & (position_ids_BT[:, 1:] > 0)
    row_N, column_N = is_target.nonzero(as_tuple=True)
    return row_N * labels_BT.shape[1] + column_N, target_BT[row_N, column_N]


def token_loss(hidden_NH: Tensor, target_N: Tensor, lm_head: nn.Module) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the N positions, a scalar in fp32 (0, with gradients, when N is 0), and at
    how many of them the likeliest token is the target, a long scalar.

    Only these positions pass through `lm_head` (a linear layer, plain or adapted): with a large vocabulary
    the other logits would cost more time and memory than the rest of the model. Backward works once.
    """
    with _running(lm_head, _chunked(lm_head.forward, num_chunks(len(target_N), _vocabulary(lm_head)))):
        # one call of the module, however many chunks: ZeRO-3 gathers the weight in its hooks, which every
        # rank must run equally often
        loss_sum, num_correct = lm_head(hidden_NH, target_N)
    return loss_sum, num_correct


def num_chunks(num_targets: int, vocabulary: int) -> int:
    """How many parts the supervised positions are cut into, as equal as can be; 1 when all logits fit."""
    return max(1, -(-num_targets * vocabulary * 4 // LOGITS_CHUNK_BYTES))


def _vocabulary(lm_head: Any) -> int:
    # not the weight's shape: under ZeRO-3 it is empty outside of the module's own call
    return int(lm_head.out_features)


def _chunked(head: Callable[[Tensor], Tensor], chunks: int) -> Callable[[Tensor, Tensor], Any]:
    """What takes the place of the head's forward: hidden [N, H] and targets [N] to loss and count."""

    def loss_of(hidden_NH: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        outcome: tuple[Tensor, Tensor] = _CrossEntropy.apply(head(hidden_NH), target_N)
        return outcome

    def forward(hidden_NH: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        if chunks == 1:
            return loss_of(hidden_NH, target_N)
        parts = zip(hidden_NH.tensor_split(chunks), target_N.tensor_split(chunks), strict=True)
        losses, counts = zip(
            *(checkpoint(loss_of, hidden, target, use_reentrant=False) for hidden, target in parts),
            strict=True,
        )
        return torch.stack(losses).sum(), torch.stack(counts).sum()

    return forward


@contextmanager
def _running(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of the module run `forward`, with the module's hooks around it."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


class _CrossEntropy(torch.autograd.Function):
    """Sum of cross entropies [N, V] -> scalar. The logits are overwritten by their gradient: nothing else
    reads them, and with a large vocabulary every further copy is the largest tensor of the step."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        loss_sum = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
        num_correct = torch.zeros((), dtype=torch.long, device=logits_NV.device)
        block_bytes = _BLOCK_BYTES_CPU if logits_NV.device.type == "cpu" else _BLOCK_BYTES
        block_rows = max(1, block_bytes // (4 * logits_NV.shape[1]))
        for logits, target in zip(logits_NV.split(block_rows), target_N.split(block_rows), strict=True):
            num_correct += (logits.argmax(-1) == target).sum()
            log_probability = logits.float().log_softmax(-1)
            loss_sum -= log_probability.gather(1, target[:, None]).sum()
            if ctx.needs_input_grad[0]:
                gradient = log_probability.exp_()
                gradient[torch.arange(len(target), device=target.device), target] -= 1.0
                logits.copy_(gradient)
        ctx.save_for_backward(logits_NV)
        ctx.mark_non_differentiable(num_correct)
        ctx.spent = False
        return loss_sum, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor, None]:
        if ctx.spent:
            raise RuntimeError("the loss was already differentiated once; its logits are gone")
        ctx.spent = True
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV.mul_(grad_loss), None
