"""Drawing a scene graph. Deterministic: the same graph and drawings give the same pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from prismcap.data.scenes.graph import SceneGraph
from prismcap.data.scenes.objects import drawing_path
from prismcap.data.schema import SampleRejected

# none is the word of an object too, as orange would be
COLORS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 243),
    "gray": (152, 154, 158),
    "yellow": (246, 216, 96),
    "pink": (246, 178, 200),
    "red": (196, 60, 58),
    "purple": (150, 102, 184),
    "blue": (92, 146, 216),
    "teal": (54, 160, 158),
    "green": (112, 178, 104),
    "brown": (136, 98, 70),
    "black": (42, 42, 48),
}
TEXTURES = ("plain", "striped", "dotted", "checked", "grainy")
TONE = 0.16  # how far the second tone of a texture goes towards white, or black on a light colour
PERIOD_PX = 24  # of stripes, dots and checks in a picture of 192 px
DESIGN_PX = 192


@lru_cache(maxsize=128)
def background(color: str, texture: str, image_px: int) -> Image.Image:
    """An RGB picture of one texture. The caller copies it before drawing on it."""
    base = np.array(COLORS[color], dtype=np.float64)
    towards = 0.0 if base.mean() > 140 else 255.0
    second = base + TONE * (towards - base)
    period = PERIOD_PX * image_px / DESIGN_PX
    y, x = np.mgrid[0:image_px, 0:image_px]
    if texture == "plain":
        share = np.zeros((image_px, image_px))
    elif texture == "striped":
        share = ((x + y) % period < period / 2).astype(float)
    elif texture == "dotted":
        from_centre = np.hypot(x % period - period / 2, y % period - period / 2)
        share = (from_centre < period / 4).astype(float)
    elif texture == "checked":
        share = ((x // (period / 2)).astype(int) + (y // (period / 2)).astype(int)) % 2.0
    else:
        share = np.random.default_rng(0).random((image_px, image_px))
    pixels = base + share[..., None] * (second - base)
    return Image.fromarray(pixels.round().astype(np.uint8), "RGB")


@lru_cache(maxsize=768)
def drawing(path: Path) -> Image.Image:
    """A stored drawing, alpha premultiplied: scaling then brings no hidden colour into the edges."""
    try:
        with Image.open(path) as image:
            return image.convert("RGBA").convert("RGBa")
    except OSError as error:
        raise SampleRejected("missing_drawing", f"{path}: {error}. Run `prismcap fetch` again.") from error


def compose(graph: SceneGraph, root: Path) -> Image.Image:
    """The picture of a scene, RGB, image_px x image_px. `root` holds the object sets."""
    scene = background(graph.background.color, graph.background.texture, graph.image_px).copy()
    for item in graph.objects:
        left, top, width, height = item.box
        stamp = drawing(drawing_path(root, item.stamp))
        stamp = stamp.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0).convert("RGBA")
        if item.mirrored:
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scene.paste(stamp, (left, top), stamp)
    return scene


@lru_cache(maxsize=1)
def _drawn_by() -> str:
    """A hash of what turns a graph into pixels: this file and the library behind it."""
    source = Path(__file__).read_bytes()
    return hashlib.blake2b(source + PIL.__version__.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class SceneImage:
    """A scene that is drawn when it is needed. pixels: the hashes of its drawings, in order."""

    graph: SceneGraph
    root: str
    pixels: tuple[str, ...]

    def load(self) -> Image.Image:
        """The picture, RGB. Raises SampleRejected when a drawing is missing or broken."""
        return compose(self.graph, Path(self.root))

    def height_width(self) -> tuple[int, int]:
        """In pixels; nothing is drawn."""
        return self.graph.image_px, self.graph.image_px

    def fingerprint(self) -> str:
        """Hash of the graph, of the pixels of its drawings and of the drawing code; nothing is drawn."""
        text = "\n".join((self.graph.digest(), *self.pixels, _drawn_by()))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
