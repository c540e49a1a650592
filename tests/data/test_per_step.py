"""Mixes of which every step takes so many samples of each item: exact counts, whole passes, any resume."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.data import BatchConfig, DataConfig
from prismcap.data.encode import build_encoder
from prismcap.data.lengths import measure, read_index
from prismcap.data.loader import StepData, StepLoader
from prismcap.data.mix import Mix, build_mix
from prismcap.data.pack import PixelInputs
from prismcap.data.schema import ImagePart, ImageSpec, Message, Sample, TextPart, TokenSpec
from prismcap.data.sources._contract import SourceContext


@dataclass(frozen=True)
class Grey:
    level: int

    def load(self) -> Image.Image:
        return Image.new("RGB", (8, 8), (self.level % 256,) * 3)

    def fingerprint(self) -> str:
        return str(self.level)


@dataclass(frozen=True)
class Rows:
    """Sample i is called `{name}{i}`."""

    name: str
    size: int
    with_image: bool = False

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        picture = (ImagePart(0),) if self.with_image else ()
        messages = (
            Message("user", (*picture, TextPart("q"))),
            Message("assistant", (TextPart("w " * (index % 5 + 1)),), train=True),
        )
        images = (Grey(index),) if self.with_image else ()
        return Sample(f"{self.name}{index}", images, messages, self.name)


COUNTS = (5, 3)


@pytest.fixture(scope="module")
def loader() -> StepLoader:
    mix = Mix(((Rows("text", 23), 1), (Rows("picture", 7, True), 1)), seed=3, per_step=COUNTS)
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", "w", "q"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    encoder = build_encoder(Component(name="vicuna_v1", system=None), words, TokenSpec(2), 32)
    batch = BatchConfig(samples_per_step=8, row_tokens=32, rows_per_micro_batch=2)
    return StepLoader(mix, encoder, batch, PixelInputs(ImageSpec(8, (0.5,) * 3, (0.5,) * 3)), num_steps=12)


def ids_of(data: StepData) -> list[str]:
    return sorted(data.sample_ids)


def counts_of(ids: list[str]) -> tuple[int, int]:
    return sum(id.startswith("text") for id in ids), sum(id.startswith("picture") for id in ids)


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_step_has_the_counts_on_any_number_of_ranks(loader: StepLoader, world_size: int) -> None:
    index = read_index(loader.mix, loader.encoder)
    places = index.missing(loader.mix, 12 * 8)
    index.fill(places, measure(loader.mix, loader.encoder, places))
    for step in range(12):
        ranks = [replace(loader, rank=rank, world_size=world_size) for rank in range(world_size)]
        parts = [rank.load(step) for rank in ranks]
        ids = sorted(id for part in parts for id in part.sample_ids)
        assert counts_of(ids) == COUNTS
        assert ids == ids_of(loader.load(step))
        indexed = [replace(rank, lengths=index).load(step) for rank in ranks]
        assert [part.sample_ids for part in indexed] == [part.sample_ids for part in parts]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_goes_on_in_the_middle(loader: StepLoader, num_workers: int) -> None:
    whole = [data.sample_ids for data in loader]
    resumed = replace(loader, start_step=5, num_steps=7, num_workers=num_workers)
    assert [data.sample_ids for data in resumed] == whole[5:]
    assert len(set(whole)) == 12


def passes(mix: Mix, num_steps: int) -> list[list[int]]:
    """What each source gives, in order."""
    per_step = mix.per_step or ()
    found: list[list[int]] = [[] for _ in per_step]
    for position in range(num_steps * sum(per_step)):
        number, index = mix.locate(position)
        found[number].append(index)
    return found


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    counts=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(-3, 1000),
    num_steps=st.integers(1, 20),
)
def test_each_item_is_an_endless_sequence_of_whole_passes(
    sizes: list[int], counts: list[int], seed: int, num_steps: int
) -> None:
    sources = tuple((Rows(f"{i}/", size), 1) for i, size in enumerate(sizes))
    mix = Mix(sources, seed, per_step=tuple(counts[: len(sizes)]))
    step_size = sum(counts[: len(sizes)])
    for step in range(num_steps):
        step_sources = [mix.locate(step * step_size + offset)[0] for offset in range(step_size)]
        assert Counter(step_sources) == Counter(dict(enumerate(counts[: len(sizes)])))
    for size, count, given_out in zip(sizes, counts, passes(mix, num_steps), strict=False):
        assert len(given_out) == num_steps * count
        for start in range(0, len(given_out), size):
            one_pass = given_out[start : start + size]
            assert len(set(one_pass)) == len(one_pass), "no sample twice in a pass"
            assert len(one_pass) < size or sorted(one_pass) == list(range(size)), "and none is left out"
    # so many positions hold every sample, and one step less does not
    enough = range(mix.num_until_all)
    every = {(number, i) for number, size in enumerate(sizes) for i in range(size)}
    assert {mix.locate(position) for position in enough} == every
    assert {mix.locate(position) for position in enough[:-step_size]} < every


def test_items_and_passes_are_shuffled_apart_by_the_seed() -> None:
    sources = tuple((Rows(name, 50), 1) for name in "ab")
    mix = Mix(sources, seed=1, per_step=(5, 5))
    first, second = passes(mix, 20)
    assert first[:50] != first[50:] and first != second
    assert first[:50] != list(range(50))
    assert passes(replace(mix, seed=2), 20)[0] != first
    assert passes(mix, 20)[0] == first


def test_one_item_does_not_move_another() -> None:
    """A longer file beside it, or more of it per step, leaves an item's own sequence as it is."""
    text = (Rows("a", 31), 1)
    for other, count in ((Rows("b", 9), 2), (Rows("b", 90), 7)):
        mix = Mix((text, (other, 1)), seed=5, per_step=(4, count))
        found = passes(mix, 10)[0]
        assert found == passes(Mix((text,), seed=5, per_step=(4,)), 10)[0]


