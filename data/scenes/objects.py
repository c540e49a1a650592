"""Object sets: the drawings that scenes are composed of, each with the one word that names it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from prismcap.configs.cache import cache_dir
from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.words import word_list

ObjectsName = Literal["tuxpaint", "openmoji", "both"]
SETS: dict[str, tuple[str, ...]] = {
    "tuxpaint": ("tuxpaint",),
    "openmoji": ("openmoji",),
    "both": ("tuxpaint", "openmoji"),
}
FETCH_COMMANDS = {"tuxpaint": "prismcap fetch stamps", "openmoji": "prismcap fetch openmoji"}
INDEX_FORMAT = 1  # of prismcap.data.fetch.drawings


@dataclass(frozen=True)
class Stamp:
    """One drawing. id: `<set>:<name>`. Sizes in pixels; mean_rgb 0..255; pixels: hash of the drawing.

    reviewed: whether the word stands in the reviewed list, and not only in the drawing's caption.
    """

    id: str
    word: str
    category: str
    path: Path
    mirror_ok: bool
    width: int
    height: int
    mean_rgb: tuple[int, int, int]
    pixels: str
    reviewed: bool


@dataclass(frozen=True)
class ObjectSet:
    """The usable drawings of one set or of several, in the order of their ids."""

    name: str
    stamps: tuple[Stamp, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(sorted({stamp.word for stamp in self.stamps}))

    def by_word(self) -> dict[str, tuple[Stamp, ...]]:
        """The drawings of each word."""
        found: dict[str, list[Stamp]] = {}
        for stamp in self.stamps:
            found.setdefault(stamp.word, []).append(stamp)
        return {word: tuple(stamps) for word, stamps in sorted(found.items())}


def drawing_path(root: Path, stamp_id: str) -> Path:
    """Where the drawing of a stamp id lies below the folder of all object sets."""
    name, _, drawing = stamp_id.partition(":")
    return root / name / "drawings" / f"{drawing}.png"


def objects_root() -> Path:
    """The folder of all fetched object sets."""
    return cache_dir() / "objects"


def load_objects(name: str, root: Path | None = None) -> ObjectSet:
    """The drawings of `tuxpaint`, `openmoji` or `both` together.

    Raises ConfigError with the command to run when a set has not been fetched.
    """
    return _load(name, objects_root() if root is None else root)


@lru_cache(maxsize=8)
def _load(name: str, root: Path) -> ObjectSet:
    if name not in SETS:
        raise ConfigError(f"objects: {name!r} is no object set. Valid: {', '.join(SETS)}.")
    stamps = [stamp for part in SETS[name] for stamp in _read_set(part, root)]
    return ObjectSet(name, tuple(sorted(stamps, key=lambda stamp: stamp.id)))


def _read_set(name: str, root: Path) -> list[Stamp]:
    index = _read_index(name, root)
    words = word_list(name)
    stamps = []
    for row in index["drawings"]:
        word = words.word(row["id"], row["caption"])
        if word is None:
            continue
        stamp_id = f"{name}:{row['id']}"
        stamps.append(
            Stamp(
                id=stamp_id,
                word=word,
                category=words.category(word, row["group"]),
                path=drawing_path(root, stamp_id),
                mirror_ok=row["mirror_ok"],
                width=row["width"],
                height=row["height"],
                mean_rgb=tuple(row["mean_rgb"]),
                pixels=row["pixels"],
                reviewed=word in words.words or word in words.categories,
            )
        )
    return stamps


def _read_index(name: str, root: Path) -> dict[str, Any]:
    path = root / name / "index.json"
    command = FETCH_COMMANDS[name]
    if not path.is_file():
        raise ConfigError(f"the object set {name!r} is not at {path.parent}: run `{command}`")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: not a readable index ({error}): remove the folder and run `{command}`"
        ) from error
    if index.get("format") != INDEX_FORMAT:
        raise ConfigError(f"{path}: format {index.get('format')!r}, expected {INDEX_FORMAT}: run `{command}`")
    return index
