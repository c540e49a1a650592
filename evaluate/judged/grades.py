"""OwlEval's four grades, given by people or by a judge.

Source: mPLUG-Owl, arXiv 2304.14178: A, correct and satisfying; B, imperfect but acceptable; C, the
question is understood, the answer has obvious errors; D, irrelevant or wrong altogether.
"""

from __future__ import annotations

from prismcap.evaluate.judged.protocols._contract import Reading, Scale

GRADES = {
    "A": "correct and satisfying",
    "B": "imperfect, but acceptable",
    "C": "the question is understood, but the answer has obvious errors",
    "D": "irrelevant, or wrong altogether",
}
ACCEPTABLE = ("A", "B")
GRADE_SCALE = Scale("% of answers graded A or B", level="ordinal", labels=tuple(GRADES))


def reading_of(grade: str) -> Reading:
    """Of one of GRADES: A and B gain the point; D ranks 0, A 3."""
    rank = list(reversed(GRADES)).index(grade)
    return Reading(float(grade in ACCEPTABLE), 1.0, grade, float(rank))
