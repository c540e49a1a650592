"""Picture files, and the one way in which a picture becomes the model's input.

`to_tiles` equals Hugging Face's PIL image processors to the last bit (tests/data/test_image.py), so
that an exported model sees what the trained one saw. The counterparts in transformers:
- resize: SiglipImageProcessorPil(size={height: S, width: S})
- center_crop: CLIPImageProcessorPil(size={shortest_edge: S}, crop_size={height: S, width: S})
- pad: LlavaImageProcessorPil(do_pad=True, do_center_crop=False, size={height: S, width: S})
- anyres: LlavaNextImageProcessorPil(size and crop_size={height: S, width: S}, do_center_crop=False)

Shape legend: P tiles (one, but for anyres), S tile side in pixels.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from prismcap.data.anyres import Tiling
from prismcap.data.schema import ImageRef, ImageSpec, SampleRejected, SizedImageRef

# what PIL's decoders raise on damaged files, besides their own subclasses of these
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error)
# the square around, or the strip before the crop of, a very long picture: 100 Mpx are 300 MB
MAX_INTERMEDIATE_PIXELS = 100_000_000
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_PIL_BOUND_LOCK = threading.Lock()


@dataclass(frozen=True)
class FileImage:
    """A picture file, decoded when it is loaded. Equal values are the same picture. As text: its path."""

    path: Path
    max_pixels: int = 100_000_000

    def __str__(self) -> str:
        return str(self.path)

    def load(self) -> Image.Image:
        """The RGB picture; see open_image."""
        return open_image(self.path, self.max_pixels)

    def height_width(self) -> tuple[int, int]:
        """Of the upright picture, in pixels; see upright_size."""
        return upright_size(self.path, self.max_pixels)

    def fingerprint(self) -> str:
        """A hash of the file's bytes. Raises SampleRejected("image_missing")."""
        digest = hashlib.blake2b(digest_size=16)
        try:
            with _existing(self.path).open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise SampleRejected("image_missing", f"{self.path}: cannot be read: {error}") from error
        return digest.hexdigest()


def resolve_inside(root: Path, relative: str) -> Path:
    """The file `relative` to `root`, links followed.

    Raises SampleRejected("image_outside_root") when it lies elsewhere: data files come from
    strangers, and must not make a run read other files of this machine.
    """
    try:
        base = root.resolve()
        path = (base / relative).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a name too long, a loop of links
        message = f"image {relative!r} below {root}: no such path: {error}"
        raise SampleRejected("image_missing", message) from error
    if not path.is_relative_to(base):
        raise SampleRejected(
            "image_outside_root",
            f"image {relative!r} leads to {path}, outside of the data root {base}. "
            "Set image_root to a folder that holds all pictures.",
        )
    return path


def _existing(path: Path) -> Path:
    # is_file also keeps pipes and devices out, on which reading would never end
    if not path.is_file():
        raise SampleRejected("image_missing", f"{path}: no such picture file")
    return path


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """The picture as RGB, upright (EXIF), transparency over white. Its size is checked before decoding.

    Raises SampleRejected: image_missing, image_corrupt, or image_too_large (more than max_pixels).
    """
    return read_image(_existing(path), str(path), max_pixels)


def read_image(file: Path | BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """open_image of a file that is there, or of its bytes; `name` goes into errors."""
    with _opened(file, name, max_pixels) as image:
        image.load()
        return _to_rgb(_upright(image))


def upright_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width) of what open_image gives, from the file's header. Raises SampleRejected as it does."""
    return read_size(_existing(path), str(path), max_pixels)


def read_size(file: Path | BinaryIO, name: str, max_pixels: int) -> tuple[int, int]:
    """upright_size of a file that is there, or of its bytes; `name` goes into errors."""
    with _opened(file, name, max_pixels) as image:
        width, height = image.size
        # a TIFF's size is that of the upright picture already
        turned = image.format != "TIFF" and _orientation(image) in _TURNED
        return (width, height) if turned else (height, width)


def picture_size(image: ImageRef) -> tuple[int, int]:
    """(height, width) in pixels. The picture is loaded only where it cannot tell its size otherwise.

    Raises SampleRejected.
    """
    if isinstance(image, SizedImageRef):
        return image.height_width()
    picture = image.load()
    return picture.height, picture.width


