"""Scene graphs from a seed: which objects, where, how large, on what."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.compose import COLORS, TEXTURES
from prismcap.data.scenes.graph import LAYOUTS, Background, Place, SceneGraph, SceneObject, Size
from prismcap.data.scenes.objects import ObjectSet, Stamp
from prismcap.data.scenes.splits import (
    Split,
    held_out_drawings,
    meets_held_out,
    pair_held_out,
    single_held_out,
)

Cell = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture's side

# objects stay in their cells, and cells of one layout do not overlap: nothing is cut or covered. The middle
# of a picture without a middle object is empty, so that two objects do not look like three
CELLS: dict[int, dict[Place, Cell]] = {
    1: {
        "middle": (0.27, 0.27, 0.73, 0.73),
        "left": (0.02, 0.27, 0.46, 0.73),
        "right": (0.54, 0.27, 0.98, 0.73),
        "top": (0.27, 0.02, 0.73, 0.46),
        "bottom": (0.27, 0.54, 0.73, 0.98),
    },
    2: {
        "left": (0.02, 0.15, 0.45, 0.85),
        "right": (0.55, 0.15, 0.98, 0.85),
        "top": (0.15, 0.02, 0.85, 0.45),
        "bottom": (0.15, 0.55, 0.85, 0.98),
    },
    3: {
        "left": (0.02, 0.2, 0.335, 0.8),
        "middle": (0.345, 0.2, 0.655, 0.8),
        "right": (0.665, 0.2, 0.98, 0.8),
    },
    4: {
        "top left": (0.02, 0.02, 0.45, 0.45),
        "top right": (0.55, 0.02, 0.98, 0.45),
        "bottom left": (0.02, 0.55, 0.45, 0.98),
        "bottom right": (0.55, 0.55, 0.98, 0.98),
    },
}
LARGE = 0.5  # longest side of a large object, as a share of the picture's, where the cell allows it
SMALL_TO_LARGE = 0.66
JITTER = 0.6  # share of the free room of a cell that an object may use
MIN_CONTRAST = 90.0  # distance of an object's mean colour from its background, in RGB units of 0..255
MAX_TRIES = 200


class SceneMaker:
    """Scenes of one split, each a pure function of (seed, index).

    num_objects: weight by number of objects. small_share: how many objects are small.
    In `train` all drawings are those of training and no two words are a held-out pair. A scene of
    `unseen_pairs` has at least one held-out pair, and with one object a held-out single scene. A scene
    of `unseen_stamps` has exactly one held-out drawing, beside drawings of training, and no held-out pair.
    """

    def __init__(
        self,
        objects: ObjectSet,
        split: Split,
        num_objects: Mapping[int, float],
        image_px: int = 192,
        small_share: float = 0.4,
        seed: int = 0,
    ) -> None:
        self.split = split
        self.image_px = image_px
        self.small_share = small_share
        self.seed = seed
        self.counts = tuple(sorted(num_objects))
        self.weights = tuple(num_objects[count] for count in self.counts)
        held = held_out_drawings(objects)
        self.trained: dict[str, tuple[Stamp, ...]] = {}
        self.unseen: dict[str, tuple[Stamp, ...]] = {}
        for word, stamps in objects.by_word().items():
            self.trained[word] = tuple(stamp for stamp in stamps if stamp.id not in held)
            unseen = tuple(stamp for stamp in stamps if stamp.id in held)
            if unseen:
                self.unseen[word] = unseen
        self.words = tuple(self.trained)
        self.first_words = tuple(self.unseen) if split == "unseen_stamps" else self.words
        # the fewest words for which a scene without held-out pairs can be relied on
        if len(self.words) < 4 * max(self.counts) or not self.first_words:
            raise ConfigError(
                f"objects: {len(self.words)} words are too few for {max(self.counts)} objects per scene"
            )
        self._decks: dict[int, tuple[str, ...]] = {}
        self._last: tuple[int, SceneGraph] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_decks": {}, "_last": None}

    def graph(self, index: int) -> SceneGraph:
        """Scene `index`. The last one is kept: the exchanges of a scene are asked for one after another."""
        if self._last is None or self._last[0] != index:
            self._last = (index, self._make(index))
        return self._last[1]

    def _make(self, index: int) -> SceneGraph:
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        count = rng.choices(self.counts, self.weights)[0]
        words = self._words(rng, self._first_word(index), count)
        target = words[0]
        places = rng.choice(LAYOUTS[count])
        rng.shuffle(words)
        stamps = [self._drawing(rng, word, word == target) for word in words]
        sizes: list[Size] = ["small" if rng.random() < self.small_share else "large" for _ in words]
        background = _background(rng, stamps)
        if count == 1:
            background, places, sizes = self._single(rng, stamps, background, places, sizes)
        placed = zip(stamps, places, sizes, strict=True)
        found = tuple(
            place_object(
                rng, stamp, place, size, count, self.image_px, unseen=stamp in self.unseen.get(stamp.word, ())
            )
            for stamp, place, size in placed
        )
        return SceneGraph(self.image_px, background, found)

    def _first_word(self, index: int) -> str:
        """Words are dealt from shuffled decks, so that each one is seen once in len(words) scenes."""
        epoch, position = divmod(index, len(self.first_words))
        if epoch not in self._decks:
            deck = list(self.first_words)
            random.Random(f"{self.seed}/{self.split}/deck/{epoch}").shuffle(deck)
            if len(self._decks) > 8:
                self._decks.clear()
            self._decks[epoch] = tuple(deck)
        return self._decks[epoch][position]

    def _words(self, rng: random.Random, first: str, count: int) -> list[str]:
        chosen = [first]
        if self.split == "unseen_pairs" and count > 1:
            partners = [word for word in self.words if pair_held_out(first, word)]
            while not partners:
                chosen = [rng.choice(self.words)]
                partners = [word for word in self.words if pair_held_out(chosen[0], word)]
            chosen.append(rng.choice(partners))
        for _ in range(MAX_TRIES):
            if len(chosen) == count:
                return chosen
            word = rng.choice(self.words)
            if word in chosen or (self.split != "unseen_pairs" and meets_held_out(word, chosen)):
                continue
            chosen.append(word)
        raise ConfigError(
            f"objects: no {count} words without a held-out pair beside {chosen}: allow more words"
        )

    def _drawing(self, rng: random.Random, word: str, is_target: bool) -> Stamp:
        if self.split == "unseen_stamps" and is_target:
            return rng.choice(self.unseen[word])
        return rng.choice(self.trained[word])

    def _single(
        self,
        rng: random.Random,
        stamps: Sequence[Stamp],
        background: Background,
        places: tuple[Place, ...],
        sizes: list[Size],
    ) -> tuple[Background, tuple[Place, ...], list[Size]]:
        """Draw again where the combination is on the wrong side of the split."""
        wanted = self.split == "unseen_pairs"
        if single_held_out(stamps[0].word, background, places[0], sizes[0]) != wanted:
            background, place, size = draw_single(rng, stamps[0], wanted)
            places, sizes = (place,), [size]
        return background, places, sizes


def draw_single(rng: random.Random, stamp: Stamp, held_out: bool) -> tuple[Background, Place, Size]:
    """Where and how a drawing is shown alone, in a scene that is held out or in one that is not.

    Raises ConfigError when none is found.
    """
    for _ in range(MAX_TRIES):
        background = _background(rng, [stamp])
        (place,) = rng.choice(LAYOUTS[1])
        size: Size = rng.choice(("small", "large"))
        if single_held_out(stamp.word, background, place, size) == held_out:
            return background, place, size
    raise ConfigError(f"no single scene of {stamp.word!r} that is{'' if held_out else ' not'} held out")


def _background(rng: random.Random, stamps: Sequence[Stamp]) -> Background:
    return Background(rng.choice(clear_colors(stamps)), rng.choice(TEXTURES))


def clear_colors(stamps: Sequence[Stamp]) -> list[str]:
    """The background colours on which every drawing shows, in a fixed order; the best one if none does."""
    contrast = {
        color: min(_distance(rgb, stamp.mean_rgb) for stamp in stamps) for color, rgb in COLORS.items()
    }
    clear = [color for color, distance in contrast.items() if distance >= MIN_CONTRAST]
    return clear or [max(contrast, key=lambda color: contrast[color])]


def place_object(
    rng: random.Random,
    stamp: Stamp,
    place: Place,
    size: Size,
    count: int,
    image_px: int,
    unseen: bool = False,
) -> SceneObject:
    """A drawing at a place of a scene of `count` objects: scaled into its cell, moved about, mirrored."""
    left, top, right, bottom = (share * image_px for share in CELLS[count][place])
    factor = 1.0 if size == "large" else SMALL_TO_LARGE
    room_x = min(right - left, LARGE * image_px) * factor
    room_y = min(bottom - top, LARGE * image_px) * factor
    scale = min(room_x / stamp.width, room_y / stamp.height)
    width, height = max(1, int(stamp.width * scale)), max(1, int(stamp.height * scale))
    x = (left + right - width) / 2 + rng.uniform(-1, 1) * JITTER * (right - left - width) / 2
    y = (top + bottom - height) / 2 + rng.uniform(-1, 1) * JITTER * (bottom - top - height) / 2
    return SceneObject(
        word=stamp.word,
        stamp=stamp.id,
        category=stamp.category,
        place=place,
        size=size,
        box=(round(x), round(y), width, height),
        mirrored=stamp.mirror_ok and rng.random() < 0.5,
        unseen=unseen,
    )


def _distance(first: Sequence[float], second: Sequence[float]) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5)
