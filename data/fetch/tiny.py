"""What the recipes' tiny twins train on: a tokenizer of bytes, drawn pictures, rows of every format, and
questions for a Prism run.

Nothing is downloaded: it is made here, the same every time, in less than a second.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from prismcap.data.fetch.byte_tokenizer import write_byte_tokenizer
from prismcap.data.fetch.packages import Say, put_in_place, work_folder

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES: dict[str, Callable[..., None]] = {
    "box": ImageDraw.ImageDraw.rectangle,
    "disc": ImageDraw.ImageDraw.ellipse,
}
# no two alike, and most not square: a geometry that gets a side wrong is seen
SIZES = ((64, 64), (96, 48), (40, 80), (120, 50), (56, 56), (70, 110))


def make_tiny(cache: Path, say: Say) -> Path:
    """Make <cache>/tiny, whole, unless it is there. Raises FetchError when it cannot be written."""
    target = cache / "tiny"
    if target.is_dir():
        say(f"tiny: already in {target}")
        return target
    with work_folder(target) as work:
        made = work / "made"
        made.mkdir()
        write_byte_tokenizer(made / "tokenizer")
        captions = _write_pictures(made / "images")
        _write_llava_rows(made, captions)
        _write_owl_rows(made, captions)
        _write_minigpt4(made / "minigpt4", made / "images", captions)
        _write_shards(made / "shards", made / "images", captions)
        _write_questions(made / "questions.tsv", made / "images")
        put_in_place(made, target)
    say(f"tiny: {target}")
    return target


def _write_pictures(folder: Path) -> dict[str, str]:
    """A shape on white in each. Returns its caption by the name of the file."""
    folder.mkdir()
    captions = {}
    for number, (colour, size) in enumerate(zip(COLOURS, SIZES, strict=True)):
        for shape, draw in SHAPES.items():
            image = Image.new("RGB", size, "white")
            x, y = (number * 7) % (size[0] // 2), (number * 5) % (size[1] // 2)
            draw(ImageDraw.Draw(image), (x, y, x + size[0] // 2, y + size[1] // 2), fill=colour)
            name = f"{colour}_{shape}.jpg"
            image.save(folder / name, quality=95)
            captions[name] = f"A {colour} {shape}, on white."
    return captions


def _write_llava_rows(folder: Path, captions: dict[str, str]) -> None:
    """pairs.json: a picture and its caption. conversations.json: two turns, two pictures, and text alone."""
    names = list(captions)
    pairs = [_row(name, [f"images/{name}"], [("<image>\nWhat is this?", captions[name])]) for name in names]
    turns = [
        _row(
            f"turns-{name}",
            [f"images/{name}"],
            [
                ("<image>\nDescribe it.", captions[name]),
                ("Which colour?", f"It is {name.partition('_')[0]}."),
            ],
        )
        for name in names
    ]
    both = _row(
        "both",
        [f"images/{name}" for name in names[:2]],
        [("<image>\n<image>\nAre they alike?", "In colour, not in shape.")],
    )
    text = [_row(f"text-{i}", [], [(f"What is {i} + 1?", f"{i + 1}.")]) for i in range(3)]
    _write_json(folder / "pairs.json", pairs)
    _write_json(folder / "conversations.json", [*turns, both, *text])


def _row(id: str, images: list[str], turns: list[tuple[str, str]]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": id}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    said = [
        {"from": who, "value": text}
        for turn in turns
        for who, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return row | {"conversations": said}


def _write_owl_rows(folder: Path, captions: dict[str, str]) -> None:
    """owl.jsonl: pictures; owl_text.jsonl: text alone."""
    opening = "The following is a conversation between a curious human and AI assistant."
    rows = [
        {
            "image": [f"images/{name}"],
            "text": f"{opening}\nHuman: <image>\nHuman: What is this?\nAI: {caption}",
            "task_type": "llava_sft",
        }
        for name, caption in captions.items()
    ]
    text = [
        {
            "image": [],
            "text": f"{opening}\nHuman: What is {i} + 1?\nAI: {i + 1}.",
            "task_type": "gpt4instruct_sft",
        }
        for i in range(5)
    ]
    for name, items in {"owl.jsonl": rows, "owl_text.jsonl": text}.items():
        (folder / name).write_text("".join(f"{json.dumps(item)}\n" for item in items))


def _write_minigpt4(folder: Path, pictures: Path, captions: dict[str, str]) -> None:
    (folder / "image").mkdir(parents=True)
    annotations = []
    for number, (name, caption) in enumerate(captions.items()):
        (folder / "image" / f"{number}.jpg").write_bytes((pictures / name).read_bytes())
        annotations.append({"image_id": str(number), "caption": caption})
    _write_json(folder / "filter_cap.json", {"annotations": annotations})


def _write_shards(folder: Path, pictures: Path, captions: dict[str, str]) -> None:
    """Two tar files of jpg and txt, as img2dataset writes them."""
    folder.mkdir()
    items = list(captions.items())
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number, (name, caption) in enumerate(items[shard::2]):
                key = f"{shard:05d}{number:04d}"
                for suffix, data in (("jpg", (pictures / name).read_bytes()), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _write_questions(path: Path, pictures: Path) -> None:
    """A question for a picture in each row, in VLMEvalKit's columns."""
    rows = [["index", "image", "question", "A", "B", "answer"]]
    for colour in COLOURS:
        for right, shape in zip("AB", SHAPES, strict=True):
            picture = base64.b64encode((pictures / f"{colour}_{shape}.jpg").read_bytes()).decode()
            rows.append([str(len(rows)), picture, "Which shape is it?", *SHAPES, right])
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