@contextmanager
def _opened(file: Path | BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The file with its header read and its size checked; errors inside become SampleRejected too."""
    try:
        with _pil_bound(max_pixels), Image.open(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width} x {height} pixels", max_pixels)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "the size in its header", max_pixels) from error
    except SampleRejected:
        raise
    except PermissionError as error:
        raise SampleRejected("image_missing", f"{name}: cannot be read: {error}") from error
    except _DECODE_ERRORS as error:
        raise SampleRejected("image_corrupt", f"{name}: not a readable picture: {error}") from error


def _too_large(name: str, what: str, max_pixels: int) -> SampleRejected:
    return SampleRejected(
        "image_too_large",
        f"{name}: {what} is more than max_image_pixels={max_pixels}. Shrink the picture or raise the bound.",
    )


@contextmanager
def _pil_bound(max_pixels: int) -> Iterator[None]:
    """Makes PIL's own size checks use our bound, as errors, while one picture is read.

    They also see the true size of pictures inside containers (ICO), which the header may understate.
    The setting is global in PIL, hence the lock and the restoring.
    """
    with _PIL_BOUND_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        # damaged metadata is common on the web and says nothing about the pixels
        return image


def _orientation(image: Image.Image) -> int:
    """As _upright sees it."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DECODE_ERRORS:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # convert("RGB") would clip 16-bit grey at 255 and leave a white picture
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def to_tiles(image: Image.Image, spec: ImageSpec, name: str = "a picture") -> Tensor:
    """tiles_P3SS, float32, normalised by the spec's mean and std. P = 1, but for anyres.

    resize: squashed to S x S. center_crop: shortest side to S, the middle cut out. pad: first made
    square with bars of the mean colour (LLaVA's expand2square), then resized. anyres: the whole picture
    squashed, then the tiles of its grid (data/anyres.py). Bicubic, antialiased.
    Raises SampleRejected("image_too_elongated"), naming the picture by `name`, when a step between would
    take too much memory.
    """
    side = spec.size_px
    tiling = spec.tiling(image.height, image.width)
    if tiling is not None:
        overview = image.resize((side, side), Image.Resampling.BICUBIC)
        return torch.stack([_normalised(tile, spec) for tile in (overview, *_cut(image, tiling, side))])
    if spec.geometry == "resize":
        square = image.resize((side, side), Image.Resampling.BICUBIC)
    elif spec.geometry == "center_crop":
        square = _center_crop(image, side, name)
    else:
        square = _pad_to_square(image, spec.mean, name).resize((side, side), Image.Resampling.BICUBIC)
    return _normalised(square, spec)[None]


def _normalised(square: Image.Image, spec: ImageSpec) -> Tensor:
    """[3, S, S]."""
    # the order of roundings is that of transformers' rescale and normalize
    pixels = (np.asarray(square).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(values, dtype=np.float32) for values in (spec.mean, spec.std))
    return torch.from_numpy(np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)))


def _cut(image: Image.Image, tiling: Tiling, side: int) -> Iterator[Image.Image]:
    """The tiles of the grid, row by row: the picture scaled into it, with black bars (as in LLaVA)."""
    wide, high = tiling.columns * side, tiling.rows * side
    across, down = wide / image.width, high / image.height
    if across < down:
        size = wide, min(math.ceil(image.height * across), high)
    else:
        size = min(math.ceil(image.width * down), wide), high
    canvas = Image.new("RGB", (wide, high))
    scaled = image.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(scaled, ((wide - size[0]) // 2, (high - size[1]) // 2))
    for top in range(0, high, side):
        for left in range(0, wide, side):
            yield canvas.crop((left, top, left + side, top + side))


def _center_crop(image: Image.Image, side: int, name: str) -> Image.Image:
    width, height = image.size
    long = int(side * max(width, height) / min(width, height))
    new_width, new_height = (side, long) if width <= height else (long, side)
    _check_intermediate(image, new_width * new_height, name)
    resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - side) // 2, (new_height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float], name: str) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    _check_intermediate(image, side * side, name)
    # truncated, not rounded: (122, 116, 104) for CLIP's mean, as in LLaVA
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _check_intermediate(image: Image.Image, pixels: int, name: str) -> None:
    if pixels > MAX_INTERMEDIATE_PIXELS:
        raise SampleRejected(
            "image_too_elongated",
            f"{name}: {image.width} x {image.height} pixels need {pixels} pixels on the way to a "
            f"square, more than {MAX_INTERMEDIATE_PIXELS}. Crop it, or use geometry: resize.",
        )


def from_tile(tile_3SS: Tensor, spec: ImageSpec) -> Image.Image:
    """The picture that a tile holds, for people to look at: the reverse of the normalisation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    pixels = ((tile_3SS.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
