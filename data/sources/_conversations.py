"""What the sources of conversations in JSON rows have in common: `{image, …}`, pictures below one folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.schema import Message, Sample
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._rows import JsonRows
from prismcap.data.sources._turns import image_file, image_paths


class Options(Section):
    """path: the JSON or JSONL file. image_root: folder that the rows' image paths are relative to
    (none: the file's own folder); pictures outside of it are refused. limit: only the first rows."""

    path: str
    image_root: str | None = None
    limit: int | None = Field(default=None, ge=1)


class Conversations(ABC):
    """Random access to the rows of one file. key, shape: see JsonRows. id_keys: where a row's id may stand;
    the first that is there counts, and the row's number where none is."""

    key: ClassVar[str]
    shape: ClassVar[str]
    id_keys: ClassVar[tuple[str, ...]] = ("id",)

    def __init__(self, path: Path, image_root: Path, limit: int | None, max_image_pixels: int) -> None:
        """Raises DataError at once for a file that is no such JSON."""
        self.rows = JsonRows(path, self.key, self.shape, limit)
        self.image_root = image_root
        self.max_image_pixels = max_image_pixels

    @classmethod
    def of(cls, options: Options, context: SourceContext) -> Self:
        """Raises DataError naming the file when it is missing or no such JSON."""
        path = resolve_path(options.path)
        root = resolve_path(options.image_root) if options.image_root is not None else path.parent
        return cls(path, root, options.limit, context.max_image_pixels)

    @abstractmethod
    def messages(self, row: dict[str, Any], num_images: int, where: str) -> tuple[Message, ...]:
        """The turns of a row. Raises SampleRejected; `where` (file and row) goes into its message."""

    def image(self, row: dict[str, Any]) -> Any:
        """What a row says of its pictures, None for a row of text alone; see image_paths."""
        return row.get("image")

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """See FileSource.fingerprint."""
        return f"{self.rows.fingerprint()} {self.image_root.resolve()}"

    def __getitem__(self, index: int) -> Sample:
        """Row `index`, counted from 0. Raises SampleRejected naming file, row and key."""
        row, where = self.rows[index], self.rows.where(index)
        images = image_paths(self.image(row), where)
        messages = self.messages(row, len(images), where)
        at = f"{where}, key 'image'"
        return Sample(
            id=str(next((row[key] for key in self.id_keys if key in row), index)),
            images=tuple(image_file(self.image_root, value, self.max_image_pixels, at) for value in images),
            messages=messages,
            source=self.rows.path.name,
        )
