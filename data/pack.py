"""Encoded samples to batches: several samples in a row, and none sees another.

Two samples of 3 and 2 tokens in a row of 6 tokens, the last one padding:
    input_ids     a0 a1 a2 b0 b1 pad
    position_ids   0  1  2  0  1   0      positions restart
    segment_ids    1  1  1  2  2   0      attention stays inside a segment; 0 is never read
The label at a segment's first token is nobody's target: the token before it is another sample's.
Shape legend: B rows, T tokens, P tiles, K patches, D encoder width, S tile side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from prismcap.data.anyres import Tiling
from prismcap.data.image import to_tiles
from prismcap.data.plan import row_width
from prismcap.data.schema import IGNORE_INDEX, Batch, Encoded, ImageRef, ImageSpec, SampleRejected


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
Inputs = dict[ImageRef, tuple[Tensor, tuple[int, int]]]  # what ImageInputs.read gave


def read_images(item: Encoded, images: ImageInputs, inputs: Inputs) -> None:
    """Read into `inputs` those pictures of a sample that are not there.

    Raises SampleRejected when one cannot be read, or is not of the size that the sample was encoded for.
    """
    for ref in item.images:
        if ref not in inputs:
            inputs[ref] = images.read(ref)
    for ref, tiling in item.tiling_of.items():
        _check_size(ref, tiling, *inputs[ref])


def make_batches(
    micro_batches: Sequence[Sequence[Sequence[Encoded]]],
    pad_id: int,
    images: ImageInputs,
    on_reject: Rejected | None = None,
) -> list[Batch]:
    """A batch of each micro-batch, which is rows of samples (data/plan.py).

    Each picture is read once, however many samples show it. A sample one of whose pictures cannot be
    read is handed to `on_reject` and left out of its row; without `on_reject` its SampleRejected, which
    names the sample, is raised. Rows and micro-batches that lose all their samples go.
    """
    inputs: Inputs = {}

    def readable(item: Encoded) -> bool:
        try:
            read_images(item, images, inputs)
        except SampleRejected as error:
            named = SampleRejected(error.reason, f"sample {item.id!r}: {error}")
            if on_reject is None:
                raise named from error
            on_reject(item, named)
            return False
        return True

    batches: list[Batch] = []
    for micro_batch in micro_batches:
        rows = [[item for item in row if readable(item)] for row in micro_batch]
        if any(rows):
            batches.append(collate([row for row in rows if row], pad_id, inputs, images.kind))
    return batches


def _check_size(ref: ImageRef, tiling: Tiling, pixels: Tensor, size: tuple[int, int]) -> None:
    if size != (tiling.height, tiling.width) or len(pixels) != tiling.num_tiles:
        raise SampleRejected(
            "image_size_differs",
            f"{ref}: {size[0]} x {size[1]} pixels (height, width) in {len(pixels)} tiles, and "
            f"{tiling.height} x {tiling.width} in {tiling.num_tiles} when its sample was encoded: the file "
            "was changed, or its header says another size than its pixels. Save it anew.",
        )


def collate(
    rows: Sequence[Sequence[Encoded]],
    pad_id: int,
    inputs: Inputs,
    kind: Literal["tiles", "features"] = "tiles",
) -> Batch:
    """One batch of packed rows. `inputs` holds what ImageInputs.read gave for every picture in them; how
    pictures are cut, and then their sizes, are those that the samples were encoded with."""
    shape = (len(rows), row_width(max((sum(len(item) for item in row) for row in rows), default=1)))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment_ids = torch.zeros(shape, dtype=torch.long)
    spans: list[tuple[int, int, int, int]] = []
    index_of: dict[ImageRef, int] = {}
    tilings: dict[ImageRef, Tiling] = {}
    for number, row in enumerate(rows):
        start = 0
        for segment, item in enumerate(row, start=1):
            end = start + len(item)
            tilings.update(item.tiling_of)
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
    cut = [tilings[ref] for ref in index_of if ref in tilings]
    sizes = [(tiling.height, tiling.width) for tiling in cut] or [size for _, size in read]
    grids = [(tiling.rows, tiling.columns) for tiling in cut]
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        spans=torch.tensor(spans, dtype=torch.long).reshape(-1, 4),
        tile_image=torch.repeat_interleave(torch.arange(len(read)), counts),
        image_sizes=torch.tensor(sizes, dtype=torch.long).reshape(-1, 2),
        tiles=pixels if kind == "tiles" else None,
        features=pixels if kind == "features" else None,
        image_grids=torch.tensor(grids, dtype=torch.long) if grids else None,
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
