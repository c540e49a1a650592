"""Pictures in the `image` column of a TSV file: decoded from the file when they are loaded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from prismcap.data.image import read_image, read_size
from prismcap.data.schema import SampleRejected
from prismcap.data.sources._rows import file_state
from prismcap.evaluate.benchmarks._tsv_rows import unquoted


@dataclass(frozen=True)
class TsvImage:
    """One picture. Equal values are the same picture: rows that point at a row share its values.

    start, end: of the field, in bytes of the file. position: in the field's list of pictures; None where the
    field is one picture. state: of the file when it was indexed. row: for errors.
    """

    path: Path
    start: int
    end: int
    position: int | None
    state: str
    row: int
    max_pixels: int

    def __str__(self) -> str:
        at = "" if self.position is None else f", picture {self.position + 1}"
        return f"{self.path}, row {self.row}, column 'image'{at}"

    def load(self) -> Image.Image:
        """The RGB picture, upright. Raises SampleRejected (see data/image.py)."""
        return read_image(io.BytesIO(self.encoded()), str(self), self.max_pixels)

    def height_width(self) -> tuple[int, int]:
        """Of the upright picture, in pixels."""
        return read_size(io.BytesIO(self.encoded()), str(self), self.max_pixels)

    def fingerprint(self) -> str:
        """A hash of the picture file's bytes, as data/image.py's FileImage has it; kept."""
        return _fingerprint(self)

    def encoded(self) -> bytes:
        """The picture file (PNG, JPEG, …) that the field holds. Raises SampleRejected."""
        if file_state(self.path) != self.state:
            raise SampleRejected("image_missing", f"{self}: the file changed while it was in use; run again")
        # opened for each picture: a file position shared with forked workers would be moved by all of them
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            field = unquoted(stream.read(self.end - self.start))
        if self.position is not None:
            field = pictures_of(field, str(self))[self.position].encode()
        try:
            return base64.b64decode(b"".join(field.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise SampleRejected(
                "image_corrupt",
                f"{self}: not base64 ({error}): expected a picture file in base64, a list of such, or "
                "another row's index in at most 64 characters",
            ) from error


@lru_cache(maxsize=1 << 16)
def _fingerprint(image: TsvImage) -> str:
    return hashlib.blake2b(image.encoded(), digest_size=16).hexdigest()


def is_list(field: bytes) -> bool:
    """Whether a field holds several pictures or paths: `['…', '…']`, in quotes of either kind."""
    return field[:1] == b"[" and field[-1:] == b"]"


def pictures_of(field: bytes, where: str) -> list[str]:
    """The texts of a list. `where` goes into errors. Raises SampleRejected("image_corrupt")."""
    try:
        # neither base64 nor a path of these files has quotes: Python's lists become JSON's
        found = json.loads(field.decode().replace("'", '"'))
    except ValueError as error:
        raise SampleRejected("image_corrupt", f"{where}: not a list of pictures: {error}") from error
    if not found or not all(isinstance(item, str) and item for item in found):
        raise SampleRejected("image_corrupt", f"{where}: expected a list of texts, one for each picture")
    return list(found)
