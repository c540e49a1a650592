"""The demo's own evaluation: every figure that it promises, each of at least 200 items."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.data.sources._contract import SourceContext
from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.scenes.figures import Result, figure_values, figures_of
from prismcap.evaluate.scenes.items import Item, split_items
from prismcap.evaluate.scenes.scoring import score

OPENMOJI = ("stages.*.data.mix.*.objects=openmoji", "evaluation.splits.*.source.objects=openmoji")
CAPTIONS = ["all_right", "objects_right", "places_right"]
FIGURES = {
    "unseen_pairs": [*CAPTIONS, *(f"num_objects_{n}" for n in (1, 3, 4)), "place", "count", "yes_no"],
    "unseen_stamps": ["object_right", *CAPTIONS],
}


def items_of(config: RunConfig) -> dict[str, list[Item]]:
    """The items of each split, without drawing one."""
    assert config.evaluation is not None
    context = SourceContext(seed=config.seed)
    try:
        splits = config.evaluation.splits.items()
        return {name: split_items(name, split, context) for name, split in splits}
    except ConfigError as error:
        if "is not at" not in str(error):
            raise
        pytest.skip(f"the drawings are not fetched: {error}")


def sizes(items: Sequence[Item]) -> dict[str, int]:
    """The n of each figure, were every answer the truth."""
    results = [
        Result(item, "none", item.truth, dict(score(item.kind, item.truth, item.truth, item.graph)), item)
        for item in items
    ]
    values = {figure.name: figure_values(figure, results) for figure in figures_of(items)}
    assert all(value["rate"] == 1.0 for value in values.values())
    return {name: value["n"] for name, value in values.items()}


@pytest.mark.parametrize("overrides", [(), OPENMOJI], ids=["tuxpaint", "openmoji"])
def test_the_demo_measures_every_figure_on_enough_items(overrides: tuple[str, ...]) -> None:
    config = load_config("demo/scenes", overrides)
    items = items_of(config)
    found = {name: sizes(members) for name, members in items.items()}
    assert {name: list(numbers) for name, numbers in found.items()} == FIGURES
    assert MIN_ITEMS == 200
    assert all(number >= 200 for numbers in found.values() for number in numbers.values()), found
    answers = [item.truth for item in items["unseen_pairs"] if item.kind == "yes_no"]
    assert (answers.count("Yes."), answers.count("No."), len(answers)) == (100, 100, 200)
    assert config.evaluation is not None and config.evaluation.quick is False
    assert config.evaluation.caption_loss == {"align": "unseen_pairs"} and "align" in config.stages


def test_a_source_of_too_few_scenes_would_be_noticed() -> None:
    """A planted fault: too few scenes to find 200 of each number of objects among them."""
    few = load_config("demo/scenes", ["evaluation.splits.unseen_pairs.source.num_scenes=600"])
    numbers = sizes(items_of(few)["unseen_pairs"])
    assert min(numbers.values()) < 200
