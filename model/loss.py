"""The only place where labels are shifted: which positions predict what, and how wrong they are.

Shape legend: B rows, T positions, N supervised positions, H LLM width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from prismcap.data.schema import IGNORE_INDEX


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

    Only these positions pass through `lm_head`: with a large vocabulary the other logits would cost
    more time and memory than the rest of the model.
    """
    logits_NV: Tensor = lm_head(hidden_NH)
    num_correct = (logits_NV.detach().argmax(-1) == target_N).sum()
    return functional.cross_entropy(logits_NV.float(), target_N, reduction="sum"), num_correct
