"""Fills the feature cache of a stage: each of its pictures goes through the frozen encoder once.

Shape legend: P tiles, S tile side in pixels, K patches, D encoder width.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prismcap.configs.cache import cache_dir
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.stage import Precision
from prismcap.data import anyres
from prismcap.data import image as preprocessing
from prismcap.data.features import FP8, FeatureStore, StoredAs, StoredImage, shard_path, shard_tensors
from prismcap.data.image import picture_size
from prismcap.data.mix import Mix
from prismcap.data.pack import PixelInputs
from prismcap.data.schema import ImageRef, ImageSpec, SampleRejected
from prismcap.data.workers import read_ahead
from prismcap.model.captioner import Captioner
from prismcap.model.contracts import VisionEncoder
from prismcap.model.precision import autocast
from prismcap.model.weights import save_weights
from prismcap.train.checkpoint import SaveError
from prismcap.train.distributed import Ranks
from prismcap.train.feature_lock import filling_alone
from prismcap.train.files import is_full, megabytes

log = logging.getLogger(__name__)

# a kill loses at most one unfinished shard of work
SHARD_BYTES = 64_000_000
LINE_EVERY_S = 10.0
ENCODED_AT_ONCE = 32  # tiles; with anyres a picture has several
Progress = Callable[[int, int, float], None]


def open_store(
    component: Component,
    encoder: VisionEncoder,
    spec: ImageSpec,
    precision: Precision,
    stored_as: StoredAs = "bf16",
) -> FeatureStore:
    """The store of this very encoder, preprocessing and precision, in the cache folder."""
    key = store_key(component, encoder, spec, precision)
    return FeatureStore(cache_dir() / "features" / f"{key}-{stored_as}", stored_as)


def store_key(component: Component, encoder: VisionEncoder, spec: ImageSpec, precision: Precision) -> str:
    """A hash of all that features depend on besides the picture: the encoder's weights, options and
    code, how a picture becomes tiles, and the precision it is encoded in."""
    digest = hashlib.blake2b(digest_size=16)
    config = {"encoder": component.model_dump(mode="json"), "image": asdict(spec), "precision": precision}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for module in (anyres, preprocessing, sys.modules[type(encoder).__module__]):
        digest.update(inspect.getsource(module).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def fill(
    captioner: Captioner,
    mix: Mix,
    num_positions: int,
    spec: ImageSpec,
    store: FeatureStore,
    ranks: Ranks,
    precision: Precision,
    num_workers: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> int:
    """Encode every picture of the first `num_positions` samples of the mix that the store lacks.

    Encodes in the precision the stage trains in (bf16 by autocast), each rank its share. Pictures that
    cannot be read are left out: training rejects and counts them. Finished shards stay when it is
    interrupted. One run at a time fills a store: another waits, and encodes what is missing then. Returns the
    number of pictures encoded on all ranks. Collective. Raises SaveError when the disk cannot hold them.
    """
    # one rank looks: another could see shards that a third has written meanwhile, and share out otherwise
    missing = ranks.on_first(lambda: missing_images(mix, num_positions, store, num_workers))
    if missing:
        with filling_alone(store.folder, ranks):
            missing = ranks.on_first(lambda: _still_missing(missing, store))
            done = _fill(captioner, missing, spec, store, ranks, precision, num_workers, batch_size, progress)
    else:
        done = 0
    store.refresh()
    return done


def _still_missing(missing: Sequence[MissingImage], store: FeatureStore) -> list[MissingImage]:
    store.refresh()
    return [item for item in missing if item.fingerprint not in store]


def _fill(
    captioner: Captioner,
    missing: Sequence[MissingImage],
    spec: ImageSpec,
    store: FeatureStore,
    ranks: Ranks,
    precision: Precision,
    num_workers: int,
    batch_size: int,
    progress: Progress | None,
) -> int:
    if not missing:
        return 0
    encoder = captioner.vision_encoder
    fp8 = store.stored_as == "fp8"
    patch_bytes = encoder.hidden_size * (FP8 if fp8 else torch.bfloat16).itemsize
    if fp8:
        patch_bytes += torch.float32.itemsize  # its scale
    tile_bytes = encoder.features_per_tile * patch_bytes
    ranks.on_first(lambda: _check_space(store.folder, len(missing), _num_tiles(missing, spec) * tile_bytes))
    share = missing[ranks.rank :: ranks.world_size]
    failed: OSError | None = None
    done = 0
    try:
        groups = read_ahead(_Pictures(share, spec), num_workers, batch_size=batch_size)
        features = _encoded(captioner, groups, precision)
        done = _write(features, len(share), store, progress or _Lines(ranks))
    except OSError as error:
        failed = error
    for found in ranks.gather(failed):
        if found is not None:
            what = "no space left" if is_full(found) else "cannot be written"
            raise SaveError(f"{store.folder}: the feature cache: {what} ({found}). What is done stays.")
    return int(ranks.sum([done])[0])


def _num_tiles(images: Sequence[MissingImage], spec: ImageSpec) -> int:
    """With anyres by the sizes in the headers; a picture that cannot be read will not be stored."""
    if not spec.grids:
        return len(images)
    total = 0
    for item in images:
        try:
            tiling = spec.tiling(*picture_size(item.image))
        except SampleRejected:
            continue
        total += 1 if tiling is None else tiling.num_tiles
    return total


def _check_space(folder: Path, num_images: int, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    log.info(
        "feature cache: %d pictures to encode, %s in %s (%s free)",
        num_images,
        megabytes(needed),
        folder,
        megabytes(free),
    )
    if needed > free:
        raise SaveError(
            f"{folder}: the features of {num_images} pictures take {megabytes(needed)}, and "
            f"{megabytes(free)} are free. Make room, point PRISMCAP_CACHE at another disk, or set "
            "feature_cache: false."
        )


def missing_images(
    mix: Mix, num_positions: int, store: FeatureStore, num_workers: int = 0
) -> list[MissingImage]:
    """Every picture of these samples that is not stored, once, in the order of first use."""
    # positions past these only repeat them
    positions = range(min(num_positions, mix.num_until_all))
    walk = read_ahead(_Fingerprints(mix), num_workers, batch_size=None, sampler=positions)
    found: dict[str, ImageRef] = {}
    for images in walk:
        for fingerprint, image in images:
            if fingerprint not in store:
                found.setdefault(fingerprint, image)
    return [MissingImage(fingerprint, image) for fingerprint, image in found.items()]


@dataclass(frozen=True)
class MissingImage:
    fingerprint: str
    image: ImageRef


class _Fingerprints(Dataset[Any]):
    """Pictures of a sample, by position, with their fingerprints; for loader workers."""

    def __init__(self, mix: Mix) -> None:
        self.mix = mix

    def __getitem__(self, position: int) -> list[tuple[str, ImageRef]]:
        try:
            return [(image.fingerprint(), image) for image in self.mix.sample_at(position).images]
        except SampleRejected:
            return []


class _Pictures(Dataset[Any]):
    """Tiles as arrays (a worker's tensors would each take a file of shared memory); None if unreadable."""

    def __init__(self, images: Sequence[MissingImage], spec: ImageSpec) -> None:
        self.images = images
        self.inputs = PixelInputs(spec)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Any, tuple[int, int]] | None:
        item = self.images[index]
        try:
            tiles, size = self.inputs.read(item.image)
        except SampleRejected:
            return None
        return item.fingerprint, tiles.numpy(), size


