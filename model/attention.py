"""What the LLM's attention is handed for packed rows, so that no sample sees another.

Said in full for every batch: transformers infers packing from restarting positions only when the
batch has one row, and with more rows samples would see each other, silently.
Shape legend: B rows, T positions, L = B * T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from prismcap.data.schema import DataError
from prismcap.model.segment_attention import segment_attention, segment_groups

SEGMENTS = "segments"
FLATTENED = ("flash_attention_2", "flash_attention_3")


def register_segments() -> None:
    """Make "segments" known to transformers; its masks (for generation) are those of sdpa."""
    AttentionInterface.register(SEGMENTS, segment_attention)
    AttentionMaskInterface.register(SEGMENTS, sdpa_mask)


def is_flattened(implementation: str) -> bool:
    """Whether this attention takes all rows as one row of L positions with sequence lengths."""
    return implementation in FLATTENED


def attention_inputs(
    implementation: str,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    dtype: torch.dtype,
    compiled: bool = False,
) -> dict[str, Any]:
    """The keyword arguments for the LLM's base model.

    segments: no mask that anything reads; `segments` says where each sample lies. sdpa: boolean
    mask [B, 1, T, T], true where a position may look. eager: the same, additive in `dtype`. FlashAttention:
    rows flattened to [1, L], no mask, `cu_seq_lens_q/k` (int32, from 0 to L) and `max_length_q/k`.
    compiled: one group of segments, since each number of groups would be another program to compile.
    Under a mask, padding (segment 0) looks at earlier padding and itself, so that no row of the mask is
    empty (an empty softmax is NaN); nothing looks at padding.
    """
    if is_flattened(implementation):
        boundaries = sequence_boundaries(segment_ids_BT)
        longest = int(boundaries.diff().max())
        return {
            "attention_mask": None,
            "position_ids": position_ids_BT.reshape(1, -1),
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    if implementation == SEGMENTS:
        if not bool(segment_ids_BT.any()):
            # a rank without samples runs a row of padding: as a sample of its own, it goes the same way
            segment_ids_BT = torch.ones_like(segment_ids_BT)
        return {
            # four dimensions, or transformers would build a mask of [B, 1, T, T] from positions
            "attention_mask": segment_ids_BT.new_zeros(1, 1, 1, 1),
            "position_ids": position_ids_BT,
            "segments": segment_groups(segment_ids_BT, 0.0) if compiled else segment_groups(segment_ids_BT),
        }
    allowed_B1TT = block_diagonal_causal(segment_ids_BT)[:, None]
    if implementation == "sdpa":
        return {"attention_mask": allowed_B1TT, "position_ids": position_ids_BT}
    additive = torch.zeros(allowed_B1TT.shape, dtype=dtype, device=allowed_B1TT.device)
    additive.masked_fill_(~allowed_B1TT, torch.finfo(dtype).min)
    return {"attention_mask": additive, "position_ids": position_ids_BT}


def block_diagonal_causal(segment_ids_BT: Tensor) -> Tensor:
    """Boolean [B, T, T]: position i may look at j when both are of one segment and j <= i."""
    length = segment_ids_BT.shape[1]
    same = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids_BT.device).tril_()
    return same & causal


def sequence_boundaries(segment_ids_BT: Tensor) -> Tensor:
    """int32 [S + 1]: where each segment starts in the flattened rows, and L at the end."""
    starts = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    starts[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    first = starts.reshape(-1).nonzero().squeeze(1)
    end = first.new_tensor([segment_ids_BT.numel()])
    return torch.cat([first, end]).to(torch.int32)


def check_window(config: Any, row_tokens: int) -> None:
    """A model with sliding-window layers ignores its window when it is handed a mask of ours.

    Raises DataError when a row is longer than the window, where that would matter.
    """
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if "sliding_attention" in kinds and row_tokens > window:
        raise DataError(
            f"a row has {row_tokens} tokens, but {config.model_type} attends over a sliding window of "
            f"{window}: set batch.row_tokens and data.max_tokens to at most {window}"
        )
