"""The source of single drawings."""

from __future__ import annotations

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.compose import TEXTURES
from prismcap.data.scenes.make import CELLS
from prismcap.data.scenes.objects import load_objects
from prismcap.data.scenes.splits import held_out_drawings, limit_words
from prismcap.data.scenes.text import SHORT_PROMPT, answer_right
from prismcap.data.schema import ImagePart
from prismcap.data.sources import stamps
from prismcap.data.sources._contract import SourceContext


def build(**options: object) -> stamps.Stamps:
    return stamps.build(stamps.Options.model_validate(options), SourceContext(seed=4))


def test_one_sample_for_each_drawing() -> None:
    train, unseen = build(), build(split="unseen_stamps")
    assert len(train) + len(unseen) == len(load_objects("tuxpaint").stamps)
    assert len(unseen) == len(held_out_drawings(load_objects("tuxpaint")))


@pytest.mark.parametrize("objects", ["tuxpaint", "openmoji"])
def test_samples_say_what_they_show(objects: str) -> None:
    found = build(objects=objects)
    for i in range(0, len(found), 7):
        sample = found[i]
        user, assistant = sample.messages
        assert user.parts[0] == ImagePart(0) and user.text() == SHORT_PROMPT and not user.train
        assert answer_right(assistant.text(), found.stamps[i].word) and assistant.train
        assert assistant.text()[0].isupper() and assistant.text().endswith(".")
        (shown,) = found.graph(i).objects
        assert shown.stamp == found.stamps[i].id and shown.place == "middle"
    assert found[0].images[0].load().size == (192, 192)


def test_other_views_show_the_same_drawings_elsewhere() -> None:
    once, often = build(), build(views=4)
    assert len(often) == 4 * len(once)
    assert [often[i] for i in range(len(once))] == list(once)
    graphs = [often.graph(i) for i in range(len(once), len(often))]
    shown = [graph.objects[0] for graph in graphs]
    assert [thing.stamp for thing in shown] == [stamp.id for stamp in once.stamps] * 3
    assert {thing.place for thing in shown} == set(CELLS[1]) and {t.size for t in shown} == {"small", "large"}
    assert {graph.background.texture for graph in graphs} == set(TEXTURES)
    assert len({often[i].id for i in range(len(often))}) == len(often)
    assert len({often.graph(i).digest() for i in range(len(often))}) == len(often)


def test_samples_are_a_function_of_the_seed_and_the_index() -> None:
    assert [build()[i] for i in range(20)] == [build()[i] for i in range(20)]
    assert [build()[i] for i in range(20)] != [build(seed=8)[i] for i in range(20)]
    with pytest.raises(IndexError):
        build()[len(build())]


def test_object_limit() -> None:
    assert {stamp.word for stamp in build(object_limit=40).stamps} == set(
        limit_words(load_objects("tuxpaint"), 40).words
    )


def test_missing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="prismcap fetch stamps"):
        build()
