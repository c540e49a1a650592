"""Where the members of tar shards lie, so that any pair of picture and text can be read at once.

A shard is scanned once: its headers are read, its members are not. What is found is kept under `webdataset/`
in the cache folder, one file per shard, for as long as the shard keeps its path, size and time of change.
Files are put there whole, so any number of processes may scan at once; each begins at another shard and
passes over what others have done meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from prismcap.configs.cache import cache_dir
from prismcap.configs.files import replace_file
from prismcap.data.schema import DataError
from prismcap.data.sources._rows import file_state

log = logging.getLogger(__name__)

# by ending; what has none of these is no part of a pair
_COLUMNS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2}
_NUM_COLUMNS = 3
# a pair's members share all up to the first dot of the file name, as in the webdataset package
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_FORMAT = "1"  # of the kept files


@dataclass(frozen=True)
class Member:
    """A file within a tar file: size bytes from offset on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Pair:
    """The members that share a key; None for one that is not there."""

    key: str
    image: Member | None
    text: Member | None
    json: Member | None


@dataclass(frozen=True)
class Shard:
    """One tar file with its index. state: another text whenever the file is another one."""

    path: Path
    index: Path
    state: str
    num_pairs: int

    def pair(self, number: int) -> Pair:
        """Pair `number`, from 0, in the order of the file. Raises DataError when the index is gone."""
        try:
            row = np.load(self.index, mmap_mode="r", allow_pickle=False)[number]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{self.index}: the index of {self.path}: {error}. Start again.") from error
        members = [
            Member(_decoded(name), int(offset), int(size)) if offset >= 0 else None
            for name, (offset, size) in zip(row["name"], row["place"], strict=True)
        ]
        found = next(member.name for member in members if member is not None)
        match = _NAME.fullmatch(found)
        assert match is not None
        return Pair(match[1], *members)


def index_shards(paths: Sequence[Path]) -> list[Shard]:
    """The shards in order, scanned where no index is kept. Raises DataError naming the shard."""
    states = [file_state(path) for path in paths]
    kept = [cache_dir() / "webdataset" / f"{_hash(state)}.npy" for state in states]
    missing = [i for i, index in enumerate(kept) if _num_pairs(index) is None]
    if missing:
        log.info("webdataset: %d of %d shards to scan, once", len(missing), len(paths))
        started_s = time.monotonic()
        start = os.getpid() % len(missing)
        for i in [*missing[start:], *missing[:start]]:
            if _num_pairs(kept[i]) is None:
                _keep(kept[i], _scan(paths[i]))
        log.info("webdataset: scanned in %.0f s", time.monotonic() - started_s)
    return [Shard(*found, _num_kept(found[1])) for found in zip(paths, kept, states, strict=True)]


def _hash(state: str) -> str:
    return hashlib.blake2b(f"{_FORMAT} {state}".encode(), digest_size=16).hexdigest()


def _num_pairs(index: Path) -> int | None:
    """None where there is no index. A damaged one counts as absent."""
    if not index.is_file():
        return None
    try:
        table = np.load(index, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: damaged (%s): the shard is scanned anew", index, error)
        return None
    return len(table) if table.ndim == 1 and table.dtype.names == ("place", "name") else None


def _num_kept(index: Path) -> int:
    found = _num_pairs(index)
    if found is None:
        raise DataError(f"{index}: written, and gone again: does something clear the cache? Start again.")
    return found


def _keep(index: Path, table: np.ndarray) -> None:
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        replace_file(index, partial(np.save, arr=table, allow_pickle=False))
    except OSError as error:
        raise DataError(
            f"{index}: the index of a shard cannot be written: {error}. Make room, or point "
            "PRISMCAP_CACHE at another disk."
        ) from error


def _scan(path: Path) -> np.ndarray:
    """[pairs] of place int64 [3, 2] (offset and size; -1 for none) and name [3], by their first members."""
    pairs: dict[str, list[Member | None]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for item in tar:
                match = _NAME.fullmatch(item.name)
                column = _COLUMNS.get(match[2].lower()) if match else None
                # links lead elsewhere, and sparse files are not one piece
                if match is None or column is None or not item.isreg() or item.issparse():
                    continue
                members = pairs.setdefault(match[1], [None] * _NUM_COLUMNS)
                earlier = members[column]
                if earlier is not None and earlier.name == item.name:
                    raise DataError(f"{path}: the member {item.name!r} is there twice: write the shard anew")
                members[column] = earlier or Member(item.name, item.offset_data, item.size)
            _check_end(path, tar.offset)
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: not a whole tar file: {error}. Fetch or write it anew; a compressed one must be "
            "unpacked (gunzip), since it cannot be read from the middle"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}. Check the source's path.") from error
    return _table(list(pairs.values()))


def _check_end(path: Path, offset: int) -> None:
    """tarfile takes a damaged header for the end of the file: what follows would be lost without a word."""
    with path.open("rb") as stream:
        stream.seek(offset)
        block = stream.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"neither a member nor the end mark at byte {offset}")


def _table(pairs: list[list[Member | None]]) -> np.ndarray:
    names = [[_encoded(member.name) if member else b"" for member in members] for members in pairs]
    places = [[(m.offset, m.size) if m else (-1, 0) for m in members] for members in pairs]
    longest = max((len(name) for group in names for name in group), default=1)
    dtype = np.dtype([("place", "<i8", (_NUM_COLUMNS, 2)), ("name", f"S{longest}", (_NUM_COLUMNS,))])
    table = np.zeros(len(pairs), dtype)
    if pairs:
        table["place"], table["name"] = places, names
    return table


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as tarfile has decoded it


def _decoded(name: bytes) -> str:
    return bytes(name).decode("utf-8", "backslashreplace")
