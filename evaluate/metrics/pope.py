"""POPE: yes or no to "Is there a … in the image?", overall and by what the absent objects were chosen by.

Source: arXiv 2305.10355. There a reply says yes unless it holds "no" or "not"; here
evaluate/scoring/yes_no.py reads it, and what it cannot read is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, Floats, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._shares import precision_recall_f1, share, summed, table, that_apply
from prismcap.evaluate.scoring.yes_no import extract_yes_no

VERSION = 1  # raise it whenever a figure changes
SETTINGS = ("random", "popular", "adversarial")  # the groups that come first
# what every question of POPE asks: a reply that says what is there, without yes or no, is read too
_QUESTION = "Is there an object in the image?"


class Options(Section):
    """None."""


def build(options: Options, context: MetricContext) -> Pope:  # noqa: ARG001
    return Pope()


class Pope:
    """accuracy, precision, recall and F1 of yes, yes_share and unread; each again as `<group>_<figure>`.

    A reply that is neither yes nor no is wrong: it misses a yes, and is no yes of its own.
    """

    needs: frozenset[Need] = frozenset({"answer"})
    identity = f"pope {VERSION}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        said = [extract_yes_no(item.text, _QUESTION).value for item in items]
        truth = [item.answer for item in items]
        flags = [
            (reply == true, reply == "yes" == true, reply == "yes", true == "yes", reply is None)
            for reply, true in zip(said, truth, strict=True)
        ]
        counts = table([(*map(float, row), 1.0) for row in flags])
        found = _of(counts, "", "")
        groups = {item.group for item in items if item.group}
        for group in sorted(groups, key=lambda name: (_rank(name), name)):
            inside = np.array([item.group == group for item in items], dtype=np.float64)
            found += _of(counts * inside[:, None], f"{group}_", f", {group} questions")
        return that_apply(found)


def _rank(group: str) -> int:
    return SETTINGS.index(group) if group in SETTINGS else len(SETTINGS)


def _of(counts: Floats, prefix: str, about: str) -> list[ItemFigure]:
    """counts: [items, 6] = (right, true yes, said yes, yes is true, unread, asked), zero where not asked."""
    right, said_yes, unread, asked = counts[:, 0], counts[:, 2], counts[:, 4], counts[:, 5]

    def of_asked(name: str, flags: Floats, note: str, better: bool | None) -> ItemFigure:
        sums = np.column_stack([flags, asked])
        return summed(f"{prefix}{name}", sums, f"{note}{about}", share, better)

    return [
        of_asked("accuracy", right, "share of right answers; one that is neither yes nor no is wrong", True),
        *precision_recall_f1(prefix, counts[:, [1, 2, 3]], f"yes as the class that is looked for{about}"),
        of_asked("yes_share", said_yes, "share of answers that say yes", None),
        of_asked("unread", unread, "share of answers that are neither yes nor no", False),
    ]
