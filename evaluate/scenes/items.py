"""The held-out items of a split: which texts are asked for which scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.run import SplitConfig
from prismcap.data.scenes.graph import SceneGraph
from prismcap.data.scenes.text import CAPTION_KINDS, Kind, answer_right, ask_again, normalise_answer
from prismcap.data.schema import ImageRef, Message, Sample, TextPart
from prismcap.data.sources._contract import SourceContext


class SceneItem(Protocol):
    """What a source of scenes says of one sample besides the sample itself."""

    @property
    def sample(self) -> Sample: ...
    @property
    def graph(self) -> SceneGraph: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def answer(self) -> str: ...


class SceneSource(Protocol):
    """A source (data/sources) that can be scored: `item(i)` is sample i with its scene graph."""

    def __len__(self) -> int: ...
    def item(self, index: int, /) -> SceneItem: ...


@dataclass(frozen=True)
class Item:
    """One held-out text: `truth` is what the model should say to `prompt` about the scene."""

    split: str
    id: str
    kind: Kind
    prompt: str
    truth: str
    graph: SceneGraph
    sample: Sample

    @property
    def num_objects(self) -> int:
        return len(self.graph.objects)

    @property
    def image(self) -> ImageRef:
        return self.sample.images[0]

    @property
    def question(self) -> tuple[Message, ...]:
        """The conversation up to where the model speaks."""
        return self.sample.messages[:-1]

    @property
    def group(self) -> tuple[str, int]:
        """Items that make one figure, and among which pictures are shuffled."""
        return self.kind, self.num_objects if self.kind in CAPTION_KINDS else 0

    @property
    def key(self) -> object:
        """What differs between items that another picture is taken from: the words that unseen drawings
        stand for, else what is where; of a question, the answer."""
        if self.kind not in CAPTION_KINDS:
            return normalise_answer(self.truth)
        return self._unseen or self.graph.pairs()

    @property
    def _unseen(self) -> frozenset[str]:
        return frozenset(item.word for item in self.graph.objects if item.unseen)

    def right_for(self, other: Item) -> bool:
        """Whether this item's truth would be right of the other item's picture as well.

        Of an unseen drawing's caption, whether any drawing of its word is there; of a question for a place
        or a number, what the other scene answers to it; else whether keys or scenes are equal.
        """
        if self.kind in CAPTION_KINDS and self._unseen:
            return not self._unseen.isdisjoint(other.graph.words)
        if self.kind not in CAPTION_KINDS:
            try:
                return answer_right(ask_again(self.prompt, other.graph), self.truth)
            except KeyError:  # yes or no, or a source's own question
                pass
        return self.key == other.key or self.graph == other.graph


def split_items(
    name: str, split: SplitConfig, context: SourceContext, limit: int | None = None
) -> list[Item]:
    """The first items of each group, `num_items` of each (at most `limit`), in the source's order.

    Yes/no questions are taken half and half by answer, so that always saying yes is right half of the
    time. Raises ConfigError for a source without scene graphs, or without any item.
    """
    where = f"evaluation.splits.{name}.source"
    module, options = component_options("source", split.source, where)
    source = module.build(options, context)
    if not hasattr(source, "item"):
        raise ConfigError(f"{where}: source {split.source.name!r} has no scene graphs to score captions by")
    most = split.num_items if limit is None else min(limit, split.num_items)
    items = take(name, source, most)
    if not items:
        raise ConfigError(f"{where}: the source holds no item")
    if not items[0].sample.images:
        raise ConfigError(f"{where}: its items have no picture: set described: false")
    return items


def take(name: str, source: SceneSource, most: int) -> list[Item]:
    """At most `most` items of each group; see split_items."""
    taken: Counter[object] = Counter()
    items = []
    for index in range(len(source)):
        found = source.item(index)
        item = Item(
            split=name,
            id=found.sample.id,
            kind=found.kind,
            prompt=_prompt(found.sample.messages),
            truth=found.answer,
            graph=found.graph,
            sample=found.sample,
        )
        quota = (item.group, item.key) if item.kind == "yes_no" else item.group
        if taken[quota] < (_half(most, item.truth) if item.kind == "yes_no" else most):
            taken[quota] += 1
            items.append(item)
    return items


def _half(most: int, truth: str) -> int:
    return most // 2 if normalise_answer(truth) == "yes" else most - most // 2


def _prompt(messages: Sequence[Message]) -> str:
    """The text of the last user turn."""
    user = [message for message in messages if message.role == "user"][-1]
    return "".join(part.text for part in user.parts if isinstance(part, TextPart)).strip()
