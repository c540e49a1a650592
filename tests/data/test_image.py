"""Picture files are checked before they are decoded, and tiles equal Hugging Face's."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from prismcap.configs.schema.data import Geometry
from prismcap.data.image import FileImage, from_tile, open_image, resolve_inside, to_tiles
from prismcap.data.schema import DataError, ImageSpec, SampleRejected

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIDE = 28


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    random = np.random.default_rng(width * 1000 + height)
    pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def processor(geometry: Geometry) -> object:
    square = {"height": SIDE, "width": SIDE}
    norm = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    if geometry == "resize":
        return SiglipImageProcessorPil(size=square, **norm)
    if geometry == "center_crop":
        return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, **norm)
    return LlavaImageProcessorPil(do_pad=True, do_center_crop=False, size=square, **norm)


# odd sizes and odd differences exercise the rounding of crops and bars; both orientations; enlarging too
SIZES = [(61, 40), (40, 61), (57, 57), (101, 33), (33, 100), (28, 90), (13, 20), (500, 333)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("geometry", ["resize", "center_crop", "pad"])
def test_tiles_equal_the_hugging_face_processor(geometry: Geometry, size: tuple[int, int]) -> None:
    image = noise(*size)
    expected = processor(geometry)(images=image, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    tiles = to_tiles(image, ImageSpec(SIDE, CLIP_MEAN, CLIP_STD, geometry))
    assert tiles.shape == (1, 3, SIDE, SIDE) and tiles.dtype == torch.float32
    assert torch.equal(tiles, expected)


def test_the_parity_test_can_fail() -> None:
    image = noise(61, 40)
    expected = processor("pad")(images=image, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    for geometry in ("resize", "center_crop"):
        assert not torch.allclose(to_tiles(image, ImageSpec(SIDE, CLIP_MEAN, CLIP_STD, geometry)), expected)
    shifted = Image.new("RGB", (61, 61), (122, 116, 104))
    shifted.paste(image, (0, 11))  # one pixel off: (61 - 40) // 2 is 10
    assert not torch.equal(to_tiles(shifted, ImageSpec(SIDE, CLIP_MEAN, CLIP_STD)), expected)


def test_pad_keeps_the_whole_picture_between_bars_of_the_mean() -> None:
    spec = ImageSpec(40, CLIP_MEAN, CLIP_STD, "pad")
    seen = np.asarray(from_tile(to_tiles(Image.new("RGB", (40, 20), (255, 0, 0)), spec)[0], spec))
    assert (seen[0, 0] == (122, 116, 104)).all() and (seen[20, 20] == (255, 0, 0)).all()


def test_a_tile_shown_again_is_the_picture() -> None:
    spec = ImageSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    image = noise(32, 32)
    assert np.array_equal(np.asarray(from_tile(to_tiles(image, spec)[0], spec)), np.asarray(image))


def test_alpha_is_white_exif_is_upright_modes_become_rgb(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear)
    assert open_image(clear, 100).getpixel((0, 0)) == (255, 255, 255)

    palette = tmp_path / "palette.png"
    Image.new("P", (4, 4), 0).save(palette, transparency=0)
    assert open_image(palette, 100).getpixel((0, 0)) == (255, 255, 255)

    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at
    Image.new("RGB", (8, 4)).save(turned, exif=exif)
    assert open_image(turned, 100).size == (4, 8)

    for mode in ("L", "LA", "CMYK", "1", "I;16"):
        path = tmp_path / f"{mode[:2]}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (4, 4)).save(path)
        assert open_image(path, 100).mode == "RGB"
    grey = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(grey)
    assert open_image(grey, 100).getpixel((0, 0)) == (128, 128, 128)


def huge_png(side: int) -> bytes:
    """A valid PNG that claims side x side pixels in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
def test_size_is_judged_by_our_bound_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(40_000))
    before = Image.MAX_IMAGE_PIXELS
    for bound in (1_000, 100_000_000, 1_599_999_999):
        with pytest.raises(SampleRejected, match=r"huge\.png.*max_image_pixels") as caught:
            open_image(path, bound)
        assert caught.value.reason == "image_too_large"
    # above PIL's own error threshold (179 Mpx), with our bound higher still: PIL must not decide
    with pytest.raises(SampleRejected) as caught:
        path.write_bytes(huge_png(14_000))
        open_image(path, 10**9)
    assert caught.value.reason == "image_corrupt"
    assert before == Image.MAX_IMAGE_PIXELS

    exact = tmp_path / "exact.png"
    noise(10, 10).save(exact)
    assert open_image(exact, 100).size == (10, 10)
    with pytest.raises(SampleRejected):
        open_image(exact, 99)


def test_missing_and_corrupt_files(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    noise(64, 64).save(good)
    cases = {
        "empty.jpg": (b"", "image_corrupt"),
        "text.jpg": (b"not a picture", "image_corrupt"),
        "cut.jpg": (good.read_bytes()[:700], "image_corrupt"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SampleRejected, match=name) as caught:
            FileImage(tmp_path / name).load()
        assert caught.value.reason == reason
    for path in (tmp_path / "absent.jpg", tmp_path):
        for use in (FileImage(path).load, FileImage(path).fingerprint):
            with pytest.raises(SampleRejected) as caught:
                use()
            assert caught.value.reason == "image_missing"


def test_a_very_long_picture_is_refused_before_it_fills_the_memory() -> None:
    line = Image.new("RGB", (40_000, 1))
    for geometry in ("pad", "center_crop"):
        with pytest.raises(SampleRejected) as caught:
            to_tiles(line, ImageSpec(224, CLIP_MEAN, CLIP_STD, geometry), "line.png")
        assert caught.value.reason == "image_too_elongated"
        assert str(caught.value).startswith("line.png: 40000 x 1 pixels")
    assert to_tiles(line, ImageSpec(224, CLIP_MEAN, CLIP_STD, "resize")).shape == (1, 3, 224, 224)


def test_fingerprint_tells_files_apart_by_content(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.png")
    noise(8, 8).save(tmp_path / "b.png")
    noise(8, 9).save(tmp_path / "c.png")
    a, b, c = (FileImage(tmp_path / f"{name}.png").fingerprint() for name in "abc")
    assert a == b != c


def test_paths_stay_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner.png").symlink_to(root / "sub" / "a.png")
    assert resolve_inside(root, "sub/../sub/a.png") == root / "sub" / "a.png"
    assert resolve_inside(root, "inner.png") == root / "sub" / "a.png"
    outside = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "folder/secret.png",
        "../root2/a.png",
    ]
    for relative in outside:
        with pytest.raises(DataError, match="outside"):
            resolve_inside(root, relative)
    with pytest.raises(SampleRejected):
        resolve_inside(root, "a\0b.png")
