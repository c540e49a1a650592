"""Tux Paint's stamps (GPL-2): a Debian package of drawings and photographs, each with a caption.

Beside each `name.png` lie `name.txt`, whose first line is the English caption, and often `name.dat`
with keywords, of which `nomirror` matters here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from prismcap.data.fetch.drawings import Drawing, is_complete, write_object_set
from prismcap.data.fetch.packages import (
    TUXPAINT_STAMPS,
    FetchError,
    Say,
    put_in_place,
    unpack_debian,
    work_folder,
)

STAMPS = Path("usr/share/tuxpaint/stamps")
ABOUT = {
    "name": "tuxpaint",
    "license": "GPL-2.0-or-later",
    "source": "Tux Paint stamps, Debian package tuxpaint-stamps-default",
}


def fetch_tuxpaint(cache: Path, say: Say) -> Path:
    """Make <cache>/objects/tuxpaint, unless it is there. Raises FetchError, which names the other set."""
    target = cache / "objects" / "tuxpaint"
    if is_complete(target):
        say(f"tuxpaint: already in {target}")
        return target
    with work_folder(target) as work:
        try:
            version = unpack_debian(TUXPAINT_STAMPS, work, say)
        except FetchError as error:
            raise FetchError(
                f"{error}. The other set of objects needs only pip: `prismcap fetch openmoji`, "
                "or `scripts/demo.sh --objects openmoji`."
            ) from error
        say("cutting out the stamps")
        made = work / "made"
        made.mkdir()
        drawings = read_stamps(work / "unpacked" / STAMPS)
        count = write_object_set(made, {**ABOUT, "version": version}, drawings)
        if count == 0:
            raise FetchError(f"{TUXPAINT_STAMPS} {version} holds no usable stamp below {STAMPS}")
        put_in_place(made, target)
    say(f"tuxpaint: {count} drawings in {target}")
    return target


def read_stamps(folder: Path) -> Iterator[Drawing]:
    """Every PNG stamp with a caption, in the order of its path. The group is its folder."""
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if not text.is_file():
            continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        keywords = path.with_suffix(".dat")
        flags = keywords.read_text(encoding="utf-8", errors="replace").split() if keywords.is_file() else []
        with Image.open(path) as image:
            image.load()
        relative = path.relative_to(folder)
        yield Drawing(
            id=relative.with_suffix("").as_posix(),
            caption=lines[0].strip() if lines else "",
            group=relative.parent.as_posix(),
            # one file of the package runs two keywords together
            mirror_ok=not any(flag.startswith("nomirror") for flag in flags),
            image=image,
        )
