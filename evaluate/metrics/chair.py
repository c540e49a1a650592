"""CHAIR: how much of what captions name is not in the picture.

Source: Rohrbach et al., Object Hallucination in Image Captioning (arXiv 1809.02156). CHAIR_i is the share of
objects named that are not there, every mention counted; CHAIR_s the share of captions with one of them. As
there, an object is in the picture if it is annotated or if a reference caption names it. The synonyms are our
own, so figures are not those of other lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from prismcap.configs.errors import ConfigError, DataError, nearest
from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._shares import summed, table, that_apply
from prismcap.evaluate.metrics._terms import Terms
from prismcap.evaluate.metrics._vocabulary import Vocabulary, load_vocabulary
from prismcap.evaluate.metrics._words import words

VERSION = 1  # raise it whenever a figure changes


class Options(Section):
    """Which words name which object, and what counts as being there."""

    synonyms: str = Field(
        default="coco",
        description="coco, scenes, or a YAML or JSON file: object -> synonyms, (none) -> no object",
    )
    with_references: bool = Field(
        default=True, description="what a reference caption names is in the picture too"
    )


def build(options: Options, context: MetricContext) -> Chair:
    """Raises ConfigError naming file, key and value of synonyms that cannot be used."""
    try:
        return Chair(options, load_vocabulary(options.synonyms))
    except DataError as error:
        raise ConfigError(f"{context.where}: chair.synonyms: {error}") from error


@dataclass(frozen=True)
class _Counts:
    hallucinated: int
    mentions: int
    recalled: int
    objects: int
    num_words: int


class Chair:
    """chair_i, chair_s, recall of the annotated objects, and words: a caption that names nothing has no
    hallucination, which only recall and length tell."""

    needs: frozenset[Need] = frozenset({"objects"})

    def __init__(self, options: Options, vocabulary: Vocabulary) -> None:
        self._options = options
        self._vocabulary = vocabulary
        references = "with" if options.with_references else "without"
        self.identity = f"chair {VERSION} synonyms {vocabulary.digest} {references} references"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """Raises DataError for an object of an item that no synonym names."""
        counts = [self._counts(item) for item in items]
        return that_apply(
            [
                summed(
                    "chair_i",
                    table((row.hallucinated, row.mentions) for row in counts),
                    "share of the objects named, mention by mention, that are not in the picture",
                    higher_is_better=False,
                ),
                ItemFigure(
                    "chair_s",
                    [float(row.hallucinated > 0) for row in counts],
                    "share of texts that name an object that is not in the picture",
                    higher_is_better=False,
                ),
                summed(
                    "recall",
                    table((row.recalled, row.objects) for row in counts),
                    "share of the objects in the pictures that are named",
                ),
                ItemFigure(
                    "words",
                    [float(row.num_words) for row in counts],
                    "words of a text: a short one names less, and less that is wrong",
                    higher_is_better=None,
                    unit="words",
                ),
            ]
        )

    def _counts(self, item: CaptionItem) -> _Counts:
        terms = self._terms(item)
        annotated = {self._name(terms, name, item) for name in item.objects or ()}
        there = set(annotated)
        if self._options.with_references:
            there |= {mention.name for text in item.references for mention in terms.mentions(text)}
        named = [mention.name for mention in terms.mentions(item.text)]
        return _Counts(
            hallucinated=sum(not self._is_there(name, there) for name in named),
            mentions=len(named),
            recalled=len(annotated & set(named)),
            objects=len(annotated),
            num_words=len(words(item.text)),
        )

    def _terms(self, item: CaptionItem) -> Terms:
        terms = self._vocabulary.terms
        return terms if self._vocabulary.is_closed else terms.extended(item.objects or ())

    def _name(self, terms: Terms, name: str, item: CaptionItem) -> str:
        found = terms.name_of(name)
        if found is None:
            raise DataError(
                f"{item.where or item.id}: objects: {name!r} is no object of the synonyms "
                f"{self._options.synonyms!r}.{nearest(name, terms.names)} Add it to a list of your own "
                "(option synonyms)"
            )
        return found

    def _is_there(self, name: str, there: set[str]) -> bool:
        return name in there or not there.isdisjoint(self._vocabulary.overlap.get(name, frozenset()))
