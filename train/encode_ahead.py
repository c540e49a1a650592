"""A frozen encoder runs once for all micro-batches of a step, ahead of them, in batches of its own.

Shape legend: P tiles of a micro-batch, U different tiles of a step, S tile side in pixels, K patches,
D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prismcap.data.schema import Batch
from prismcap.model.captioner import Captioner
from prismcap.train.step import AgreedStep

# enough work for a GPU; what the encoder needs at once stays small whatever the step's size
ENCODED_AT_ONCE = 32
# tiles are told apart by every so many-th value first, and by all of them only where these are equal
_GLANCE = 997


def with_features(step: AgreedStep, captioner: Captioner, device: torch.device) -> AgreedStep:
    """The step with features on `device` in place of tiles, where the encoder is frozen; else as it is.

    Call it under the engine's autocast, with the captioner in the mode that it trains in. Runs without a
    graph; a tile that several micro-batches have is encoded once. The features of the whole step are held
    until its end: different tiles x patches x width x 4 bytes (2 if the encoder ends in bf16), so 128
    pictures of 729 patches of 1152 are 430 MB in fp32.

    An encoder that is gathered collectively (ZeRO-3) is left to the micro-batches: ranks have different
    numbers of pictures.
    """
    if captioner.trains_encoder or captioner.always_encodes:
        return step
    numbers, tiles_U = _different(step.micro_batches)
    if not tiles_U:
        return step
    features_UKD = _encoded(tiles_U, captioner, device)
    batches = [
        batch if own is None else replace(batch, tiles=None, features=_rows(features_UKD, own))
        for batch, own in zip(step.micro_batches, numbers, strict=True)
    ]
    return replace(step, micro_batches=tuple(batches))


def _different(batches: Sequence[Batch]) -> tuple[list[list[int] | None], list[Tensor]]:
    """The number of each tile of each micro-batch, and the tiles by number.

    None for a micro-batch without tiles; also for one that has features too, which the captioner refuses.
    Within a micro-batch a picture is there once already; equal tiles there, such as blank ones of a trial
    run, stay apart.
    """
    tiles_U: list[Tensor] = []
    alike: dict[bytes, list[int]] = {}
    numbers: list[list[int] | None] = []
    for batch in batches:
        if batch.tiles is None or len(batch.tiles) == 0 or batch.features is not None:
            numbers.append(None)
            continue
        before, own = len(tiles_U), []
        for tile_3SS in batch.tiles:
            seen = alike.setdefault(tile_3SS.flatten()[::_GLANCE].cpu().numpy().tobytes(), [])
            same = (i for i in seen if i < before and torch.equal(tiles_U[i], tile_3SS))
            number = next(same, len(tiles_U))
            if number == len(tiles_U):
                seen.append(number)
                tiles_U.append(tile_3SS)
            own.append(number)
        numbers.append(own)
    return numbers, tiles_U


def _encoded(tiles_U: Sequence[Tensor], captioner: Captioner, device: torch.device) -> Tensor:
    """features_UKD on `device`."""
    features_UKD: Tensor | None = None
    for first in range(0, len(tiles_U), ENCODED_AT_ONCE):
        some = tiles_U[first : first + ENCODED_AT_ONCE]
        # one by one: a view of pinned memory is pinned, a stack of such views is not
        part = captioner.encode_images(torch.stack([tile.to(device, non_blocking=True) for tile in some]))
        if features_UKD is None:
            # filled in place: parts and their concatenation would take the room twice
            features_UKD = part.new_empty((len(tiles_U), *part.shape[1:]))
        features_UKD[first : first + len(part)] = part
    assert features_UKD is not None
    return features_UKD


def _rows(features_UKD: Tensor, numbers: Sequence[int]) -> Tensor:
    """features_PKD; a view, except where an earlier micro-batch had one of the tiles already."""
    first = numbers[0]
    if list(numbers) == list(range(first, first + len(numbers))):
        return features_UKD[first : first + len(numbers)]
    return features_UKD[torch.tensor(numbers, device=features_UKD.device)]
