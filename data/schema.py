"""What the layers hand each other: samples, their encoded form, batches and the model's specs.

Shape legend: T tokens of a sample or row, B rows, P image tiles, M images, K patches of a tile,
D encoder width, R image spans, S tile side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from prismcap.configs.errors import DataError
from prismcap.configs.schema.data import Geometry
from prismcap.data.anyres import Grid, Tiling, best_grid

Role = Literal["system", "user", "assistant"]
IGNORE_INDEX = -100


class SampleRejected(DataError):
    """One sample cannot be used. `reason` is a short fixed key that is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ImageRef(Protocol):
    """A picture that is decoded or drawn only when it is needed."""

    def load(self) -> Image.Image:
        """The RGB picture. Raises SampleRejected when it is missing, corrupt or too large."""

    def fingerprint(self) -> str:
        """A content hash: equal exactly when the pixels are equal. Keys the feature cache."""


@runtime_checkable
class SizedImageRef(ImageRef, Protocol):
    """A picture whose size is known without its pixels (data/image.py: picture_size)."""

    def height_width(self) -> tuple[int, int]:
        """In pixels, of what `load` gives. Raises SampleRejected as `load` does."""


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    index: int  # into Sample.images


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn. `train` is true when the loss falls on it (assistant turns)."""

    role: Role
    parts: tuple[Part, ...]
    train: bool = False

    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class Sample:
    id: str
    images: tuple[ImageRef, ...]
    messages: tuple[Message, ...]
    source: str


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes tiles. mean/std are per RGB channel on the 0..1 scale. grids: of tiles, those
    that anyres chooses from; no other geometry has any."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    geometry: Geometry = "resize"
    grids: tuple[Grid, ...] = ()

    def __post_init__(self) -> None:
        if (self.geometry == "anyres") != bool(self.grids):
            raise ValueError(f"geometry {self.geometry} with the grids {self.grids}: anyres alone has grids")

    @property
    def most_tiles(self) -> int:
        """Of one picture."""
        return 1 + max((rows * columns for rows, columns in self.grids), default=0)

    def tiling(self, height: int, width: int) -> Tiling | None:
        """How a picture of this size in pixels is cut; None where every picture is one tile."""
        if not self.grids:
            return None
        return Tiling(height, width, *best_grid(height, width, self.grids, self.size_px))


@dataclass(frozen=True)
class TokenSpec:
    """How many LLM positions a picture takes, after encoder and connector.

    tile_tokens: rows and columns of a tile's tokens, where they lie in a grid. image_spec: with anyres, where
    the picture's size decides; else None.
    """

    tokens_per_tile: int
    tile_tokens: Grid | None = None
    image_spec: ImageSpec | None = None

    @property
    def depends_on_size(self) -> bool:
        return self.image_spec is not None

    def tiling(self, height: int, width: int) -> Tiling | None:
        """See ImageSpec.tiling."""
        return None if self.image_spec is None else self.image_spec.tiling(height, width)

    def tokens_of(self, tiling: Tiling | None) -> int:
        """Positions of a picture that is cut like this; None: into one tile."""
        if tiling is None:
            return self.tokens_per_tile
        assert self.tile_tokens is not None
        return tiling.num_tokens(self.tile_tokens)

    def token_count(self, height: int, width: int) -> int:
        """Positions for a picture of this size in pixels."""
        return self.tokens_of(self.tiling(height, width))


@dataclass(frozen=True)
class Segment:
    """A rendered piece of a conversation: text, or the image `image`.

    `mark` is the template's own sign (`<|im_end|>`, a closing newline): exactly one token, never
    merged with its neighbours. Text that is not a mark never becomes a special token, whatever it
    says. Neighbouring text of equal `train` is tokenised together.
    """

    text: str = ""
    image: int | None = None
    train: bool = False
    mark: bool = False


@dataclass(frozen=True)
class TemplateSpec:
    """What generation must know of a template: where to stop, and which special ids open a text."""

    name: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """One sample, ready to pack. input_ids[T] long; labels[T] long, unshifted, IGNORE_INDEX off the
    supervised text; images[M] in order; spans = (image, start, length) over T. tilings[M]: how each picture
    is cut; empty where every picture is one tile."""

    id: str
    input_ids: Tensor
    labels: Tensor
    images: tuple[ImageRef, ...]
    spans: tuple[tuple[int, int, int], ...]
    cut_tokens: int = 0
    tilings: tuple[Tiling, ...] = ()

    def __len__(self) -> int:
        return int(self.input_ids.numel())

    @property
    def num_target_tokens(self) -> int:
        # position 0 predicts nothing: the shift in the loss drops its label
        return int((self.labels[1:] != IGNORE_INDEX).sum())

    @property
    def tiling_of(self) -> dict[ImageRef, Tiling]:
        """By picture; empty where every picture is one tile."""
        return dict(zip(self.images, self.tilings, strict=True)) if self.tilings else {}

    @property
    def num_tiles(self) -> int:
        """Of its different pictures."""
        if not self.tilings:
            return len(set(self.images))
        return sum(tiling.num_tiles for tiling in self.tiling_of.values())


@dataclass
class Batch:
    """One micro-batch of packed rows.

    input_ids, labels, position_ids, segment_ids: long [B, T]. Positions restart at every sample;
    segment_ids count samples of a row from 1, padding is 0 and never attended to.
    tiles float [P, 3, S, S], or features [P, K, D] from the cache in their place: exactly one of
    them is set when there are pictures, neither when there are none.
    tile_image long [P]: the image of each tile. image_sizes long [M, 2]: height, width in pixels.
    image_grids long [M, 2]: with anyres, rows and columns of the tiles after the overview; else None.
    spans long [R, 4]: image, row, start, length.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    spans: Tensor
    tile_image: Tensor
    image_sizes: Tensor
    tiles: Tensor | None = None
    features: Tensor | None = None
    image_grids: Tensor | None = None
    sample_ids: tuple[str, ...] = ()

    @property
    def num_target_tokens(self) -> int:
        """Supervised positions after the shift: a label at the first position of a sample is lost."""
        shifted = self.labels[:, 1:] != IGNORE_INDEX
        inside = self.position_ids[:, 1:] > 0
        return int((shifted & inside).sum())

    @property
    def num_tokens(self) -> int:
        return int((self.segment_ids > 0).sum())

    def tilings(self) -> list[Tiling] | None:
        """How each picture is cut; None where every picture is one tile, or several in no grid."""
        if self.image_grids is None:
            return None
        both = zip(self.image_sizes.tolist(), self.image_grids.tolist(), strict=True)
        return [Tiling(*size, *grid) for size, grid in both]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in memory that a GPU reads by itself, so that `to(..., non_blocking=True)` does not wait."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            key: function(value) if isinstance(value, Tensor) else value for key, value in vars(self).items()
        }
        return Batch(**changed)
