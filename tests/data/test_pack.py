"""A packed batch holds every sample once, whole, apart from its neighbours, with its pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from prismcap.configs.schema.data import BatchConfig
from prismcap.data.pack import ImageInputs, PixelInputs, Rejected, empty_batch, make_batches
from prismcap.data.plan import plan_step
from prismcap.data.schema import IGNORE_INDEX, Batch, Encoded, ImageRef, ImageSpec, SampleRejected

PAD = 7
SPEC = ImageSpec(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Plain:
    """A picture of one grey; `broken` cannot be loaded."""

    grey: int
    broken: bool = False

    def load(self) -> Image.Image:
        if self.broken:
            raise SampleRejected("image_corrupt", "broken")
        return Image.new("RGB", (10 + self.grey, 5), (self.grey,) * 3)

    def fingerprint(self) -> str:
        return str(self.grey)


def encoded(name: str, length: int, *images: ImageRef) -> Encoded:
    """Two tokens for each picture at the front, then text; the last half is supervised."""
    ids = torch.arange(length) + 100 * (1 + int(name))
    labels = torch.where(torch.arange(length) >= length // 2, ids, torch.tensor(IGNORE_INDEX))
    spans = tuple((i, 2 * i, 2) for i in range(len(images)))
    return Encoded(name, ids, labels, images, spans)


def check_batches(batches: list[Batch], samples: list[Encoded]) -> None:
    """Takes the batches apart again, by segment, and holds the pieces against the samples."""
    expected = {sample.id: sample for sample in samples}
    found = []
    for batch in batches:
        names = iter(batch.sample_ids)
        padding = batch.segment_ids == 0
        assert (batch.input_ids[padding] == PAD).all() and (batch.labels[padding] == IGNORE_INDEX).all()
        places: dict[tuple[int, int], list[Tensor]] = {}
        for row in range(len(batch.input_ids)):
            for segment in range(1, int(batch.segment_ids[row].max()) + 1):
                inside = (batch.segment_ids[row] == segment).nonzero()[:, 0]
                sample = expected[next(names)]
                found.append(sample.id)
                start = int(inside[0])
                assert torch.equal(inside, torch.arange(start, start + len(sample))), "a sample stays whole"
                assert torch.equal(batch.input_ids[row, inside], sample.input_ids)
                assert torch.equal(batch.labels[row, inside], sample.labels)
                assert torch.equal(batch.position_ids[row, inside], torch.arange(len(sample))), "restart"
                for image, offset, length in sample.spans:
                    key = (row, start + offset)
                    places[key] = [sample.images[image], length]  # type: ignore[list-item]
        assert next(names, None) is None
        assert len(places) == len(batch.spans)
        for image, row, start, length in batch.spans.tolist():
            ref, expected_length = places[row, start]
            assert length == expected_length
            tile = batch.tiles[batch.tile_image == image]  # type: ignore[index]
            assert torch.allclose(tile, torch.full((1, 3, 8, 8), ref.grey / 255))  # type: ignore[union-attr]
            assert batch.image_sizes[image].tolist() == [5, 10 + ref.grey]  # type: ignore[union-attr]
    assert sorted(found) == sorted(expected), "every sample once"


CONFIG = BatchConfig(row_tokens=20, rows_per_micro_batch=2, images_per_micro_batch=3)
IMAGES = [Plain(grey) for grey in range(6)]
SAMPLES = [
    encoded("0", 9, IMAGES[0]),
    encoded("1", 20, IMAGES[1], IMAGES[0]),
    encoded("2", 5),
    encoded("3", 6, IMAGES[2]),
    encoded("4", 11, IMAGES[3]),
    encoded("5", 4, IMAGES[4]),
    encoded("6", 7, IMAGES[0]),
    encoded("7", 8, IMAGES[5]),
]


def batches_of(
    samples: list[Encoded], images: ImageInputs | None = None, on_reject: Rejected | None = None
) -> list[Batch]:
    """As one rank plans them."""
    num_images = [len(set(sample.images)) for sample in samples]
    (plan,) = plan_step([len(sample) for sample in samples], num_images, CONFIG).ranks
    rows = [[[samples[i] for i in row] for row in batch] for batch in plan]
    return make_batches(rows, PAD, images or PixelInputs(SPEC), on_reject)


def test_batches_hold_every_sample_and_its_pictures() -> None:
    batches = batches_of(SAMPLES)
    check_batches(batches, SAMPLES)
    assert len(batches) > 1
    for batch in batches:
        assert batch.input_ids.shape[0] <= 2 and len(batch.image_sizes) <= 3
        assert batch.input_ids.shape[1] <= 24 and len(batch.tiles) == len(batch.image_sizes)  # type: ignore[arg-type]
        assert batch.num_target_tokens == sum(
            sample.num_target_tokens for sample in SAMPLES if sample.id in batch.sample_ids
        )


def test_planted_faults_are_caught() -> None:
    batches = batches_of(SAMPLES)
    batch = next(item for item in batches if len(item.spans) > 1 and int(item.segment_ids.max()) > 1)
    others = [item for item in batches if item is not batch]
    running = torch.arange(batch.input_ids.shape[1]).expand_as(batch.position_ids)
    faults = {
        "positions not restarted": replace(batch, position_ids=running),
        "labels shifted by one": replace(batch, labels=batch.labels.roll(1, dims=1)),
        "one segment for all": replace(batch, segment_ids=batch.segment_ids.clamp(max=1)),
        "a tile swapped": replace(batch, tiles=batch.tiles.roll(1, dims=0)),  # type: ignore[union-attr]
        "a span moved": replace(batch, spans=batch.spans + torch.tensor([0, 0, 1, 0])),
        "a sample lost": replace(batch, sample_ids=batch.sample_ids[1:]),
    }
    for fault, broken in faults.items():
        with pytest.raises((AssertionError, KeyError, StopIteration)):
            check_batches([*others, broken], SAMPLES)
            pytest.fail(f"not caught: {fault}")


def test_a_shared_picture_is_read_and_encoded_once() -> None:
    reads: list[ImageRef] = []

    class Counting(PixelInputs):
        def read(self, image: ImageRef) -> tuple[Tensor, tuple[int, int]]:
            reads.append(image)
            return super().read(image)

    shared = [encoded(str(i), 4, Plain(3)) for i in range(3)]
    (batch,) = batches_of(shared, Counting(SPEC))
    assert len(reads) == 1 and batch.tiles is not None and len(batch.tiles) == 1
    assert batch.spans[:, 0].tolist() == [0, 0, 0]
    check_batches([batch], shared)


def test_a_sample_whose_picture_fails_is_left_out_alone() -> None:
    bad = [encoded("8", 6, IMAGES[0], Plain(1, broken=True)), encoded("9", 20, Plain(2, broken=True))]
    rejected: list[tuple[str, str]] = []
    samples = [*SAMPLES[:4], *bad, *SAMPLES[4:]]
    batches = batches_of(samples, on_reject=lambda item, error: rejected.append((item.id, error.reason)))
    assert sorted(rejected) == [("8", "image_corrupt"), ("9", "image_corrupt")]
    check_batches(batches, SAMPLES)
    assert all((batch.segment_ids[:, 0] == 1).all() for batch in batches), "no row is left without a sample"
    with pytest.raises(SampleRejected, match="sample '8'"):
        batches_of(bad[:1])


def test_features_take_the_place_of_tiles() -> None:
    class Features:
        kind = "features"

        def read(self, image: ImageRef) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
            return torch.ones(1, 4, 2), (5, 10)

    (batch,) = batches_of(SAMPLES[:1], Features())  # type: ignore[arg-type]
    assert batch.tiles is None and batch.features is not None and batch.features.shape == (1, 4, 2)
    (text_only,) = batches_of(SAMPLES[2:3])
    assert text_only.tiles is None and text_only.features is None and text_only.spans.shape == (0, 4)


def test_nothing_and_the_empty_batch() -> None:
    assert batches_of([]) == []
    batch = empty_batch(PAD)
    assert batch.num_tokens == 0 and batch.num_target_tokens == 0 and batch.input_ids.tolist() == [[PAD]]
