"""Scenes in words: the same exchanges as with pictures, and nothing that is held out."""

from __future__ import annotations

from itertools import combinations

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.run import SplitConfig
from prismcap.data.scenes.splits import pair_held_out
from prismcap.data.scenes.text import KINDS, long_caption
from prismcap.data.schema import ImagePart, TextPart
from prismcap.data.sources import scenes
from prismcap.data.sources._contract import SourceContext
from prismcap.evaluate.scenes.items import split_items

OPTIONS = {"num_scenes": 60, "object_limit": 24, "num_objects": [2, 3], "tasks": dict.fromkeys(KINDS, 1)}


def source(described: bool) -> scenes.SceneItems:
    options = scenes.Options.model_validate({**OPTIONS, "described": described})
    return scenes.build(options, SourceContext(seed=5))


def test_the_long_caption_stands_in_place_of_the_picture() -> None:
    pictured, described = source(False), source(True)
    assert len(pictured) == len(described) == 60 * len(KINDS)
    for index in range(len(described)):
        there, here = pictured.item(index), described.item(index)
        assert (here.text, here.graph, here.scene) == (there.text, there.graph, there.scene)
        assert there.sample.messages[0].parts == (ImagePart(0), TextPart(there.text.prompt))
        assert not here.sample.images and len(there.sample.images) == 1
        (said,) = here.sample.messages[0].parts
        assert isinstance(said, TextPart)
        assert said.text == f"{long_caption(there.graph)}\n{there.text.prompt}"
        assert here.sample.messages[1] == there.sample.messages[1]
        assert here.sample.id != there.sample.id


def test_no_held_out_pair_is_described() -> None:
    described = source(True)
    pairs = {
        pair
        for index in range(len(described))
        for pair in combinations(sorted(described.item(index).graph.words), 2)
    }
    assert pairs and not any(pair_held_out(*pair) for pair in pairs)


def test_scenes_without_pictures_cannot_be_measured() -> None:
    split = SplitConfig(source=Component.model_validate({"name": "scenes", **OPTIONS, "described": True}))
    with pytest.raises(ConfigError, match="described: false"):
        split_items("unseen_pairs", split, SourceContext())
