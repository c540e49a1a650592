"""Synthetic Prism run folders, in the layout that `prismcap prism run` writes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from prismcap.evaluate.intervals import Rate, difference_of_rates, wilson

ABILITIES = ("recognition", "category", "left/right", "counting", "existence", "size")
PERCEIVERS, REASONERS = ("captioner", "blank", "reference"), ("keyword", "smollm2", "smollm2_http")
# how often a cell is right: by perceiver, times the reasoner's reading, on top of guessing
SIGHT = {"captioner": 0.6, "blank": 0.05, "reference": 0.97, "blind": 0.0}
READING = {"keyword": 0.55, "smollm2": 0.7, "smollm2_http": 0.72, "end_to_end": 0.5}
WORDS = ("tiger", "hammer", "tree", "boat", "apple", "house", "kettle", "drum")
HOSTILE = '<script>alert("reply")</script> & </script><img src=x onerror=alert(1)> <!-- \u2028'
Row = dict[str, Any]
Names = Sequence[str]


def prism_run(
    folder: Path,
    *,
    num_questions: int = 120,
    perceivers: Names = PERCEIVERS,
    reasoners: Names = REASONERS,
    benchmark: str = "scenes",
    instructions: Names = ("generic",),
    seed: int = 0,
    attributed: bool = True,
    pictures: bool = True,
) -> Path:
    """A run folder with every perceiver x reasoner, every reasoner blind, and the first perceiver alone."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    names = [(p, i, r) for p in perceivers for i in instructions for r in reasoners]
    names += [("blind", "-", r) for r in reasoners] + [(perceivers[0], "-", "end_to_end")]
    questions = [_question(benchmark, number, rng) for number in range(num_questions)]
    if pictures:
        for question in questions:
            _draw(folder / question["picture"], question["options"])
    items: list[Row] = []
    for perceiver, instruction, reasoner in names:
        cell = {"perceiver": perceiver, "instruction": instruction, "reasoner": reasoner}
        items += [question | cell | _reply(question, cell, rng) for question in questions]
    causes = [_cause(item, rng) for item in items if _is_described(item)] if attributed else []
    _write_lines(folder / "items.jsonl", items)
    if attributed:
        _write_lines(folder / "attribution.jsonl", causes)
    results = _results(folder.name, benchmark, questions, items, causes)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "results.csv").write_text("benchmark,perceiver\n", encoding="utf-8")
    return folder


def _is_described(item: Row) -> bool:
    return item["perceiver"] != "blind" and item["reasoner"] != "end_to_end"


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _question(benchmark: str, number: int, rng: random.Random) -> Row:
    ability = ABILITIES[number % len(ABILITIES)]
    options = rng.sample(WORDS, 4)
    return {
        "benchmark": benchmark,
        "id": str(number),
        "cluster": f"picture-{number // 2}",
        "circle": "",
        "categories": {"category": ability, "l2-category": "place" if number % 6 in (2, 5) else "things"},
        "question": f"Which of these is in the picture ({ability}, question {number})?",
        "options": options,
        "answer": "ABCD"[rng.randrange(4)],
        "picture": f"pictures/{benchmark}-{number}.png",
    }


def _draw(path: Path, words: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    picture = Image.new("RGB", (112, 112), "#cfe8ff")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 78, 112, 112), fill="#9bc48a")
    draw.ellipse((14, 42, 50, 88), fill="#d55e00")
    draw.rectangle((66, 46, 98, 86), fill="#0072b2")
    draw.text((8, 8), words[0], fill="black")
    picture.save(path)


def _reply(question: Row, cell: Row, rng: random.Random) -> Row:
    blind, reasoner = cell["perceiver"] == "blind", cell["reasoner"]
    right_word = question["options"]["ABCD".index(question["answer"])]
    knows = rng.random() < SIGHT[cell["perceiver"]] * READING[reasoner] * 1.3
    refused = not knows and rng.random() < (0.5 if reasoner == "keyword" else 0.1)
    picked = question["answer"] if knows else rng.choice("ABCD")
    unmatched = not refused and not knows and rng.random() < 0.08
    failed = not refused and not knows and not unmatched and rng.random() < 0.02
    extracted = None if refused or unmatched or failed else picked
    right = extracted == question["answer"]
    seen = right_word if cell["perceiver"] == "reference" else rng.choice(WORDS)
    detail = " ".join(["The light is soft and the ground is green."] * rng.randrange(1, 9))
    reply = "" if failed else f"The answer is {picked}." if extracted else "I cannot tell. " + HOSTILE
    return {
        "description": None if blind or reasoner == "end_to_end" else f"There is a {seen} here. {detail}",
        "reply": reply,
        "status": "failed" if failed else "ok",
        "error": "reason: 503 <overloaded>" if failed else None,
        "extracted": extracted,
        "how": "failed" if failed else "refusal" if refused else "none" if unmatched else "answer_is",
        "right": right,
        "refused": refused,
        "cut_off": unmatched and rng.random() < 0.5,
        "expected": 0.25 if refused else float(right),
    }


