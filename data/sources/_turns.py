"""What conversations of several file formats have in common: their pictures, and where these stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismcap.data.image import FileImage, resolve_inside
from prismcap.data.schema import ImagePart, Message, Part, Role, SampleRejected, TextPart
from prismcap.data.sources._rows import short

IMAGE_MARK = "<image>"


def image_paths(value: Any, where: str) -> list[str]:
    """The value of a row's `image`: none, one path, or a list. Raises SampleRejected("row_malformed")."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, str) or not item:
            message = f"{where}, key 'image': expected a path or a list of paths, found {short(value)}"
            raise SampleRejected("row_malformed", message)
    return values


def image_file(root: Path, value: str, max_pixels: int, where: str) -> FileImage:
    """The picture at `value` below `root`. `where`: file, row, key. Raises SampleRejected outside of it."""
    try:
        return FileImage(resolve_inside(root, value), max_pixels)
    except SampleRejected as error:
        raise SampleRejected(error.reason, f"{where}: {error}") from error


def check_text(text: str, role: Role, where: str) -> None:
    """Raises SampleRejected for an empty answer, and for text that no tokenizer takes."""
    if role == "assistant" and not text.strip():
        raise SampleRejected("empty_answer", f"{where}: the answer is empty: nothing to learn")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell and no tokenizer takes
        raise SampleRejected("row_malformed", f"{where}: not valid text: {error}") from error


def place_images(turns: Sequence[tuple[Role, str]], num_images: int, where: str) -> tuple[Message, ...]:
    """Splits each user text at its `<image>` marks, once; the k-th mark is the k-th picture.

    Without any mark all pictures come before the first user text, as the field does.
    """
    num_marks = sum(text.count(IMAGE_MARK) for role, text in turns if role == "user")
    if num_marks not in (0, num_images):
        message = f"{where}: {num_marks} {IMAGE_MARK} marks in the human text for {num_images} pictures"
        raise SampleRejected("image_marks", message)
    in_front = num_images if num_marks == 0 else 0
    messages: list[Message] = []
    next_image = 0
    for role, text in turns:
        parts: list[Part] = []
        if role == "user":
            parts += [ImagePart(i) for i in range(in_front)]
            in_front = 0
            pieces = text.split(IMAGE_MARK)
            for i, piece in enumerate(pieces):
                if i > 0:
                    parts.append(ImagePart(next_image))
                    next_image += 1
                # the line breaks around a mark belong to the format; templates write their own
                words = piece if len(pieces) == 1 else piece.strip()
                parts += [TextPart(words)] if words else []
        else:
            parts.append(TextPart(text))
        messages.append(Message(role, tuple(parts), train=role == "assistant"))
    if in_front:
        raise SampleRejected(
            "image_marks", f"{where}: {num_images} pictures, but no human turn to show them in"
        )
    return tuple(messages)


def draw_instruction(instructions: Sequence[str], seed: int, id: str) -> str:
    """The one of these that the sample `id` is asked by: the same in every pass, empty if there is none."""
    return random.Random(f"{seed}/{id}").choice(list(instructions)) if instructions else ""


def caption_messages(instruction: str, caption: str) -> tuple[Message, ...]:
    """One picture, then the instruction if there is any; the caption answers."""
    words = (TextPart(instruction),) if instruction else ()
    return (
        Message("user", (ImagePart(0), *words)),
        Message("assistant", (TextPart(caption),), train=True),
    )
