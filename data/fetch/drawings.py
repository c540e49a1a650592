"""Writing an object set: trimmed drawings with alpha, and index.json, which is all a source reads first.

Layout of a set: `index.json` and `drawings/<id>.png`. Version FORMAT goes up when the meaning changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FORMAT = 1
STORED_PX = 192  # longest side of a stored drawing: no scene draws one larger than this at the default size
MIN_PX = 80  # smaller originals are too coarse to recognise
MIN_TRANSPARENT = 0.02  # share of the picture; less means a photograph in a frame, not a cut-out


@dataclass(frozen=True)
class Drawing:
    """One candidate: an RGBA picture with the words that came with it."""

    id: str
    caption: str
    group: str
    mirror_ok: bool
    image: Image.Image


@dataclass(frozen=True)
class Entry:
    """One row of index.json. Sizes in pixels after trimming; mean_rgb over opaque pixels, 0..255."""

    id: str
    caption: str
    group: str
    mirror_ok: bool
    width: int
    height: int
    mean_rgb: tuple[int, int, int]
    pixels: str  # hash of the stored pixels


def cut_out(image: Image.Image) -> Image.Image | None:
    """RGBA, trimmed to what is visible, at most STORED_PX on its longest side; None when not usable."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    image = image.convert("RGBA")
    if max(image.size) < MIN_PX:
        return None
    alpha = np.asarray(image)[..., 3]
    if (alpha < 128).mean() < MIN_TRANSPARENT:
        return None
    box = Image.fromarray((alpha > 16).astype(np.uint8) * 255).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    scale = STORED_PX / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        # premultiplied, or the colour hidden under transparent pixels bleeds into the edges
        image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    return image


def mean_rgb(image: Image.Image) -> tuple[int, int, int]:
    """Mean colour of an RGBA picture, weighted by alpha."""
    pixels = np.asarray(image, dtype=np.float64).reshape(-1, 4)
    red, green, blue = (pixels[:, :3] * pixels[:, 3:]).sum(0) / max(pixels[:, 3].sum(), 1.0)
    return round(red), round(green), round(blue)


def write_object_set(folder: Path, about: dict[str, str], drawings: Iterable[Drawing]) -> int:
    """Write drawings and index into `folder`, without unusable ones and exact copies. Returns the count."""
    entries: list[Entry] = []
    seen: set[str] = set()
    for drawing in drawings:
        image = cut_out(drawing.image)
        if image is None:
            continue
        pixels = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
        if pixels in seen:
            continue
        seen.add(pixels)
        path = folder / "drawings" / f"{drawing.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        entries.append(
            Entry(
                id=drawing.id,
                caption=drawing.caption,
                group=drawing.group,
                mirror_ok=drawing.mirror_ok,
                width=image.width,
                height=image.height,
                mean_rgb=mean_rgb(image),
                pixels=pixels,
            )
        )
    entries.sort(key=lambda entry: entry.id)
    index = {"format": FORMAT, **about, "drawings": [asdict(entry) for entry in entries]}
    (folder / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")
    return len(entries)


def is_complete(folder: Path) -> bool:
    """Whether a finished set of the present format lies there (sets appear whole or not at all)."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("format") == FORMAT
