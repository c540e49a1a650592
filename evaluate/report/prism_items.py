"""The items of Prism runs, as the page's error browser takes them: every text and picture once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from prismcap.evaluate.report.gallery import picture_uri
from prismcap.evaluate.report.prism_read import CAUSES, ITEMS, PrismFiles, cell_key
from prismcap.evaluate.report.read import Record

MOST_TEXT = 6000  # characters; of longer ones the middle is left out
MOST_PICTURE_BYTES = 60_000_000  # of all pictures together: a browser must still open the page
NONE = -1


@dataclass
class _Pool:
    """Values by number, each once."""

    values: list[Any] = field(default_factory=list)
    numbers: dict[Any, int] = field(default_factory=dict)

    def number(self, value: Any) -> int:
        """-1 for None."""
        if value is None:
            return NONE
        if value not in self.numbers:
            self.numbers[value] = len(self.values)
            self.values.append(value)
        return self.numbers[value]


class _Pictures:
    """Thumbnails as data URIs, each once, until there are too many bytes of them."""

    def __init__(self) -> None:
        self.pool = _Pool()
        self.known: dict[tuple[int, str], int] = {}
        self.num_bytes = 0
        self.absent = 0

    def number(self, number: int, run: PrismFiles, name: Any) -> int:
        """-1 where the row names none, the file is gone, or the page is full."""
        if name is None:
            return NONE
        key = (number, str(name))
        if key not in self.known:
            self.known[key] = self._read(run, str(name))
        return self.known[key]

    def _read(self, run: PrismFiles, name: str) -> int:
        # one that lies outside the run is refused, there or not
        uri = picture_uri(run.folder, name, ITEMS) if _may_be_read(run, name) else None
        if uri is None or self.num_bytes + len(uri) > MOST_PICTURE_BYTES:
            self.absent += 1
            return NONE
        if uri not in self.pool.numbers:
            self.num_bytes += len(uri)
        return self.pool.number(uri)


def _may_be_read(run: PrismFiles, name: str) -> bool:
    path = (run.folder / name).resolve()
    return path.is_file() or not path.is_relative_to(run.folder.resolve())


@dataclass(frozen=True)
class BrowserData:
    """`json`: what the page embeds. The counts are for its text."""

    json: Markup
    num_items: int
    num_without_picture: int


def browser_data(runs: Sequence[PrismFiles]) -> BrowserData | None:
    """All items of the runs; None where no run has any.

    Raises ReportError when a row names a picture outside its run folder, or one of an unknown type.
    """
    if not any(run.items for run in runs):
        return None
    texts, names, pictures = _Pool(), _Pool(), _Pictures()
    questions: list[list[Any]] = []
    numbers: dict[tuple[int, str, str], int] = {}
    items: list[list[int]] = []
    for number, run in enumerate(runs):
        for item in run.items:
            key = (number, str(item["benchmark"]), str(item["id"]))
            if key not in numbers:
                numbers[key] = len(questions)
                picture = pictures.number(number, run, item.get("picture"))
                questions.append(_question(number, item, names, picture))
            items.append([numbers[key], *_answer(run, item, texts, names)])
    data = {
        "runs": [run.label for run in runs],
        "names": names.values,
        "texts": texts.values,
        "pictures": pictures.pool.values,
        "causes": CAUSES,
        "questions": questions,
        "items": items,
    }
    without = sum(question[6] == NONE for question in questions)
    return BrowserData(embeddable(data), len(items), without)


def embeddable(data: Any) -> Markup:
    """JSON that may stand inside a <script> element: nothing in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _question(run: int, item: Record, names: _Pool, picture: int) -> list[Any]:
    """[run, benchmark, id, question, options, answer, picture, [[column, value], …]]"""
    categories = [
        [names.number(str(column)), names.number(str(value))]
        for column, value in (item.get("categories") or {}).items()
        if value
    ]
    options = [shortened(str(option)) for option in item["options"] or ()]
    text = shortened(str(item["question"]))
    benchmark = names.number(str(item["benchmark"]))
    return [run, benchmark, str(item["id"]), text, options, str(item["answer"]), picture, categories]


def _answer(run: PrismFiles, item: Record, texts: _Pool, names: _Pool) -> list[int]:
    """[perceiver, instruction, reasoner, description, reply, extracted, how, cause, marks, error]"""
    cause = run.causes.get((cell_key(item), str(item["id"])))
    marks = bool(item["right"]) | bool(item["refused"]) << 1 | bool(item.get("cut_off")) << 2
    marks |= (item.get("status", "ok") != "ok") << 3
    return [
        names.number(str(item["perceiver"])),
        names.number(str(item["instruction"])),
        names.number(str(item["reasoner"])),
        texts.number(_text(item["description"])),
        texts.number(_text(item["reply"])),
        texts.number(_text(item.get("extracted"))),
        names.number(str(item["how"])),
        names.number(cause),
        marks,
        texts.number(_text(item.get("error"))),
    ]


def _text(value: Any) -> str | None:
    return None if value is None else shortened(str(value))


def shortened(text: str) -> str:
    """The text; of a very long one its two ends, and how much lies between."""
    if len(text) <= MOST_TEXT:
        return text
    half = MOST_TEXT // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