def _cause(item: Row, rng: random.Random) -> Row:
    if item["status"] == "failed":
        cause = "failed"
    elif item["right"]:
        cause = rng.choice(["right", "right", "guessed_blind"])
    elif item["cut_off"] or item["refused"]:
        cause = "cut_off" if item["cut_off"] else "refused"
    elif item["extracted"] is None:
        cause = "extraction_failed"
    else:
        cause = rng.choice(["perception_lost", "perception_lost", "reasoning_lost", "unexplained"])
    keys = ("benchmark", "id", "perceiver", "instruction", "reasoner")
    return {key: item[key] for key in keys} | {"cause": cause}


def _rate(flags: Sequence[float]) -> Row | None:
    return wilson(round(sum(flags)), len(flags)).as_dict() if flags else None


def _results(name: str, benchmark: str, questions: list[Row], items: list[Row], causes: list[Row]) -> Row:
    keys = ("benchmark", "perceiver", "instruction", "reasoner")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for item in items:
        groups.setdefault(tuple(item[key] for key in keys), []).append(item)
    cells = [dict(zip(keys, cell, strict=True)) | _figures(rows) for cell, rows in groups.items()]
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for row in causes:
        counts.setdefault(tuple(row[key] for key in keys), Counter())[row["cause"]] += 1
    about = {"name": name, "measured_at": "2026-11-28T18:00:00+00:00", "seed": 0, "complete": True}
    return {
        "about": about | {"versions": {"python": "3.11.2", "torch": "2.14.1"}},
        "benchmarks": {
            benchmark: {
                "num_questions": len(questions),
                "checksum": "3f9ac0de51d7",
                "categories": ["category", "l2-category"],
            }
        },
        "cells": cells,
        "comparisons": [_comparison(cells[0], cell, number) for number, cell in enumerate(cells[1:])],
        "comparisons_left_out": {benchmark: 7},
        "attribution": [
            dict(zip(keys, cell, strict=True)) | {"causes": dict(found), "n": sum(found.values())}
            for cell, found in counts.items()
        ],
        "length_curve": _length_curve(groups),
    }


def _figures(rows: list[Row]) -> Row:
    n = len(rows)
    by: Row = {}
    for column in ("category", "l2-category"):
        values = list(dict.fromkeys(row["categories"][column] for row in rows))
        by[column] = {
            v: _rate([row["right"] for row in rows if row["categories"][column] == v]) for v in values
        }
    macro = {}
    for column, rates in by.items():
        mean = sum(rate["rate"] for rate in rates.values()) / len(rates)
        macro[column] = Rate(mean, max(0, mean - 0.087), min(1, mean + 0.083), n).as_dict()
    lengths = sorted(len(row["description"].split()) for row in rows if row["description"])
    spent = {"requests": n, "tokens_in": 61 * n, "latency_s": 0.137 * n, "retries": 3}
    spent |= {"failed": 2, "uncounted": 0}
    cost = {"reason": spent | {"tokens_out": 7 * n, "dollars": 0.0123}}
    if rows[0]["perceiver"] != "blind":
        cost["perceive"] = spent | {"tokens_out": 41 * n, "dollars": None}
    return {
        "n": n,
        "micro": _rate([row["right"] for row in rows]),
        "macro": macro,
        "by": by,
        "circular": None,
        "refusals": {
            "wrong": _rate([row["right"] for row in rows]),
            "expected": _rate([row["expected"] for row in rows]),
            "excluded": _rate([row["right"] for row in rows if not row["refused"]]),
        },
        "refused": round(sum(row["refused"] for row in rows) / n, 6),
        "unmatched": round(sum(row["how"] == "none" for row in rows) / n, 6),
        "failed": round(sum(row["status"] == "failed" for row in rows) / n, 6),
        "cut_off": round(sum(row["cut_off"] for row in rows) / n, 6),
        "description_tokens": {
            "mean": sum(lengths) / len(lengths),
            "median": lengths[len(lengths) // 2],
            "unit": "words",
        }
        if lengths
        else None,
        "cost": cost,
    }


def _comparison(first: Row, second: Row, number: int) -> Row:
    keys = ("benchmark", "perceiver", "instruction", "reasoner")
    p_value = (0.00002, 0.031, 0.44, 0.0004)[number % 4]
    return {
        "benchmark": first["benchmark"],
        "a": {key: first[key] for key in keys},
        "b": {key: second[key] for key in keys},
        "difference": difference_of_rates(first["micro"], second["micro"]).as_dict(),
        "family": first["benchmark"],
        "only_a": 11,
        "only_b": 17 + number,
        "mcnemar_p": p_value,
        "p_holm": min(1.0, 9 * p_value),
        "minimum_detectable": 0.128,
    }


def _length_curve(groups: dict[tuple[str, ...], list[Row]]) -> list[Row]:
    keys = ("benchmark", "perceiver", "instruction", "reasoner")
    curve = []
    for cell, rows in groups.items():
        described = sorted(
            (row for row in rows if row["description"]), key=lambda row: len(row["description"])
        )
        size = max(1, len(described) // 4)
        for start in range(0, len(described) - size + 1, size):
            some = described[start : start + size]
            lengths = [len(row["description"].split()) for row in some]
            bounds = {"low": lengths[0], "high": lengths[-1], "mean": sum(lengths) / len(lengths)}
            rate = _rate([row["right"] for row in some])
            curve.append(
                dict(zip(keys, cell, strict=True)) | {"tokens": bounds, "unit": "words", "rate": rate}
            )
    return curve
