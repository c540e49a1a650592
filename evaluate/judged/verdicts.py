"""From replies, or from people's grades, to one row per model and question."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from prismcap.evaluate.judged.asking import Asked
from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.protocols._contract import PLAIN_PART, JudgedItem, Reading

Status = Literal["scored", "unread", "failed", "unrated"]


@dataclass(frozen=True)
class Verdict:
    """One reading of one part: by a judge's repeat, or by a person. reading is None where there is none."""

    part: str
    by: str
    reading: Reading | None
    status: Literal["read", "unread", "failed"]
    reply: str = ""
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        reading = self.reading
        return {
            "part": self.part,
            "by": self.by,
            "status": self.status,
            "label": None if reading is None else reading.label,
            "gained": None if reading is None else reading.gained,
            "possible": None if reading is None else reading.possible,
            "reply": self.reply,
            "error": self.error,
        }


@dataclass(frozen=True)
class Judgement:
    """All verdicts on one model's answer to one question.

    num_parts: what one rater judges. A rater's verdicts count when all parts are read: of two orders, one
    alone would bring the judge's liking for a place into the score.
    """

    model: str
    item: JudgedItem
    answer: str
    num_parts: int
    verdicts: tuple[Verdict, ...]

    @property
    def whole(self) -> dict[str, list[Verdict]]:
        """Rater -> verdicts, of raters whose parts are all read."""
        by: dict[str, list[Verdict]] = {}
        for verdict in self.verdicts:
            by.setdefault(verdict.by, []).append(verdict)
        return {
            name: verdicts
            for name, verdicts in by.items()
            if len(verdicts) == self.num_parts and all(verdict.reading is not None for verdict in verdicts)
        }

    @property
    def status(self) -> Status:
        if self.whole:
            return "scored"
        if not self.verdicts:
            return "unrated"
        return "failed" if any(verdict.status == "failed" for verdict in self.verdicts) else "unread"

    def share(self, raters: Collection[str] | None = None) -> tuple[float, float] | None:
        """(gained, possible), mean over parts and over raters (none: all); None where none is whole."""
        chosen = [one for name, one in self.whole.items() if raters is None or name in raters]
        readings = [verdict.reading for one in chosen for verdict in one if verdict.reading is not None]
        if not readings:
            return None
        return fmean(one.gained for one in readings), fmean(one.possible for one in readings)

    def as_row(self) -> dict[str, Any]:
        """A line of items.jsonl."""
        share = self.share()
        return {
            "model": self.model,
            "id": self.item.id,
            "image": self.item.image,
            "groups": {kind: list(names) for kind, names in self.item.groups.items()},
            "question": self.item.question,
            "answer": self.answer,
            "reference": self.item.reference,
            "status": self.status,
            "gained": None if share is None else round(share[0], 6),
            "possible": None if share is None else round(share[1], 6),
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
        }


def judgements_of(evaluation: Evaluation, asked: Sequence[Asked]) -> list[Judgement]:
    """Of a judge's replies, by model and item in the config's order."""
    by: dict[tuple[str, str], list[Asked]] = {}
    for one in asked:
        by.setdefault((one.model, one.item.id), []).append(one)
    return [
        Judgement(
            model=model,
            item=of[0].item,
            answer=evaluation.answers[model][identity],
            num_parts=len({one.part.name for one in of}),
            verdicts=tuple(_verdict(evaluation, one) for one in of),
        )
        for (model, identity), of in by.items()
    ]


def _verdict(evaluation: Evaluation, asked: Asked) -> Verdict:
    answer, part = asked.entry.answer, asked.part.name
    by = f"repeat {asked.repeat + 1}"
    if answer.status == "failed":
        return Verdict(part, by, None, "failed", error=answer.error)
    reading = evaluation.protocol.read(part, answer.text)
    return Verdict(part, by, reading, "unread" if reading is None else "read", answer.text)


def graded(
    evaluation: Evaluation, grades: Mapping[tuple[str, str], Mapping[str, Reading]]
) -> list[Judgement]:
    """Of people's grades, by model and item in the config's order; without a grade, unrated."""
    return [
        Judgement(
            model=model,
            item=item,
            answer=answers[item.id],
            num_parts=1,
            verdicts=tuple(
                Verdict(PLAIN_PART, rater, reading, "read")
                for rater, reading in grades.get((model, item.id), {}).items()
            ),
        )
        for model, answers in evaluation.answers.items()
        for item in evaluation.protocol.items
    ]
