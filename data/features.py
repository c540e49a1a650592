"""A frozen encoder's features on disk, read in place of pictures.

A store is a folder of safetensors shards. A shard is written whole and never changed, under a name
of its own, so any number of processes may write at once and readers see only whole shards. What a
shard holds is listed in the shard; there is no index that could come to disagree with it.
Shape legend: P tiles of a picture, R rows (tiles) of a shard, K patches, D encoder width.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prismcap.data.pack import PixelInputs
from prismcap.data.schema import DataError, ImageRef, ImageSpec

FP8 = torch.float8_e4m3fn
StoredAs = Literal["bf16", "fp8"]

# each open shard is one mapping of memory; systems limit files, not mappings, to about a thousand
_OPEN_SHARDS = 256


@dataclass(frozen=True)
class StoredImage:
    """One picture's features [P, K, D], a float dtype, and its (height, width) in pixels."""

    fingerprint: str
    features: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class _Place:
    shard: Path
    first_row: int
    num_rows: int
    size: tuple[int, int]


class FeatureStore:
    """Features by fingerprint, bf16 or fp8. Reading maps the files into memory: nothing is loaded ahead.

    Can be handed to loader workers, forked or spawned.
    """

    def __init__(self, folder: Path, stored_as: StoredAs = "bf16") -> None:
        self.folder = folder
        self.stored_as = stored_as  # what is added; each shard says for itself what it holds
        self._places: dict[str, _Place] = {}
        self._known: set[str] = set()
        self.refresh()

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self._places

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Take in the shards that were added since. Raises DataError for a damaged one."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name not in self._known:
                self._list(path)
                self._known.add(path.name)

    def _list(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                index = json.loads(bytes(file.get_tensor("index").tolist()))
                num_rows = file.get_slice("features").get_shape()[0]
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"{path}: not a whole shard of the feature cache ({error}). Delete this file."
            ) from error
        if sum(entry["num_rows"] for entry in index) != num_rows:
            raise DataError(f"{path}: its list does not fit its {num_rows} rows. Delete this file.")
        row = 0
        for entry in index:
            height, width = entry["size"]
            self._places.setdefault(
                entry["fingerprint"], _Place(path, row, entry["num_rows"], (height, width))
            )
            row += entry["num_rows"]

    def read(self, fingerprint: str) -> StoredImage:
        """Raises KeyError when it is not there."""
        place = self._places[fingerprint]
        shard, own = _open_shard(place.shard), slice(place.first_row, place.first_row + place.num_rows)
        features = shard.get_slice("features")[own]
        if features.dtype == FP8:
            features = features.float() * shard.get_slice("scale")[own]
        return StoredImage(fingerprint, features, place.size)


def shard_tensors(images: Sequence[StoredImage], stored_as: StoredAs = "bf16") -> dict[str, Tensor]:
    """The tensors of a shard: features [R, K, D]; the list of what they are, as JSON bytes; in fp8 also the
    scale [R, K, 1] of every patch, by which its largest value is the largest that e4m3 has (448)."""
    index = [
        {"fingerprint": image.fingerprint, "num_rows": len(image.features), "size": list(image.size)}
        for image in images
    ]
    text = bytearray(json.dumps(index).encode())
    index_tensor = torch.frombuffer(text, dtype=torch.uint8)
    features = torch.cat([image.features for image in images])
    if stored_as == "bf16":
        return {"features": features.to(torch.bfloat16), "index": index_tensor}
    scale = features.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / torch.finfo(FP8).max
    return {"features": (features.float() / scale).to(FP8), "scale": scale, "index": index_tensor}


def shard_path(folder: Path) -> Path:
    """A name that no other process takes."""
    return folder / f"shard-{uuid.uuid4().hex}.safetensors"


@lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(path: Path) -> Any:
    # per process; a mapping that was opened before a fork stays valid after it
    return safe_open(path, framework="pt").__enter__()


@dataclass
class FeatureInputs:
    """ImageInputs (data/pack.py) that reads features of pictures in place of the pictures.

    spec: how the store was filled; a picture that is not there is judged by it.
    """

    store: FeatureStore
    spec: ImageSpec
    kind: Literal["tiles", "features"] = "features"
    _fingerprints: dict[ImageRef, str] = field(default_factory=dict, repr=False)

    def read(self, image: ImageRef) -> tuple[Tensor, tuple[int, int]]:
        """features [P, K, D] as float32, and the (height, width) of the picture.

        Raises SampleRejected when the picture itself cannot be used, DataError when it can and is
        not in the store.
        """
        fingerprint = self._fingerprints.get(image)
        if fingerprint is None:
            # a file's fingerprint reads the whole file: once per picture and process is enough
            fingerprint = self._fingerprints[image] = image.fingerprint()
        if fingerprint not in self.store:
            # what the fill could not turn into tiles was never stored, and is rejected here alike
            PixelInputs(self.spec).read(image)
            raise DataError(
                f"{image}: not in the feature cache {self.store.folder}. Was it changed during the run? "
                "Start again with --resume auto to fill the cache."
            )
        stored = self.store.read(fingerprint)
        return stored.features.float(), stored.size