def _write(features: Iterator[StoredImage], total: int, store: FeatureStore, progress: Progress) -> int:
    """Shard by shard; what is written stays when a later picture fails."""
    shard: list[StoredImage] = []
    shard_bytes = 0
    done, started_s = 0, time.perf_counter()
    for seen, stored in enumerate(features, start=1):
        shard.append(stored)
        shard_bytes += stored.features.nbytes
        if shard_bytes >= SHARD_BYTES:
            save_weights(shard_path(store.folder), shard_tensors(shard, store.stored_as))
            shard, shard_bytes = [], 0
        progress(seen, total, seen / (time.perf_counter() - started_s))
        done = seen
    if shard:
        save_weights(shard_path(store.folder), shard_tensors(shard, store.stored_as))
    return done


def _encoded(captioner: Captioner, groups: Iterator[Any], precision: Precision) -> Iterator[StoredImage]:
    """Features of each readable picture, bf16 on the CPU."""
    captioner.vision_encoder.eval()
    for group in groups:
        readable = [item for item in group if item is not None]
        if not readable:
            continue
        tiles = [torch.from_numpy(tiles) for _, tiles, _ in readable]
        device = captioner.device
        with torch.no_grad(), autocast(device, precision):
            features: Tensor = torch.cat(
                [
                    captioner.encode_images(part.to(device)).to("cpu", torch.bfloat16)
                    for part in torch.cat(tiles).split(ENCODED_AT_ONCE)
                ]
            )
        parts = features.split([len(part) for part in tiles])
        for (fingerprint, _, size), part in zip(readable, parts, strict=True):
            yield StoredImage(fingerprint, part, size)


class _Lines:
    """One line every few seconds on rank 0."""

    def __init__(self, ranks: Ranks) -> None:
        self.shown = ranks.is_first
        self.last_s = time.monotonic()

    def __call__(self, done: int, total: int, images_per_s: float) -> None:
        now = time.monotonic()
        if self.shown and (done == total or now - self.last_s >= LINE_EVERY_S):
            self.last_s = now
            log.info("feature cache: %d of %d pictures, %.1f a second", done, total, images_per_s)
