"""What is in a composed scene: the ground truth that every caption, question and score comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Place = Literal[
    "left", "middle", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"
]
Size = Literal["small", "large"]

# the named places of a scene by its number of objects, in the order in which captions name them
LAYOUTS: dict[int, tuple[tuple[Place, ...], ...]] = {
    1: (("middle",), ("left",), ("right",), ("top",), ("bottom",)),
    2: (("left", "right"), ("top", "bottom")),
    3: (("left", "middle", "right"),),
    4: (("top left", "top right", "bottom left", "bottom right"),),
}
MAX_OBJECTS = max(LAYOUTS)


@dataclass(frozen=True)
class Background:
    """A colour and a texture by name: striped blue."""

    color: str
    texture: str

    @property
    def name(self) -> str:
        return f"{self.texture} {self.color}"


@dataclass(frozen=True)
class SceneObject:
    """One drawing at one place. `box` is left, top, width, height in pixels of the scene.

    `unseen` is true when this drawing is held out of training (split unseen_stamps).
    """

    word: str
    stamp: str
    category: str
    place: Place
    size: Size
    box: tuple[int, int, int, int]
    mirrored: bool = False
    unseen: bool = False


@dataclass(frozen=True)
class SceneGraph:
    """A whole scene of `image_px` x `image_px` pixels; objects in the order of their layout."""

    image_px: int
    background: Background
    objects: tuple[SceneObject, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(item.word for item in self.objects)

    def pairs(self) -> frozenset[tuple[str, str]]:
        """(word, place) of every object: what a short caption must say, in any order."""
        return frozenset((item.word, item.place) for item in self.objects)

    def at(self, place: str) -> SceneObject:
        """The object at a place. Raises KeyError where nothing is."""
        for item in self.objects:
            if item.place == place:
                return item
        raise KeyError(place)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and mappings, for JSON."""
        return asdict(self)

    def digest(self) -> str:
        """A hash of everything the drawing depends on, except the drawings themselves."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
