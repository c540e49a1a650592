"""Image-text pairs in tar shards, as img2dataset writes them: `000012.jpg` beside `000012.txt` or `.json`.

Read at any place, in any order, through an index of the shards that is made once (_tar_index.py). Members are
read and never extracted: a name that leads out of the archive is but a name. What cannot be used, such as a
picture without a text, is a sample that is rejected and counted.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from PIL import Image
from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.image import read_image, read_size
from prismcap.data.schema import DataError, Sample, SampleRejected
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._rows import short
from prismcap.data.sources._tar_index import Member, Pair, Shard, index_shards
from prismcap.data.sources._turns import caption_messages, check_text, draw_instruction

# what BLIP's captions lose: pre_caption of LAVIS (lavis/processors/blip_processors.py)
_PUNCTUATION = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_MOST_TEXT_BYTES = 1 << 20
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Options(Section):
    """Which shards, and what becomes of their captions.

    path: a tar file, a folder of them, a pattern (`cc/*.tar`, `cc/{00000..01255}.tar`), or a list of these.
    json_key: the caption is this key of the `.json` (none: the `.txt`, and without one the json's `caption`).
    normalise: lower case, and without . ! " ( ) * # : ; ~ as BLIP trains; comma, hyphen, apostrophe and
    question mark stay there. max_words: longer captions end after so many; BLIP has 50.
    instructions: a sample is asked by one of them, drawn by its id; none by default.
    limit: only the first pairs.
    """

    path: str | tuple[str, ...]
    json_key: str | None = None
    normalise: bool = False
    max_words: int | None = Field(default=None, ge=1)
    instructions: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class TarImage:
    """A picture within a tar file, decoded when it is loaded. As text: shard and member."""

    shard: Path
    member: Member
    max_pixels: int

    def __str__(self) -> str:
        return f"{self.shard}, member {self.member.name}"

    def load(self) -> Image.Image:
        """The RGB picture. Raises SampleRejected: image_missing, image_corrupt or image_too_large."""
        return read_image(io.BytesIO(self._bytes()), str(self), self.max_pixels)

    def height_width(self) -> tuple[int, int]:
        """(height, width) of what load gives, from the picture's header. Raises SampleRejected as it does."""
        return read_size(io.BytesIO(self._bytes()), str(self), self.max_pixels)

    def fingerprint(self) -> str:
        """A hash of the member's bytes. Raises SampleRejected."""
        return hashlib.blake2b(self._bytes(), digest_size=16).hexdigest()

    def _bytes(self) -> bytes:
        return _read(self.shard, self.member, "image_missing", "image_corrupt")


class WebDataset:
    """All pairs of the shards, in their order."""

    def __init__(self, shards: list[Shard], options: Options, context: SourceContext) -> None:
        self.shards = shards
        self.options = options
        self.context = context
        self._ends = tuple(accumulate(shard.num_pairs for shard in shards))

    def __len__(self) -> int:
        return min(self._ends[-1], self.options.limit or self._ends[-1])

    def fingerprint(self) -> str:
        """See FileSource.fingerprint. The seed draws the instructions."""
        digest = hashlib.blake2b("\n".join(shard.state for shard in self.shards).encode(), digest_size=16)
        return f"{digest.hexdigest()} {len(self)} {self.options!r} {self.context.seed}"

    def __getitem__(self, index: int) -> Sample:
        """Pair `index`, counted from 0. Raises SampleRejected naming shard and member."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        shard = self.shards[number]
        pair = shard.pair(index - (self._ends[number - 1] if number else 0))
        if pair.image is None:
            message = f"{shard.path}, member {pair.key}: no picture (jpg, png, webp) beside its text"
            raise SampleRejected("image_missing", message)
        caption = self._caption(shard, pair)
        id = f"{shard.path.stem}/{pair.key}"
        instruction = draw_instruction(self.options.instructions, self.context.seed, id)
        image = TarImage(shard.path, pair.image, self.context.max_image_pixels)
        return Sample(id, (image,), caption_messages(instruction, caption), shard.path.name)

    def _caption(self, shard: Shard, pair: Pair) -> str:
        key = self.options.json_key
        member = pair.json if key is not None else pair.text or pair.json
        if member is None:
            wanted = ".txt or .json" if key is None else ".json"
            message = f"{shard.path}, member {pair.key}: no {wanted} beside the picture"
            raise SampleRejected("no_caption", message)
        where = f"{shard.path}, member {member.name}"
        if member.size > _MOST_TEXT_BYTES:
            message = f"{where}: a text of {member.size} bytes, more than {_MOST_TEXT_BYTES}"
            raise SampleRejected("row_malformed", message)
        try:
            text = _read(shard.path, member, "caption_unreadable", "row_malformed").decode()
        except UnicodeDecodeError as error:
            raise SampleRejected("row_malformed", f"{where}: not UTF-8 text: {error}") from error
        if member is pair.json:
            text = _json_caption(text, key or "caption", where)
        caption = text.strip()
        if self.options.normalise:
            caption = normalised(caption)
        if self.options.max_words is not None:
            caption = " ".join(caption.split(" ")[: self.options.max_words])
        check_text(caption, "assistant", where)
        return caption


def normalised(caption: str) -> str:
    """Lower case, punctuation and runs of white space as one space: see Options.normalise."""
    return re.sub(r"\s{2,}", " ", caption.lower().translate(_PUNCTUATION)).strip()


def _json_caption(text: str, key: str, where: str) -> str:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise SampleRejected("row_malformed", f"{where}: not valid JSON: {error}") from error
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str):
        found = f"the keys {sorted(row)}" if isinstance(row, dict) and key not in row else short(value)
        message = f"{where}, key {key!r}: expected a caption, found {found}; json_key names another key"
        raise SampleRejected("row_malformed", message)
    return value


def _read(shard: Path, member: Member, gone: str, wrong: str) -> bytes:
    """The bytes of a member. Raises SampleRejected: `gone` (shard not to be read) or `wrong` (not whole)."""
    where = f"{shard}, member {member.name}"
    try:
        with shard.open("rb") as stream:
            stream.seek(member.offset)
            content = stream.read(member.size)
    except OSError as error:
        raise SampleRejected(gone, f"{where}: cannot be read: {error}") from error
    if len(content) < member.size:
        raise SampleRejected(wrong, f"{where}: cut off: the shard has changed since it was indexed")
    return content


def shard_paths(patterns: str | tuple[str, ...]) -> list[Path]:
    """The tar files that Options.path means. Raises DataError for what leads to none."""
    paths: list[Path] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        for text in _ranges(str(resolve_path(pattern))):
            path = Path(text)
            if path.is_dir():
                found = sorted(path.glob("*.tar"))
            elif path.is_file() or not glob.has_magic(text):
                found = [path]
            else:
                found = [Path(name) for name in sorted(glob.glob(text))]
            if not found:
                raise DataError(
                    f"webdataset: no tar file at {pattern!r}: expected a local .tar, a folder of them, or a "
                    "pattern with * or {00000..01255}"
                )
            paths += found
    if not paths:
        raise DataError("webdataset: path is an empty list: name at least one tar file")
    return paths


def _ranges(text: str) -> Iterator[str]:
    """`{00..12}` spelled out, also several times in one path."""
    match = _RANGE.search(text)
    if match is None:
        yield text
        return
    first, last = match.groups()
    if int(last) < int(first):
        raise DataError(f"webdataset: {match[0]} in {text!r} is empty: expected {{first..last}}")
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{text[: match.start()]}{number:0{len(first)}d}{text[match.end() :]}")


def build(options: Options, context: SourceContext) -> WebDataset:
    """Scans the shards where that has not been done. Raises DataError naming the shard that is missing or no
    tar file."""
    return WebDataset(index_shards(shard_paths(options.path)), options, context)
