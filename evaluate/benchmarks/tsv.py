"""VLMEvalKit's TSV files: MMStar, MMMU_DEV_VAL, MathVista_MINI, AI2D_TEST, MMBench, or one of your own.

Columns: `index`, `question`, `answer`, and `image` (a picture file in base64, a list of such, or another
row's index) or `image_path` (below image_root, or a list); options `A` … `Z`; `hint`; columns that group
questions; MathVista's `question_type`, `answer_type`, `choices`, `answer_option`, `precision`, `unit`; and,
of our own, `reference`, a description that is known to be right. The file is read once for where its rows
lie; a question's row is read when it is asked for, and a picture when it is loaded.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.data.image import FileImage, resolve_inside
from prismcap.data.schema import DataError, ImageRef, SampleRejected
from prismcap.evaluate.benchmarks._contract import Benchmark, BenchmarkContext, Question
from prismcap.evaluate.benchmarks._rotations import circles_of_file, rotated
from prismcap.evaluate.benchmarks._selected import SelectedOptions, select
from prismcap.evaluate.benchmarks._tsv_image import TsvImage, is_list, pictures_of
from prismcap.evaluate.benchmarks._tsv_index import TsvIndex, index_file
from prismcap.evaluate.benchmarks._tsv_question import Asked, is_blank, read_question

__all__ = ["Options", "build"]

CATEGORIES = ("category", "l2-category", "l2_category", "split")


class Options(SelectedOptions):
    """One file, and what is asked of it. Paths may start with `cache:`."""

    path: str
    image_root: str | None = Field(default=None, description="of image_path; none: the file's folder")
    split: str | None = Field(default=None, description="only rows with this value in the column `split`")
    categories: tuple[str, ...] | None = Field(
        default=None, description="columns that group questions; none: those of category, l2-category, split"
    )
    circular: bool = Field(
        default=False, description="ask every choice in all rotations of its options; a file's own are used"
    )


def build(options: Options, context: BenchmarkContext) -> Benchmark:
    """Reads the file once. Raises DataError naming file, row and column; pictures are not decoded yet."""
    benchmark = TsvBenchmark(options, context.max_image_pixels)
    return select(benchmark, benchmark.units, options)


class TsvBenchmark:
    """The questions of one file, all of them that are of the split."""

    def __init__(self, options: Options, max_pixels: int) -> None:
        self._options = options
        self._max_pixels = max_pixels
        self._path = resolve_path(options.path)
        self._root = self._path.parent if options.image_root is None else resolve_path(options.image_root)
        self._num_rows = 0
        self._taken: list[int] = []
        self._option_keys = array("Q")
        self._num_options = array("B")
        self._splits: Counter[str] = Counter()
        self._index: TsvIndex = index_file(self._path, self._check)
        self._categories = self._category_columns()
        if not self._taken:
            raise DataError(
                f"{self._path}: no row has split {options.split!r}; there are "
                f"{', '.join(f'{name} ({number})' for name, number in self._splits.most_common(10))}"
            )
        self._circles = circles_of_file(self._index.row_of, self._option_keys)
        makes_rotations = options.circular and not self._circles
        # (row, rotation); -1: as it stands in the file
        self._positions = [
            (row, rotation)
            for row in self._taken
            for rotation in (
                range(self._num_options[row]) if makes_rotations and self._num_options[row] else (-1,)
            )
        ]

    @property
    def checksum(self) -> str:
        shown = self._options.model_dump(include={"split", "categories", "circular"})
        text = f"{self._index.content}\n{sorted(shown.items())}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def units(self) -> list[str]:
        """By position: the id, or the circle's."""
        return [self._circles.get(row, self._index.ids[row]) for row, _ in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: int, /) -> Question:
        if not 0 <= position < len(self):
            raise IndexError(f"{self._path}: question {position} of {len(self)}")
        row, rotation = self._positions[position]
        values = self._index.values(row)
        where = self._index.where(row)
        asked = read_question(values, where)
        images = self._images(row, values, where)
        question = Question(
            id=self._index.ids[row],
            kind=asked.kind,
            text=asked.text,
            answer=asked.answer,
            images=images,
            options=asked.options,
            hint=_or_empty(values.get("hint")),
            cluster=self._cluster(row, values),
            circle=self._circles.get(row, ""),
            categories={
                column: values[column] for column in self._categories if not is_blank(values[column])
            },
            rules=asked.rules,
            reference=_or_empty(values.get("reference")) or None,
        )
        return question if rotation < 0 else rotated(question, rotation)

    def _check(self, values: Mapping[str, str], where: str) -> None:
        """One row while the file is indexed: of the split, a question in order?"""
        row, self._num_rows = self._num_rows, self._num_rows + 1
        split = self._options.split
        if split is not None:
            if "split" not in values:
                raise DataError(f"{self._path}: no column 'split', so no rows of {split!r}: leave split out")
            self._splits[values["split"]] += 1
        asked: Asked | None = None
        if split in (None, values.get("split")):
            asked = read_question(values, where)
            self._taken.append(row)
            if not is_blank(values.get("image_path")):
                self._files(values["image_path"], where)
        self._option_keys.append(0 if asked is None or not asked.options else _same_options(asked.options))
        self._num_options.append(0 if asked is None else len(asked.options))

    def _category_columns(self) -> tuple[str, ...]:
        wanted = self._options.categories
        if wanted is None:
            return tuple(column for column in CATEGORIES if column in self._index.columns)
        missing = [column for column in wanted if column not in self._index.columns or column == "image"]
        if missing:
            raise DataError(
                f"{self._path}: no column {missing[0]!r} to group questions by; there are "
                f"{', '.join(self._index.columns)}"
            )
        return wanted

    def _images(self, row: int, values: Mapping[str, str], where: str) -> tuple[ImageRef, ...]:
        index = self._index
        number, owner = index.num_pictures[row], index.owner[row]
        if not number:
            return self._files(values["image_path"], where)
        _, start, end, _ = index.places[4 * owner : 4 * owner + 4]
        first = TsvImage(self._path, start, end, None, index.state, owner + 1, self._max_pixels)
        if not index.lists[owner]:
            return (first,)
        return tuple(replace(first, position=position) for position in range(number))

    def _files(self, cell: str, where: str) -> tuple[ImageRef, ...]:
        at = f"{where}, column 'image_path'"
        try:
            paths = pictures_of(cell.encode(), at) if is_list(cell.encode()) else [cell]
            return tuple(FileImage(resolve_inside(self._root, path), self._max_pixels) for path in paths)
        except SampleRejected as error:
            message = str(error) if str(error).startswith(at) else f"{at}: {error}"
            raise SampleRejected(error.reason, message) from error

    def _cluster(self, row: int, values: Mapping[str, str]) -> str:
        if self._index.num_pictures[row]:
            return f"{self._index.picture_keys[row]:016x}"
        return values["image_path"]


def _or_empty(value: str | None) -> str:
    return "" if value is None or is_blank(value) else value


def _same_options(options: tuple[str, ...]) -> int:
    """A number that does not depend on their order; never 0."""
    text = "\0".join(sorted(options))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") | 1
