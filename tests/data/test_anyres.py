"""Anyres geometry against transformers' LLaVA-NeXT, exact arithmetic, and the files themselves."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from transformers import LlavaNextImageProcessorPil
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from prismcap.configs.schema.data import DataConfig
from prismcap.data.anyres import Grid, Tiling, best_grid
from prismcap.data.image import FileImage, picture_size, to_tiles
from prismcap.data.schema import ImageSpec, SampleRejected, TokenSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 28


def grids(**keys: Any) -> tuple[Grid, ...]:
    values = {"mix": [{"name": "llava_json"}], "geometry": "anyres"} | keys
    return DataConfig.model_validate(values).grids


HD = grids()
NEXT = grids(tile_grids=[[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]])
SETS = st.sampled_from([HD, NEXT, grids(max_tiles=1), grids(max_tiles=12)])
PX = st.one_of(st.integers(1, 60), st.integers(1, 2000))


def test_the_grids_of_llava_1_5_hd() -> None:
    """Up to 672 x 448 of tiles of 224: 1x1 to 1x6, 2x2, 2x3, and the transposed."""
    flat = [(1, n) for n in range(1, 7)] + [(2, 2), (2, 3)]
    assert set(HD) == {*flat, *((b, a) for a, b in flat)} and len(HD) == 14
    assert best_grid(448, 448, HD, 224) == (2, 2), "no more tiles than the picture has pixels for"
    assert best_grid(224, 224, HD, 224) == best_grid(10, 10, HD, 224) == (1, 1)
    assert best_grid(1000, 1500, HD, 224) == (2, 3) and best_grid(1500, 1000, HD, 224) == (3, 2)
    assert best_grid(100, 2000, HD, 224) == (1, 6)


@settings(max_examples=500, deadline=None)
@given(height=PX, width=PX, allowed=SETS, side=st.sampled_from([14, 28, 224, 336]))
def test_the_grid_is_that_of_transformers(height: int, width: int, allowed: Any, side: int) -> None:
    pinpoints = [(rows * side, columns * side) for rows, columns in allowed]
    rows, columns = best_grid(height, width, allowed, side)
    assert (rows * side, columns * side) == select_best_resolution((height, width), pinpoints)


@settings(max_examples=300, deadline=None)
@given(height=PX, width=PX, allowed=SETS, side=st.sampled_from([14, 224]))
def test_no_other_grid_is_better(height: int, width: int, allowed: Any, side: int) -> None:
    """A search over all grids in exact arithmetic. The rule counts whole pixels, so that a row and a
    column of them may be in dispute."""

    def shown(grid: Grid) -> Fraction:
        scale = min(Fraction(grid[1] * side, width), Fraction(grid[0] * side, height), Fraction(1))
        return scale * scale * width * height

    found = best_grid(height, width, allowed, side)
    for other in allowed:
        assert shown(other) <= shown(found) + (other[0] + other[1]) * side + 1
        if other[0] * other[1] < found[0] * found[1]:
            whole = other[1] * side >= width and other[0] * side >= height
            assert not whole, f"{other} shows all of {width} x {height} in fewer tiles than {found}"


def kept_by_transformers(tiling: Tiling, side: int, tokens: int) -> list[int]:
    """Numbers of tokens in the order in which LlavaNextModel packs them; -1 is the newline."""
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=side, patch_size=side // tokens),
        image_grid_pinpoints=[[tiling.rows * side, tiling.columns * side]],
    )
    numbers = torch.arange(tiling.num_tiles * tokens * tokens, dtype=torch.float64)
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [numbers.view(tiling.num_tiles, tokens * tokens, 1)],
        [(tiling.height, tiling.width)],
        "full",
        image_newline=torch.tensor([-1.0], dtype=torch.float64),
    )
    order: list[int] = packed[0][:, 0].long().tolist()
    return order


def number_by_transformers(tiling: Tiling, side: int, tokens: int) -> int:
    """How many positions LlavaNextProcessor makes."""
    stub = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=[[tiling.rows * side, tiling.columns * side]]),
        patch_size=side // tokens,
        num_additional_image_tokens=0,
        _get_unpadded_features=partial(LlavaNextProcessor._get_unpadded_features, None),
    )
    count: int = LlavaNextProcessor._get_number_of_features(stub, tiling.height, tiling.width, side, side)
    return count


@settings(max_examples=300, deadline=None)
@given(height=PX, width=PX, allowed=SETS, tokens=st.sampled_from([1, 2, 7, 16, 24]))
def test_tokens_are_those_of_transformers(height: int, width: int, allowed: Any, tokens: int) -> None:
    side = tokens * 14
    tiling = ImageSpec(side, MEAN, STD, "anyres", allowed).tiling(height, width)
    assert tiling is not None
    order = tiling.token_order((tokens, tokens), first=0, newline=-1).tolist()
    assert order == kept_by_transformers(tiling, side, tokens)
    assert len(order) == tiling.num_tokens((tokens, tokens)) == number_by_transformers(tiling, side, tokens)


@pytest.mark.parametrize("fault", ["a tile swapped", "newline dropped", "unpadding off by one"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiling = Tiling(300, 640, 2, 3)
    expected = kept_by_transformers(tiling, 28, 2)
    assert tiling.token_order((2, 2), 0, -1).tolist() == expected
    kept = Tiling.kept

    def off_by_one(self: Tiling, tile_tokens: Grid) -> tuple[range, range]:
        rows, columns = kept(self, tile_tokens)
        return range(rows.start + 1, rows.stop), columns

    if fault == "unpadding off by one":
        monkeypatch.setattr(Tiling, "kept", off_by_one)
        found = tiling.token_order((2, 2), 0, -1).tolist()
    elif fault == "newline dropped":
        found = [token for token in expected if token >= 0]
    else:
        found = Tiling(300, 640, 3, 2).token_order((2, 2), 0, -1).tolist()
    assert found != expected


@settings(max_examples=300, deadline=None)
@given(height=PX, width=PX, allowed=SETS, tokens=st.sampled_from([(1, 1), (2, 2), (4, 1), (16, 4), (3, 5)]))
def test_what_goes_is_padding_and_what_stays_is_picture(
    height: int, width: int, allowed: Any, tokens: Grid
) -> None:
    """Also where tokens are not square (patch_concat with k: [1, 4]). In exact arithmetic, in tokens: no row
    or column that goes is all picture, and none that stays is all padding."""
    tiling = Tiling(height, width, *best_grid(height, width, allowed, 240))
    scale = min(Fraction(tiling.columns, width), Fraction(tiling.rows, height))
    for kept, tiles, px, per_tile in zip(
        tiling.kept(tokens), (tiling.rows, tiling.columns), (height, width), tokens, strict=True
    ):
        total, length = tiles * per_tile, px * scale * per_tile
        begin, end = (total - length) / 2, (total + length) / 2
        tiny = Fraction(1, 10**6)  # where roundings of floats decide
        for place in range(total):
            if place in kept:
                assert place + 1 > begin - tiny and place < end + tiny, "all padding stays"
            else:
                assert place < begin + tiny or place + 1 > end - tiny, "all picture goes"
        assert kept.start == total - kept.stop, "bars are alike"


SIZES = [
    (90, 40),
    (40, 90),
    (57, 57),
    (200, 33),
    (33, 100),
    (9, 5),
    (28, 28),
    (500, 333),
    (400, 1),
    (61, 150),
]


def noise(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width * 1000 + height)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("allowed", [HD, NEXT])
def test_tiles_equal_the_processor_of_transformers(allowed: Any, size: tuple[int, int]) -> None:
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaNextImageProcessorPil(
        size=square,
        crop_size=square,
        do_center_crop=False,
        image_grid_pinpoints=[[rows * SIDE, columns * SIDE] for rows, columns in allowed],
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    image = noise(*size)
    expected = processor(images=image, return_tensors="pt")
    spec = ImageSpec(SIDE, MEAN, STD, "anyres", allowed)
    tiles, tiling = to_tiles(image, spec), spec.tiling(image.height, image.width)
    assert tiling is not None and expected["image_sizes"].tolist() == [[tiling.height, tiling.width]]
    assert len(tiles) == tiling.num_tiles <= spec.most_tiles
    assert torch.equal(tiles, expected["pixel_values"][0])
    if len(tiles) > 2:
        assert not torch.equal(tiles.roll(1, dims=0), expected["pixel_values"][0])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_upright_picture(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    noise(30, 20).save(path, exif=exif)
    picture = FileImage(path).load()
    assert picture_size(FileImage(path)) == (picture.height, picture.width)
    assert picture.size == ((20, 30) if orientation >= 5 else (30, 20))


def test_a_size_is_read_without_the_pixels(tmp_path: Path) -> None:
    """The file ends after its header: it cannot be decoded, and its size is known."""
    noise(300, 200).save(tmp_path / "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    assert FileImage(cut).height_width() == (200, 300)
    with pytest.raises(SampleRejected):
        FileImage(cut).load()
    for ref, reason in ((FileImage(tmp_path / "no.png"), "missing"), (FileImage(cut, 59_999), "too_large")):
        with pytest.raises(SampleRejected) as caught:
            ref.height_width()
        assert caught.value.reason == f"image_{reason}"


def test_a_picture_that_cannot_tell_its_size_is_loaded() -> None:
    class Drawn:
        def load(self) -> Image.Image:
            return noise(7, 5)

        def fingerprint(self) -> str:
            return "drawn"

    assert picture_size(Drawn()) == (5, 7)


def test_specs_count_tokens_by_size() -> None:
    spec = ImageSpec(28, MEAN, STD, "anyres", HD)
    anyres_spec = TokenSpec(4, (2, 2), spec)
    # a bar of half a row above and below: both rows of the one tile stay
    assert anyres_spec.token_count(14, 28) == 4 + 2 * (2 + 1)
    assert anyres_spec.token_count(56, 84) == 4 + 4 * (6 + 1)
    assert TokenSpec(4, (2, 2)).token_count(56, 84) == 4
    with pytest.raises(ValueError, match="anyres alone has grids"):
        ImageSpec(28, MEAN, STD, "anyres")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"geometry": "pad", "max_tiles": 4}, "max_tiles is for geometry: anyres"),
        ({"geometry": "pad", "tile_grids": [[1, 1]]}, "tile_grids is for geometry: anyres"),
        ({"max_tiles": 4, "tile_grids": [[1, 1]]}, "give one of them"),
        ({"max_tiles": 0}, "greater than or equal to 1"),
        ({"tile_grids": [[0, 1]]}, "greater than or equal to 1"),
        ({"tile_grids": []}, "at least 1 item"),
    ],
)
def test_a_wrong_config_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        grids(**keys)