def test_the_beginning_of_a_step_shows_every_item() -> None:
    mix = Mix(((Rows("a", 500), 1), (Rows("b", 500), 1)), seed=0, per_step=(128, 128))
    assert {mix.locate(position)[0] for position in range(2)} == {0, 1}


def item(path: Path, **options: Any) -> dict[str, Any]:
    return {"name": "llava_json", "path": str(path), **options}


def test_build_mix_hands_the_counts_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}] * 3
    path.write_text(json.dumps(rows))
    config = DataConfig.model_validate({"mix": [item(path, per_step=2), item(path, per_step=1)]})
    mix = build_mix(config, SourceContext(seed=1))
    assert mix.per_step == (2, 1) and len(mix) == 6 and mix.num_until_all == 9
    assert build_mix(DataConfig.model_validate({"mix": [item(path)]}), SourceContext()).per_step is None


CONFIG = """
name: base
model:
  vision_encoder: {name: timm, model: test_vit, image_size: 32}
  connector: {name: linear}
  llm: {name: random, config: {model_type: llama}}
stages:
  align:
    train: {connector: {lr: 1e-3}}
    data:
      mix:
        - {name: llava_json, path: a.json, per_step: 5}
        - {name: llava_json, path: b.json, per_step: 3}
    template: {name: plain}
    batch: {samples_per_step: 8}
    schedule: {max_steps: 4}
"""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.align.data.mix.1.per_step=null", ["stages.align.data", "mix.1 (llava_json)", "to none"]),
        ("stages.align.data.mix.1.per_step=4", ["5 + 4 = 9", "batch.samples_per_step=8"]),
        ("stages.align.batch.samples_per_step=9", ["5 + 3 = 8", "batch.samples_per_step=9"]),
        ("stages.align.schedule={epochs: 2}", ["schedule.max_steps", "epochs=2"]),
        ("stages.align.data.mix.0.repeat=2", ["mix.0", "per_step=5", "repeat=2"]),
        ("stages.align.data.mix.0.per_step=0", ["mix.0.per_step", "0"]),
        ("stages.align.batch.grouping=length", ["batch.grouping=length", "per_step"]),
    ],
)
def test_errors_say_what_does_not_fit(tmp_path: Path, override: str, words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    assert load_config(path).stages["align"].data.per_step == COUNTS
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    for word in words:
        assert word in str(caught.value)
