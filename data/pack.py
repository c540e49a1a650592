"""Encoded samples to batches: several samples in a row, and none sees another.

Two samples of 3 and 2 tokens in a row of 6 tokens, the last one padding:
    input_ids     a0 a1 a2 b0 b1 pad
    position_ids   0  1  2  0  1   0      positions restart
    segment_ids    1  1  1  2  2   0      attention stays inside a segment; 0 is never read
The label at a segment's first token is nobody's target: the token before it is another sample's.
Shape legend: B rows, T tokens, P tiles, K patches, D encoder width, S tile side in pixels.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from prismcap.configs.schema.data import BatchConfig
from prismcap.data.image import to_tiles
from prismcap.data.schema import IGNORE_INDEX, Batch, DataError, Encoded, ImageRef, ImageSpec, SampleRejected

# rows are cut to the longest of their batch, rounded up (past row_tokens, if that is no multiple) to
# what matrix units like
_ROW_STEP_TOKENS = 8


class ImageInputs(Protocol):
    """How pictures enter a batch: as tiles to encode, or as features of a frozen encoder.

    Refs are hashable, and equal refs are equal pictures.
    """

    @property
    def kind(self) -> Literal["tiles", "features"]:
        """Which field of the batch they fill."""

    def read(self, image: ImageRef) -> tuple[Tensor, tuple[int, int]]:
        """tiles [P, 3, S, S] or features [P, K, D] of one picture, and its (height, width) in pixels.

        Raises SampleRejected when it cannot be read.
        """


@dataclass(frozen=True)
class PixelInputs:
    """Pictures decoded and cut into tiles as `spec` says."""

    spec: ImageSpec
    kind: Literal["tiles", "features"] = "tiles"

    def read(self, image: ImageRef) -> tuple[Tensor, tuple[int, int]]:
        """See ImageInputs.read."""
        picture = image.load()
        return to_tiles(picture, self.spec, str(image)), (picture.height, picture.width)


Rejected = Callable[[Encoded, SampleRejected], None]


def pack_rows(
    lengths: Sequence[int],
    row_tokens: int,
    num_images: Sequence[int] | None = None,
    row_images: int | None = None,
) -> list[list[int]]:
    """Samples to rows of at most `row_tokens` tokens and `row_images` pictures, best fit decreasing.

    Longest sample first (ties in the given order), into the fullest row that still takes it (ties: the
    oldest row). Deterministic; every index appears once. Raises DataError for a sample that no row takes.
    """
    images = num_images or [0] * len(lengths)
    most_images = row_images if row_images is not None else sum(images)
    rows: list[list[int]] = []
    image_room: list[int] = []
    open_rows: list[tuple[int, int]] = []  # (room in tokens, row), sorted: the fullest row comes first
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[index]
        if need > row_tokens or images[index] > most_images:
            raise DataError(
                f"sample {index} of {need} tokens and {images[index]} pictures does not fit into a row of "
                f"{row_tokens} tokens and {most_images} pictures: keep data.max_tokens <= batch.row_tokens"
            )
        at = bisect_left(open_rows, (need, -1))
        while at < len(open_rows) and image_room[open_rows[at][1]] < images[index]:
            at += 1
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = row_tokens, len(rows)
            rows.append([])
            image_room.append(most_images)
        rows[row].append(index)
        image_room[row] -= images[index]
        insort(open_rows, (room - need, row))
    return rows


def make_batches(
    encoded: Sequence[Encoded],
    config: BatchConfig,
    pad_id: int,
    images: ImageInputs,
    on_reject: Rejected | None = None,
) -> list[Batch]:
    """Micro-batches of at most rows_per_micro_batch rows and images_per_micro_batch pictures.

    Each picture is read once, however many samples show it. A sample one of whose pictures cannot be
    read is handed to `on_reject` and left out; without `on_reject` its SampleRejected, which names the
    sample, is raised.
    """
    inputs: dict[ImageRef, tuple[Tensor, tuple[int, int]]] = {}
    kept: list[Encoded] = []
    for item in encoded:
        try:
            _check_image_budget(item, config)
            for ref in item.images:
                if ref not in inputs:
                    inputs[ref] = images.read(ref)
        except SampleRejected as error:
            named = SampleRejected(error.reason, f"sample {item.id!r}: {error}")
            if on_reject is None:
                raise named from error
            on_reject(item, named)
        else:
            kept.append(item)
    rows = pack_rows(
        [len(item) for item in kept],
        config.row_tokens,
        [len(set(item.images)) for item in kept],
        config.images_per_micro_batch,
    )
    groups = _group([[kept[index] for index in row] for row in rows], config)
    return [collate(group, pad_id, inputs, images.kind) for group in groups]


def _check_image_budget(item: Encoded, config: BatchConfig) -> None:
    num_images = len(set(item.images))
    if num_images > config.images_per_micro_batch:
        limit = config.images_per_micro_batch
        message = f"{num_images} pictures, and batch.images_per_micro_batch is {limit}"
        raise SampleRejected("too_many_images", message)


def _group(rows: list[list[Encoded]], config: BatchConfig) -> list[list[list[Encoded]]]:
    """Rows to micro-batches, in order; a new one begins when a row would go over a limit."""
    groups: list[list[list[Encoded]]] = []
    seen: set[ImageRef] = set()
    for row in rows:
        own = {ref for item in row for ref in item.images}
        full = bool(groups) and len(groups[-1]) == config.rows_per_micro_batch
        if not groups or full or len(seen | own) > config.images_per_micro_batch:
            groups.append([])
            seen = set()
        groups[-1].append(row)
        seen |= own
    return groups


def collate(
    rows: Sequence[Sequence[Encoded]],
    pad_id: int,
    inputs: dict[ImageRef, tuple[Tensor, tuple[int, int]]],
    kind: Literal["tiles", "features"] = "tiles",
) -> Batch:
    """One batch of packed rows. `inputs` holds what ImageInputs.read gave for every picture in them."""
    longest = max((sum(len(item) for item in row) for row in rows), default=1)
    width = -(-max(longest, 1) // _ROW_STEP_TOKENS) * _ROW_STEP_TOKENS
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment_ids = torch.zeros(shape, dtype=torch.long)
    spans: list[tuple[int, int, int, int]] = []
    index_of: dict[ImageRef, int] = {}
    for number, row in enumerate(rows):
        start = 0
        for segment, item in enumerate(row, start=1):
            end = start + len(item)
            input_ids[number, start:end] = item.input_ids
            labels[number, start:end] = item.labels
            position_ids[number, start:end] = torch.arange(len(item))
            segment_ids[number, start:end] = segment
            for image, offset, length in item.spans:
                shared = index_of.setdefault(item.images[image], len(index_of))
                spans.append((shared, number, start + offset, length))
            start = end
    read = [inputs[ref] for ref in index_of]
    pixels = torch.cat([tensor for tensor, _ in read]) if read else None
    counts = torch.tensor([len(tensor) for tensor, _ in read], dtype=torch.long)
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        spans=torch.tensor(spans, dtype=torch.long).reshape(-1, 4),
        tile_image=torch.repeat_interleave(torch.arange(len(read)), counts),
        image_sizes=torch.tensor([size for _, size in read], dtype=torch.long).reshape(-1, 2),
        tiles=pixels if kind == "tiles" else None,
        features=pixels if kind == "features" else None,
        sample_ids=tuple(item.id for row in rows for item in row),
    )


def empty_batch(pad_id: int) -> Batch:
    """One row of one padding token, no picture, no target: for a rank that has no more work in a step."""
    no_token = torch.zeros((1, 1), dtype=torch.long)
    return Batch(
        input_ids=torch.full((1, 1), pad_id, dtype=torch.long),
        labels=torch.full((1, 1), IGNORE_INDEX, dtype=torch.long),
        position_ids=no_token,
        segment_ids=no_token.clone(),
        spans=torch.zeros((0, 4), dtype=torch.long),
        tile_image=torch.zeros(0, dtype=torch.long),
        image_sizes=torch.zeros((0, 2), dtype=torch.long),
    )
