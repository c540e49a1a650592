"""What every file of evaluate/metrics/ keeps: a new one is tested by being there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from metric_items import Noise, build, by_name, scene
from tiny_encoders import bert, clip

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import available
from prismcap.data.scenes.text import long_caption, short_caption
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, Metric, MetricContext, Need

TWO = scene(("tiger", "left"), ("hammer", "right"))
ONE = scene(("drum", "middle"), background="plain red")
TEXTS = (
    ("A tiger on the left and a hammer on the right.", TWO),
    ("A drum in the middle.", ONE),
    ("There are two objects on a striped blue background. On the left is a large tiger.", TWO),
    ("Yes, a dog and a person are there.", TWO),
    ("No.", ONE),
    ("I'm sorry, I cannot see the picture.", ONE),
    ("", TWO),
    ("A car, a car, a car and a car, a cat.", TWO),
)
# with everything that a metric may need; two to a picture
ITEMS = [
    CaptionItem(
        id=f"item {number}",
        text=text,
        where=f"items.json, row {number}",
        cluster=f"picture {number // 2}",
        references=(short_caption(graph), long_caption(graph), f"A dog and {number} drums."),
        image=Noise(number // 2),
        objects=("dog", "car"),
        statements=("There is a dog.", f"There are {number} drums."),
        graph=graph,
        answer="yes" if number % 3 else "no",
        group=("random", "popular")[number % 2],
    )
    for number, (text, graph) in enumerate(TEXTS)
]
JAVA = {"meteor", "spice"}  # outside programs: built, not run
OF_ALL_ITEMS = {"cider_d"}  # values that depend on the other items' references
REQUIRED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "clip_score": lambda folder: {"path": str(clip(folder))},
    "text_similarity": lambda folder: {"path": str(bert(folder, max_tokens=256))},
}


@pytest.fixture(autouse=True)
def own_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=available("metric"))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    name: str = request.param
    options = REQUIRED[name](tmp_path_factory.mktemp(name)) if name in REQUIRED else {}
    return name, options


@pytest.fixture
def runs(case: tuple[str, dict[str, Any]]) -> Callable[[Sequence[CaptionItem]], list[ItemFigure]]:
    """A new metric for each call: nothing is carried over."""
    name, options = case
    if name in JAVA:
        pytest.skip(f"{name} runs an outside program")

    def figures(items: Sequence[CaptionItem]) -> list[ItemFigure]:
        return build(name, **options).figures(items)

    return figures


def close(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    return len(one) == len(other) and all(
        (a is None and b is None)
        or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5))
        for a, b in zip(one, other, strict=True)
    )


def test_it_is_built_without_being_run(case: tuple[str, dict[str, Any]]) -> None:
    name, options = case
    metric: Metric = build(name, **options)
    assert isinstance(metric.needs, frozenset) and metric.needs <= set(get_args(Need))
    identity = metric.identity
    assert isinstance(identity, str) and identity != ""
    assert "\n" not in identity and identity == build(name, **options).identity
    others = {other: build(other).identity for other in ("length", "refusal")}
    assert all(identity != one for other, one in others.items() if other != name)
    with pytest.raises(ConfigError, match="no_such_option"):
        build(name, **options, no_such_option=1)


def test_figures_are_as_the_contract_has_them(
    runs: Callable[[Sequence[CaptionItem]], list[ItemFigure]],
) -> None:
    figures = runs(ITEMS)
    assert figures and by_name(figures)
    for figure in figures:
        assert figure.note and figure.name.replace("_", "").isalnum() and figure.name == figure.name.lower()
        assert len(figure.values) == len(ITEMS)
        there = [value for value in figure.values if value is not None]
        assert there, f"{figure.name} applies to nothing, and is to be left out"
        assert all(isinstance(value, float) and math.isfinite(value) for value in there)
        assert figure.unit in ("share", "words", "score")
        if figure.unit == "share":
            assert all(-1e-9 <= value <= 1 + 1e-9 for value in there), figure.name
        assert (figure.sums is None) == (figure.combine is None)
        if figure.sums is not None and figure.combine is not None:
            assert figure.sums.shape[0] == len(ITEMS) and figure.sums.dtype == np.float64
            whole = figure.combine(figure.sums.sum(axis=0))
            assert np.shape(whole) == () and np.isfinite(whole)
            some = np.stack([figure.sums.sum(axis=0), 2 * figure.sums.sum(axis=0)])
            assert np.shape(figure.combine(some)) == (2,) and figure.combine(some)[0] == pytest.approx(whole)
            absent = [value is None for value in figure.values]
            assert not figure.sums[absent].any(), "sums where the figure does not apply are zero"


def test_neither_order_nor_names_of_items_matter(
    runs: Callable[[Sequence[CaptionItem]], list[ItemFigure]],
) -> None:
    figures = by_name(runs(ITEMS))
    order = np.random.default_rng(0).permutation(len(ITEMS)).tolist()
    mixed = [replace(ITEMS[at], id=f"other {at}", cluster=f"x{at}", where="") for at in order]
    again = by_name(runs(mixed))
    assert again.keys() == figures.keys()
    for name, figure in figures.items():
        assert close(again[name].values, [figure.values[at] for at in order]), name
        if figure.sums is not None:
            sums = again[name].sums
            assert sums is not None and np.allclose(sums, figure.sums[order], atol=1e-5)


def test_an_item_has_the_value_that_it_has_alone(
    case: tuple[str, dict[str, Any]], runs: Callable[[Sequence[CaptionItem]], list[ItemFigure]]
) -> None:
    if case[0] in OF_ALL_ITEMS:
        pytest.skip(f"{case[0]} is of all items together")
    figures = by_name(runs(ITEMS))
    for at, item in enumerate(ITEMS):
        alone = by_name(runs([item]))
        for name, figure in figures.items():
            value = alone[name].values[0] if name in alone else None
            assert close([value], [figure.values[at]]), f"{name} of {item.text!r}"


def test_items_need_no_more_than_the_metric_says(
    case: tuple[str, dict[str, Any]], runs: Callable[[Sequence[CaptionItem]], list[ItemFigure]]
) -> None:
    kept = {"id", "text", *build(case[0], **case[1]).needs}
    bare = [CaptionItem(**{name: getattr(item, name) for name in kept}) for item in ITEMS]
    figures = runs(bare)
    assert figures and all(len(figure.values) == len(ITEMS) for figure in figures)


def test_batches_and_places_are_not_in_the_identity(
    case: tuple[str, dict[str, Any]],
) -> None:
    name, options = case
    other = MetricContext(batch_size=7, where="elsewhere")
    assert build(name, other, **options).identity == build(name, **options).identity
