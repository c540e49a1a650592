"""MiniGPT-4's second-stage captions: `{"annotations": [{"image_id", "caption"}]}` (`filter_cap.json`).

The picture of an annotation is `{image_id}.jpg`. It stands before the instruction, as its template has it;
the instruction is one of the released code's four (prompts/alignment.txt). There each batch draws one anew;
here it belongs to the sample, so that a sample stays the same in every pass and on every rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.schema.base import Section
from prismcap.data.schema import DataError, Sample, SampleRejected
from prismcap.data.sources._contract import SourceContext
from prismcap.data.sources._rows import file_state, short
from prismcap.data.sources._turns import caption_messages, check_text, draw_instruction, image_file

INSTRUCTIONS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
_SHAPE = '{"annotations": [{"image_id", "caption"}]}'


class Options(Section):
    """path: the JSON file. image_root: folder of the pictures (none: `image` beside the file).

    instructions: a sample is asked by one of them, drawn by its id; an empty list asks nothing.
    limit: only the first rows.
    """

    path: str
    image_root: str | None = None
    instructions: tuple[str, ...] = INSTRUCTIONS
    limit: int | None = Field(default=None, ge=1)


class MiniGPT4Json:
    """The annotations of one file, which is read whole: there are a few thousand."""

    def __init__(self, path: Path, image_root: Path, options: Options, context: SourceContext) -> None:
        self.path = path
        self.image_root = image_root
        self.instructions = options.instructions
        self.context = context
        self._rows = _annotations(path)[: options.limit]
        self._state = file_state(path)

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        """See FileSource.fingerprint. The seed draws the instructions."""
        file = f"{self._state} {len(self)} {self.image_root.resolve()}"
        return f"{file} {self.instructions} {self.context.seed}"

    def __getitem__(self, index: int) -> Sample:
        """Annotation `index`, counted from 0. Raises SampleRejected naming file, row and key."""
        row, where = self._rows[index], f"{self.path}, annotations.{index}"
        if not isinstance(row, dict):
            raise SampleRejected(
                "row_malformed", f"{where}: expected {{image_id, caption}}, found {short(row)}"
            )
        id, caption = _image_id(row, where), row.get("caption")
        if not isinstance(caption, str):
            message = f"{where}, key 'caption': expected text, found {short(caption)}"
            raise SampleRejected("row_malformed", message)
        check_text(caption, "assistant", f"{where}, key 'caption'")
        pixels = self.context.max_image_pixels
        image = image_file(self.image_root, f"{id}.jpg", pixels, f"{where}, key 'image_id'")
        instruction = draw_instruction(self.instructions, self.context.seed, id)
        return Sample(id, (image,), caption_messages(instruction, caption), self.path.name)


def _image_id(row: dict[str, Any], where: str) -> str:
    """Text or a number, as files have it. Raises SampleRejected."""
    value = row.get("image_id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        message = (
            f"{where}, key 'image_id': expected the name of a picture without .jpg, found {short(value)}"
        )
        raise SampleRejected("row_malformed", message)
    return str(value)


def _annotations(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the source's path.") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}; expected {_SHAPE}") from error
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        found = f"the keys {sorted(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(
            f"{path}: expected {_SHAPE}, found {found}. For rows of {{id, image, conversations}} take "
            "the source llava_json"
        )
    if not rows:
        raise DataError(f"{path}, key 'annotations': no rows")
    return rows


def build(options: Options, context: SourceContext) -> MiniGPT4Json:
    """Raises DataError naming the file when it is missing or of another shape."""
    path = resolve_path(options.path)
    root = resolve_path(options.image_root) if options.image_root is not None else path.parent / "image"
    return MiniGPT4Json(path, root, options, context)
