"""What a metric is: texts in, one value per text and figure out.

A module of this folder has `class Options(Section)` and `build(options, context) -> Metric`. Building one is
cheap: models and outside programs start at the first call of `figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from prismcap.data.scenes.graph import SceneGraph
    from prismcap.data.schema import ImageRef
    from prismcap.evaluate.reasoners._contract import Reasoner

Floats = NDArray[np.float64]
# what of an item a metric may need beside its text
Need = Literal["references", "image", "objects", "statements", "graph", "answer"]


@dataclass(frozen=True)
class CaptionItem:
    """One text of a model, and what is known of its picture. None or empty: not known.

    id: unique among the items. where: file and row, for errors.
    cluster: equal for items about one picture: intervals resample clusters; "" stands for the id.
    references: captions that are right. objects: names of everything in the picture (CHAIR).
    statements: facts of the picture, a sentence each (coverage). graph: of a composed scene.
    answer: yes or no, where the text answers a question (POPE). group: POPE's split, or any part of the
    items that is reported by itself.
    """

    id: str
    text: str
    where: str = ""
    cluster: str = ""
    references: tuple[str, ...] = ()
    image: ImageRef | None = None
    objects: tuple[str, ...] | None = None
    statements: tuple[str, ...] = ()
    graph: SceneGraph | None = None
    answer: Literal["yes", "no"] | None = None
    group: str = ""


@dataclass(frozen=True)
class ItemFigure:
    """One figure over the items given, in their order.

    values: per item, for paired tests; None where the figure does not apply (no yes in the answers, …).
    Without `sums` the figure is the mean of the values that are there. With them it is `combine` of their
    sum over items: sums [items, k] are statistics that add up (matches and lengths of BLEU, true and false
    positives of F1), and combine maps [..., k] to [...] (any number of resamples at once). Sums of items
    to which the figure does not apply are zero.
    unit: what a value of 1 is: "share" (0..1), "words", "score" (CIDEr's scale, …).
    """

    name: str
    values: Sequence[float | None]
    note: str
    sums: Floats | None = None
    combine: Callable[[Floats], Floats] | None = None
    higher_is_better: bool | None = True  # None: neither (length, share of yes)
    unit: Literal["share", "words", "score"] = "share"


class Metric(Protocol):
    @property
    def needs(self) -> frozenset[Need]:
        """Checked by the caller for every item, before anything is computed."""

    @property
    def identity(self) -> str:
        """Changes with everything but the items that decides the figures: tokenizer, model, version."""

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """At least one item. Raises DataError naming the item's `where`; MissingExtraError, ConfigError when
        a package, program or model that it takes is not there, saying what to install."""


@dataclass(frozen=True)
class MetricContext:
    """What every metric is built with. device and batch_size: of local models. judge: an LLM that answers
    questions about texts, where the caller has one. where: file and key path, for errors."""

    device: str = "cpu"
    batch_size: int = 16
    judge: Reasoner | None = None
    where: str = "metrics"
