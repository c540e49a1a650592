"""No split of the scenes leaks into training: shown by reading training, not by trusting its code.

What training holds is collected from the composed graphs, and once more from the words that its texts
say. A leak planted into the code must turn the check red.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from prismcap.configs.load import load_config
from prismcap.configs.registry import component_options
from prismcap.configs.schema.base import Component
from prismcap.data.scenes import items as items_module
from prismcap.data.scenes import make as make_module
from prismcap.data.scenes.items import SceneItem
from prismcap.data.scenes.objects import ObjectSet, load_objects, objects_root
from prismcap.data.scenes.splits import fraction, held_out_drawings
from prismcap.data.sources import scenes, stamps
from prismcap.data.sources._contract import SourceContext

TASKS = {"short": 1, "long": 1, "place": 1, "count": 1, "yes_no": 2}
COUNTS = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
LIMIT = 70  # few words, so that a leak of one pair in ten is met soon
NUM_TRAIN = 800
NUM_HELD = 300


def source(split: str, num_scenes: int, objects: str = "tuxpaint", **options: object) -> scenes.SceneItems:
    values = {
        "objects": objects,
        "split": split,
        "num_scenes": num_scenes,
        "num_objects": COUNTS,
        "tasks": TASKS,
    }
    values |= {"object_limit": LIMIT, **options}
    return scenes.build(scenes.Options.model_validate(values), SourceContext(seed=5))


@dataclass
class Seen:
    """What a part of the data shows: words, pairs that meet, drawings and their pixels."""

    words: set[str] = field(default_factory=set)
    pairs: set[frozenset[str]] = field(default_factory=set)
    drawings: set[str] = field(default_factory=set)
    pixels: set[str] = field(default_factory=set)


def collect(found: list[SceneItem], vocabulary: tuple[str, ...]) -> Seen:
    said = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, vocabulary), key=len, reverse=True)) + r")\b")
    seen = Seen()
    for item in found:
        text = " ".join(message.text() for message in item.sample.messages).lower()
        named = set(said.findall(text)) & set(vocabulary)
        drawn = {thing.word for thing in item.graph.objects}
        seen.words |= drawn
        seen.pairs |= {frozenset(pair) for pair in itertools.combinations(drawn | named, 2)}
        seen.drawings |= {thing.stamp for thing in item.graph.objects}
        seen.pixels |= set(item.sample.images[0].pixels)  # type: ignore[attr-defined]
    return seen


def single(item: SceneItem) -> tuple[str, ...]:
    (thing,) = item.graph.objects
    return thing.word, item.graph.background.color, item.graph.background.texture, thing.place, thing.size


def all_items(found: scenes.SceneItems) -> list[SceneItem]:
    return [found.item(i) for i in range(len(found))]


def leaks(objects: str = "tuxpaint") -> list[str]:
    """What of the held-out splits training has seen; empty when nothing leaks."""
    vocabulary = load_objects(objects).words
    train = collect(all_items(source("train", NUM_TRAIN, objects)), vocabulary)
    assert (
        len(train.pairs) > LIMIT * (LIMIT - 1) / 2 / 2
    )  # half of all pairs are met: the check is not vacuous
    return [
        *leaks_of_pairs(train, all_items(source("unseen_pairs", NUM_HELD, objects))),
        *leaks_of_drawings(train, all_items(source("unseen_stamps", NUM_HELD, objects))),
    ]


def leaks_of_pairs(train: Seen, held: list[SceneItem]) -> list[str]:
    found: list[str] = []
    for item in held:
        words = [thing.word for thing in item.graph.objects]
        found += [f"word {word} of unseen_pairs is not in training" for word in set(words) - train.words]
        found += [f"drawing {o.stamp} is new" for o in item.graph.objects if o.stamp not in train.drawings]
        pairs = {frozenset(pair) for pair in itertools.combinations(words, 2)}
        if len(words) > 1 and pairs <= train.pairs:
            found.append(f"every pair of {words} is in training")
    return found


def leaks_of_drawings(train: Seen, held: list[SceneItem]) -> list[str]:
    found: list[str] = []
    for item in held:
        targets = [thing for thing in item.graph.objects if thing.unseen]
        assert len(targets) == 1
        pixels = item.sample.images[0].pixels[item.graph.objects.index(targets[0])]  # type: ignore[attr-defined]
        if targets[0].stamp in train.drawings or pixels in train.pixels:
            found.append(f"held-out drawing {targets[0].stamp} is in training")
        drawn = {thing.word for thing in item.graph.objects}
        found += [f"word {word} of unseen_stamps is not in training" for word in drawn - train.words]
    return found


def single_leaks() -> set[tuple[str, ...]]:
    """Held-out scenes of one object that training has seen."""
    options: dict[str, Any] = {"num_objects": {1: 1}, "tasks": {"short": 1}, "object_limit": 16}
    train = {single(item) for item in all_items(source("train", 2000, **options))}
    return train & {single(item) for item in all_items(source("unseen_pairs", 500, **options))}


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji", "both"])
def test_nothing_leaks(objects: str) -> None:
    assert leaks(objects) == []


def test_no_single_scene_leaks() -> None:
    assert not single_leaks()


def test_two_object_scenes_of_unseen_pairs_are_held_out_pairs() -> None:
    vocabulary = load_objects("tuxpaint").words
    train = collect(all_items(source("train", NUM_TRAIN)), vocabulary)
    held = source("unseen_pairs", NUM_HELD, num_objects={2: 1}, tasks={"short": 1})
    pairs = {frozenset(held.graph(i).words) for i in range(len(held))}
    assert len(pairs) > NUM_HELD / 4
    assert not pairs & train.pairs


def test_held_out_parts_do_not_depend_on_the_seed() -> None:
    vocabulary = load_objects("tuxpaint").words
    other = scenes.build(
        scenes.Options(num_scenes=NUM_TRAIN, num_objects=COUNTS, object_limit=LIMIT, seed=77),
        SourceContext(seed=1),
    )
    train = collect(all_items(other), vocabulary)
    held = source("unseen_pairs", 200, num_objects={2: 1}, tasks={"short": 1})
    assert not {frozenset(held.graph(i).words) for i in range(len(held))} & train.pairs


def test_stamps_source_shows_no_held_out_drawing() -> None:
    held = source("unseen_stamps", NUM_HELD)
    targets = {thing.stamp for i in range(len(held)) for thing in held.graph(i).objects if thing.unseen}
    train = stamps.build(stamps.Options(object_limit=LIMIT), SourceContext())
    unseen = stamps.build(stamps.Options(object_limit=LIMIT, split="unseen_stamps"), SourceContext())
    assert targets and not targets & {stamp.id for stamp in train.stamps}
    assert targets <= {stamp.id for stamp in unseen.stamps}
    assert {stamp.word for stamp in unseen.stamps} <= {stamp.word for stamp in train.stamps}


def test_stamps_source_shows_no_held_out_single_scene() -> None:
    train = stamps.build(stamps.Options(views=20), SourceContext())
    shown = {
        (thing.word, graph.background.color, graph.background.texture, thing.place, thing.size)
        for graph in (train.graph(i) for i in range(len(train)))
        for thing in graph.objects
    }
    held = source("unseen_pairs", 1500, num_objects={1: 1}, tasks={"short": 1}, object_limit=None)
    assert not shown & {single(held.item(i)) for i in range(len(held))}


def leaks_between_sets() -> list[str]:
    """Held-out drawings of both sets together that training on Tux Paint alone has seen."""
    vocabulary = load_objects("both").words
    shown = stamps.build(stamps.Options(objects="tuxpaint"), SourceContext())
    train = collect(all_items(source("train", NUM_TRAIN, object_limit=None)), vocabulary)
    drawings = train.drawings | {stamp.id for stamp in shown.stamps}
    pixels = train.pixels | {stamp.pixels for stamp in shown.stamps}
    held = all_items(source("unseen_stamps", NUM_HELD, "both", object_limit=None, tasks={"short": 1}))
    targets = [
        (n, thing, item) for item in held for n, thing in enumerate(item.graph.objects) if thing.unseen
    ]
    assert sum(thing.stamp.startswith("tuxpaint:") for _, thing, _ in targets) > 30
    return [
        thing.stamp
        for n, thing, item in targets
        if thing.stamp in drawings or item.sample.images[0].pixels[n] in pixels  # type: ignore[attr-defined]
    ]


def test_no_drawing_leaks_from_one_object_set_into_another() -> None:
    assert leaks_between_sets() == []
    alone = [held_out_drawings(load_objects(name)) for name in ("tuxpaint", "openmoji")]
    assert held_out_drawings(load_objects("both")) == alone[0] | alone[1]


def test_planted_leak_between_sets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_word_alone(objects: ObjectSet) -> frozenset[str]:
        groups = (found for found in objects.by_word().values() if len(found) > 1)
        return frozenset(min(found, key=lambda stamp: fraction("drawing", stamp.id)).id for found in groups)

    monkeypatch.setattr(make_module, "held_out_drawings", by_word_alone)
    monkeypatch.setattr(stamps, "held_out_drawings", by_word_alone)
    assert leaks_between_sets()


def test_planted_leak_in_scenes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_module, "meets_held_out", lambda *_: False)
    assert any("every pair" in leak for leak in leaks())


def test_planted_leak_in_questions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items_module, "meets_held_out", lambda *_: False)
    assert any("every pair" in leak for leak in leaks())


def test_planted_leak_of_drawings_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = make_module.SceneMaker._drawing

    def careless(self: make_module.SceneMaker, rng: object, word: str, is_target: bool) -> object:
        if self.split == "train" and word in self.unseen:
            return self.unseen[word][0]
        return honest(self, rng, word, is_target)  # type: ignore[arg-type]

    monkeypatch.setattr(make_module.SceneMaker, "_drawing", careless)
    assert any("held-out drawing" in leak for leak in leaks())


def test_planted_leak_of_single_scenes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = make_module.SceneMaker._single

    def careless(self: make_module.SceneMaker, rng: object, stamps: object, *drawn: object) -> object:
        return drawn if self.split == "train" else honest(self, rng, stamps, *drawn)  # type: ignore[arg-type]

    monkeypatch.setattr(make_module.SceneMaker, "_single", careless)
    assert single_leaks()


# ---- the shipped configs: each source of each stage, every item of it


OPENMOJI = ("stages.*.data.mix.*.objects=openmoji", "evaluation.splits.*.source.objects=openmoji")


def built(component: Component, seed: int) -> list[SceneItem]:
    module, options = component_options("source", component)
    return all_items(module.build(options, SourceContext(seed=seed)))


def leaks_of_config(preset: str, *overrides: str) -> list[str]:
    """What of the config's evaluation its own stages show, as built from the config alone."""
    config = load_config(preset, overrides)
    assert config.evaluation is not None
    mix = [source for stage in config.stages.values() for source in stage.data.mix]
    shown = [item for source in mix for item in built(source, config.seed)]
    (objects,) = {source.options.get("objects", "tuxpaint") for source in mix}
    train = collect(shown, load_objects(objects).words)
    splits = {name: built(split.source, config.seed) for name, split in config.evaluation.splits.items()}
    singles = {single(item) for item in shown if len(item.graph.objects) == 1}
    held = {single(item) for item in splits["unseen_pairs"] if len(item.graph.objects) == 1}
    assert singles and held and len(train.pairs) > len(train.words) * (len(train.words) - 1) / 4
    return [
        *leaks_of_pairs(train, splits["unseen_pairs"]),
        *leaks_of_drawings(train, splits["unseen_stamps"]),
        *(f"single scene {scene} is in training" for scene in singles & held),
    ]


@pytest.mark.parametrize("overrides", [(), OPENMOJI], ids=["tuxpaint", "openmoji"])
@pytest.mark.parametrize("preset", ["demo/scenes", "demo/quick"])
def test_nothing_leaks_in_the_demo(preset: str, overrides: tuple[str, ...]) -> None:
    if overrides and not (objects_root() / "openmoji" / "index.json").is_file():
        pytest.skip(f"no OpenMoji drawings at {objects_root()}: run `prismcap fetch openmoji`")
    assert leaks_of_config(preset, *overrides) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.align.data.mix.0.split=unseen_pairs", "every pair"),
        ("stages.instruct.data.mix.1.split=unseen_pairs", "every pair"),
        ("stages.instruct.data.mix.1.split=unseen_pairs", "single scene"),
        ("stages.instruct.data.mix.1.split=unseen_stamps", "held-out drawing"),
        ("evaluation.splits.unseen_pairs.source.split=train", "every pair"),
    ],
)
def test_planted_leak_in_a_config_is_found(override: str, words: str) -> None:
    assert any(words in leak for leak in leaks_of_config("demo/quick", override))
