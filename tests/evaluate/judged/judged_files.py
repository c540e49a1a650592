"""Tiny hand-made files in the layouts of the published ones, and judges that are rules.

An answer's last word is its quality, a whole number: the judges of these tests read nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from faulty_server import Asked, Reply, chat
from PIL import Image

# question_id, image, category, quality of the reference
PAIR_QUESTIONS = (
    (0, "a.jpg", "conv", 6),
    (1, "a.jpg", "detail", 8),
    (2, "b.jpg", "conv", 4),
    (3, "b.jpg", "complex", 5),
)
REFERENCES = {identity: quality for identity, _, _, quality in PAIR_QUESTIONS}
OWL_QUESTIONS = [
    # the published file has such a bracket
    {"image": "1.jpg", "question_id": 1, "question": "Why?", "ability": "a,b", "category": ["]single_turn"]},
    {
        "image": "2.jpg",
        "question_id": 2,
        "question": "Is there text?",
        "ability": "a,c",
        "category": ["single_turn", "multi_turn"],
    },
    {"image": "2.jpg", "question_id": 3, "question": "And?", "ability": "a,c,f", "category": ["multi_turn"]},
]
VET_QUESTIONS = {
    "v1_0": {
        "imagename": "v1_0.png",
        "question": "What is x?",
        "answer": "-1<AND>-5",
        "capability": ["ocr", "math"],
    },
    "v1_1": {"imagename": "v1_1.png", "question": "What?", "answer": "soup<OR>stew", "capability": ["rec"]},
    "v1_2": {"imagename": "v1_1.png", "question": "Whose?", "answer": "hers", "capability": ["rec"]},
}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_json(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def write_answers(
    path: Path, qualities: Mapping[Any, int], key: str = "text", says: str = "An answer to"
) -> str:
    rows = [{"question_id": one, key: f"{says} {one} of quality {q}"} for one, q in qualities.items()]
    return write_rows(path, rows)


def write_pictures(folder: Path, names: Sequence[str], size: tuple[int, int] = (60, 40)) -> str:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(dict.fromkeys(names)):
        Image.new("RGB", size, (40 * number, 90, 200)).save(folder / name)
    return str(folder)


def pair_files(folder: Path, name: str = "llava_coco") -> dict[str, Any]:
    """The config's `protocol`."""
    questions = [
        {"question_id": identity, "image": image, "category": category, "text": f"Question {identity}?"}
        for identity, image, category, _ in PAIR_QUESTIONS
    ]
    boxes = [{"category": "cat", "bbox": [1, 2, 3, 4]}]
    images = ("a.jpg", "b.jpg", "c.jpg")
    known: list[dict[str, Any]] = [
        {"image": image, "captions": [f"A cat in {image}."], "instances": boxes} for image in images
    ]
    if name == "llava_bench":
        known = [{"id": image[:1], "image": image, "caption": f"A cat in {image}."} for image in images]
    return {
        "name": name,
        "questions": write_rows(folder / "questions.jsonl", questions),
        "contexts": write_rows(folder / "contexts.jsonl", known),
        "references": write_answers(folder / "references.jsonl", REFERENCES, says="The reference for"),
    }


def owl_files(folder: Path, contexts: bool = True) -> dict[str, Any]:
    found = {"name": "owl_eval", "questions": write_rows(folder / "owl.jsonl", OWL_QUESTIONS)}
    if contexts:
        rows = [{"image": f"{number}.jpg", "caption": f"Picture {number}."} for number in (1, 2)]
        found["contexts"] = write_rows(folder / "owl_contexts.jsonl", rows)
    return found


def coverage_files(folder: Path) -> dict[str, Any]:
    annotations = [
        {"image_id": image_id, "caption": f"Caption of quality {quality}"}
        for image_id, quality in ((7, 1), (7, 3), (9, 2), (9, 9))
    ]
    images = [{"id": 7, "file_name": "seven.jpg"}]
    value = {"images": images, "annotations": annotations}
    return {"name": "minigpt4_coverage", "captions": write_json(folder / "captions.json", value)}


def vet_files(folder: Path) -> dict[str, Any]:
    return {"name": "mm_vet", "questions": write_json(folder / "mm-vet.json", VET_QUESTIONS)}


def inside(prompt: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.S)
    return str(found[-1])


def quality(prompt: str, tag: str) -> int:
    return int(inside(prompt, tag).split()[-1])


def pair_reply(bonus: int = 0) -> Callable[[str], str]:
    """Qualities as scores; the first place earns a bonus."""

    def reply(prompt: str) -> str:
        first, second = quality(prompt, "first_answer") + bonus, quality(prompt, "second_answer")
        return f"{first} {second}\nBecause."

    return reply


def judge_of(reply: Callable[[str], str]) -> Callable[[Asked], Reply]:
    return lambda asked: chat(reply(asked.prompt))
