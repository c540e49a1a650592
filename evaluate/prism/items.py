"""A row of items.jsonl for each question and cell: what was seen, said and made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prismcap.configs.errors import DataError
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.prism.judging import RunJudge
from prismcap.evaluate.prism.pipeline import CellAnswers, Pipeline
from prismcap.evaluate.prism.questions import Questions
from prismcap.evaluate.prism.store import Entry
from prismcap.evaluate.results import PICTURES, save_thumbnail
from prismcap.evaluate.scoring.score import Scored, score_reply


def cell_items(
    pipeline: Pipeline, answers: CellAnswers, judge: RunJudge | None = None
) -> Iterator[dict[str, Any]]:
    """The cell's rows in the order of its questions."""
    cell = answers.cell
    questions = pipeline.questions(cell.benchmark)
    asked = questions.first(pipeline.cells[cell])
    if judge is not None:
        judge.ask_ahead(list(zip(asked, answers.replies, strict=True)))
    for question, description, reply in zip(asked, answers.descriptions, answers.replies, strict=True):
        yield {
            **cell.as_dict(),
            **_about(question),
            **_description(description),
            **_reply(question, reply, description, judge),
            "picture": _thumbnail(pipeline.run_dir, questions, question),
        }


def _about(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "kind": question.kind,
        "cluster": question.cluster,
        "circle": question.circle,
        "categories": dict(question.categories),
        "question": question.text,
        "options": list(question.options),
        "answer": question.answer,
    }


def _description(entry: Entry | None) -> dict[str, Any]:
    """Of a cell without descriptions, and where there is none because it failed, null."""
    written = entry is not None and entry.answer.status == "ok"
    return {
        "description": entry.answer.text if entry is not None and written else None,
        "description_tokens": entry.answer.tokens_out if entry is not None and written else None,
        "description_cut_off": entry is not None and entry.answer.cut_off,
    }


def _reply(
    question: Question, entry: Entry | None, description: Entry | None, judge: RunJudge | None
) -> dict[str, Any]:
    """How the reply is scored. A failure, also of the description, is wrong and says what failed."""
    if entry is None or entry.answer.status == "failed":
        failed = description if entry is None else entry
        stage = "perceive" if entry is None else "reason"
        error = None if failed is None else failed.answer.error
        scored = Scored(right=False, extracted=None, how="failed", refused=False, expected=0.0)
        status: dict[str, Any] = {"reply": "", "status": "failed", "error": f"{stage}: {error}"}
    else:
        scored = score_reply(question, entry.answer.text, judge)
        status = {"reply": entry.answer.text, "status": "ok", "error": None}
    return {
        **status,
        "extracted": scored.extracted,
        "how": scored.how,
        "right": scored.right,
        "refused": scored.refused,
        "cut_off": entry is not None and entry.answer.cut_off,
        "expected": scored.expected,
    }


def _thumbnail(run_dir: Path, questions: Questions, question: Question) -> str | None:
    """Below the run folder, of the first picture, which is drawn only for a thumbnail that is not there yet;
    None where there is no picture that can be read."""
    if not question.images:
        return None
    image = question.images[0]
    fingerprint = questions.fingerprint(image)
    name = f"{PICTURES}/{fingerprint}.jpg"
    if (run_dir / name).exists():
        return name
    try:
        picture = image.load()
    except DataError:
        return None
    return save_thumbnail(run_dir, fingerprint, picture)
