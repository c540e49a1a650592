"""The loss of each sample on its own: what tells whether a picture helps to predict its caption.

Shape legend: B samples, T positions, N supervised positions, H LLM width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from prismcap.data.pack import collate
from prismcap.data.schema import Encoded
from prismcap.evaluate.inference import FeatureStore, Progress, no_progress
from prismcap.model.captioner import Captioner
from prismcap.model.loss import supervised_positions


def sample_losses(
    captioner: Captioner,
    encoded: Sequence[Encoded],
    store: FeatureStore,
    *,
    pad_id: int,
    batch_size: int,
    progress: Progress = no_progress,
) -> list[float]:
    """Mean cross entropy (nats) over the supervised tokens of each sample, in the given order.

    One sample per row; pictures must be in the store. Use inside `inference`.
    """
    # equal lengths together: less padding
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    losses = [0.0] * len(encoded)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        for index, loss in zip(
            indices, _batch_losses(captioner, [encoded[i] for i in indices], store, pad_id), strict=True
        ):
            losses[index] = loss
        progress(len(indices))
    return losses


def _batch_losses(
    captioner: Captioner, encoded: Sequence[Encoded], store: FeatureStore, pad_id: int
) -> list[float]:
    # sizes in pixels mean nothing to one tile per picture; with anyres the samples know them
    inputs = {image: (store[image], (0, 0)) for item in encoded for image in item.images}
    batch = collate([[item] for item in encoded], pad_id, inputs, kind="features").to(captioner.device)
    hidden_BTH = captioner.hidden_states(batch)
    position_N, target_N = supervised_positions(batch.labels, batch.position_ids)
    logits_NV = captioner.llm.get_output_embeddings()(hidden_BTH.flatten(0, 1)[position_N])
    loss_N = functional.cross_entropy(logits_NV.float(), target_N, reduction="none")
    row_N = position_N // batch.labels.shape[1]
    total_B = torch.zeros(len(encoded), device=loss_N.device).index_add_(0, row_N, loss_N)
    losses: list[float] = (total_B / torch.bincount(row_N, minlength=len(encoded))).tolist()
    return losses
