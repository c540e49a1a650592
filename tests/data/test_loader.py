"""A step is a function of seed and number: of neither ranks, workers, nor where the run began."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.data import BatchConfig, DataConfig
from prismcap.data.encode import build_encoder
from prismcap.data.grouping import GroupedOrder
from prismcap.data.lengths import LengthIndex, measure, read_index
from prismcap.data.loader import RejectionTally, StepData, StepLoader
from prismcap.data.mix import Mix, build_mix, permute
from prismcap.data.pack import PixelInputs
from prismcap.data.schema import (
    DataError,
    ImagePart,
    ImageRef,
    ImageSpec,
    Message,
    Sample,
    SampleRejected,
    TextPart,
    TokenSpec,
)
from prismcap.data.sources._contract import SourceContext


@dataclass(frozen=True)
class Grey:
    level: int

    def load(self) -> Image.Image:
        if self.level % 13 == 5:
            raise SampleRejected("image_corrupt", f"picture {self.level} is broken")
        return Image.new("RGB", (8, 8), (self.level,) * 3)

    def fingerprint(self) -> str:
        return str(self.level)


@dataclass(frozen=True)
class Numbers:
    """Sample i says i; every seventh row is rejected, and so is the row `gone`."""

    name: str
    size: int
    gone: int = -1
    num_images: int = 1

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if index % 7 == 3:
            raise SampleRejected("row_malformed", f"row {index}")
        if index == self.gone:
            raise SampleRejected("row_gone", f"row {index}")
        pictures = [ImagePart(i) for i in range(self.num_images)]
        messages = (
            Message("user", (*pictures, TextPart("q"))),
            Message("assistant", (TextPart("w " * (index % 5 + 1)),), train=True),
        )
        images = tuple(Grey((index + i) % 64) for i in range(self.num_images))
        return Sample(f"{self.name}{index}", images, messages, self.name)


def words() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", "w", "q", "USER:", "ASSISTANT:"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def loader() -> StepLoader:
    mix = Mix(((Numbers("a", 40), 1), (Numbers("b", 10), 3)), seed=3)
    encoder = build_encoder(Component(name="vicuna_v1", system=None), words(), TokenSpec(2), 32)
    batch = BatchConfig(samples_per_step=12, row_tokens=32, rows_per_micro_batch=2)
    images = PixelInputs(ImageSpec(8, (0.5,) * 3, (0.5,) * 3))
    return StepLoader(mix, encoder, batch, images, num_steps=8)


def content(data: StepData) -> Any:
    tensors = [
        [value.tolist() if isinstance(value, torch.Tensor) else value for value in vars(batch).values()]
        for batch in data.micro_batches
    ]
    return replace(data, micro_batches=[]), tensors


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_steps_do_not_depend_on_workers_nor_on_where_the_run_began(
    loader: StepLoader, num_workers: int
) -> None:
    reference = [content(loader.load(step)) for step in range(8)]
    assert len({str(step) for step in reference}) == 8
    resumed = replace(loader, num_workers=num_workers, start_step=3, num_steps=5)
    assert [content(step) for step in resumed] == reference[3:]


@dataclass(frozen=True)
class Bfloat16Features:
    """Stands for the feature cache."""

    kind: Literal["tiles", "features"] = "features"

    def read(self, image: ImageRef) -> tuple[torch.Tensor, tuple[int, int]]:
        return torch.tensor([[[float(image.fingerprint()), 0.1]]], dtype=torch.bfloat16), (8, 8)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bfloat16_features_pass_through_workers(loader: StepLoader, num_workers: int) -> None:
    cached = replace(loader, images=Bfloat16Features(), num_workers=num_workers, num_steps=1)
    (data,) = cached
    for batch, same in zip(data.micro_batches, cached.load(0).micro_batches, strict=True):
        assert batch.features is not None and batch.features.dtype == torch.bfloat16
        assert torch.equal(batch.features, same.features)  # type: ignore[arg-type]


def indexed(loader: StepLoader) -> StepLoader:
    """The same, with lengths from an index."""
    index = read_index(loader.mix, loader.encoder)
    places = index.missing(loader.mix, len(loader.mix))
    index.fill(places, measure(loader.mix, loader.encoder, places))
    return replace(loader, lengths=index)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [2, 5, 8, 64])
def test_ranks_share_out_the_same_samples(loader: StepLoader, world_size: int, packing: bool) -> None:
    loader = replace(loader, batch=loader.batch.model_copy(update={"packing": packing}))
    with_index = indexed(loader)
    for step in range(4):
        whole = loader.load(step)
        parts = [
            replace(with_index, rank=rank, world_size=world_size).load(step) for rank in range(world_size)
        ]
        assert sorted(name for part in parts for name in part.sample_ids) == sorted(whole.sample_ids)
        assert sum((Counter(part.num_rejected) for part in parts), Counter()) == Counter(whole.num_rejected)
        assert sum(part.num_samples for part in parts) == whole.num_samples == 12
        packed = [name for batch in whole.micro_batches for name in batch.sample_ids]
        assert sorted(packed) == sorted(whole.sample_ids)
        assert sum(batch.num_target_tokens for part in parts for batch in part.micro_batches) == sum(
            batch.num_target_tokens for batch in whole.micro_batches
        )


@pytest.mark.parametrize("world_size", [1, 3])
def test_lengths_from_an_index_make_the_same_steps(loader: StepLoader, world_size: int) -> None:
    for rank in range(world_size):
        plain = replace(loader, rank=rank, world_size=world_size)
        for step in range(4):
            assert content(indexed(plain).load(step)) == content(plain.load(step))


def test_packing_changes_rows_and_not_samples(loader: StepLoader) -> None:
    alone = replace(loader, batch=loader.batch.model_copy(update={"packing": False}))
    for step in range(4):
        packed, single = loader.load(step), alone.load(step)
        assert packed.sample_ids == single.sample_ids and packed.num_rejected == single.num_rejected
        assert all(int(batch.segment_ids.max()) == 1 for batch in single.micro_batches)
        assert max(int(batch.segment_ids.max()) for batch in packed.micro_batches) > 1
        for count in ("num_target_tokens", "num_tokens"):
            first, second = (
                sum(getattr(batch, count) for batch in data.micro_batches) for data in (packed, single)
            )
            assert first == second


def test_an_index_that_is_wrong_is_an_error(loader: StepLoader) -> None:
    right = indexed(loader)
    assert right.lengths is not None
    names = set(right.load(0).sample_ids)
    for change in ([1, 0], [0, 1]):
        tables = tuple(table + np.where(table[:, :1] > 0, change, 0) for table in right.lengths.tables)
        with pytest.raises(DataError, match="when lengths were measured"):
            replace(right, lengths=LengthIndex(tables)).load(0)
    # what is rejected only now leaves a gap, and is counted
    readable = replace(right, mix=Mix(((Numbers("a", 40, gone=5), 1), (Numbers("b", 10), 3)), seed=3))
    data = [readable.load(step) for step in range(8)]
    assert any("row_gone" in found.num_rejected for found in data)
    assert all(len(found.sample_ids) + sum(found.num_rejected.values()) == 12 for found in data)
    assert set(data[0].sample_ids) <= names


def test_a_sample_of_too_many_pictures_is_rejected_once(loader: StepLoader) -> None:
    few = replace(loader, batch=loader.batch.model_copy(update={"images_per_micro_batch": 1}))
    pairs = replace(few, mix=Mix(((Numbers("a", 40, num_images=2), 1),), seed=3))
    for found in (pairs, indexed(pairs)):
        parts = [replace(found, rank=rank, world_size=3).load(0) for rank in range(3)]
        rejected = sum((Counter(part.num_rejected) for part in parts), Counter())
        assert rejected["too_many_images"] > 6 and sum(rejected.values()) == 12
        assert "images_per_micro_batch is 1" in " ".join(text for part in parts for text in part.messages)
        assert all(part.micro_batches == [] for part in parts)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_grouped_steps_resume_anywhere(loader: StepLoader, num_workers: int) -> None:
    index = indexed(loader).lengths
    assert index is not None
    tokens, num_images = index.of_epoch(loader.mix)
    order = GroupedOrder(tokens, num_images > 0, 12, seed=3, by_modality=True)
    grouped = replace(loader, mix=replace(loader.mix, order=order), lengths=index)
    reference = [content(grouped.load(step)) for step in range(8)]
    assert [content(step) for step in replace(grouped, start_step=5, num_steps=3)] == reference[5:]
    resumed = replace(grouped, num_workers=num_workers, start_step=2, num_steps=6)
    assert [content(step) for step in resumed] == reference[2:]
    epoch = [grouped.mix.locate(position) for position in range(70)]
    plain = [loader.mix.locate(position) for position in range(70)]
    assert epoch != plain and sorted(epoch) == sorted(plain)


def test_pinning_goes_over_every_tensor(loader: StepLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests/gpu/test_inputs.py runs, without a GPU: each tensor is asked once, the rest stays."""
    asked: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    (batch, *_) = loader.load(0).micro_batches
    pinned = batch.pin_memory()
    assert len(asked) == sum(isinstance(value, torch.Tensor) for value in vars(batch).values())
    assert str(vars(pinned)) == str(vars(batch))


def test_rejected_samples_are_counted_by_reason_and_the_others_stay(loader: StepLoader) -> None:
    rejected: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    said: set[str] = set()
    for step in range(35):  # 420 samples: six epochs of 70
        data = loader.load(step)
        rejected.update(data.num_rejected)
        kept.update(data.sample_ids)
        said.update(data.messages)
        assert len(data.sample_ids) + sum(data.num_rejected.values()) == data.num_samples
        assert len(data.messages) == min(5, sum(data.num_rejected.values()))
    assert "image_corrupt: sample 'a5': picture 5 is broken" in said
    # per epoch 6 rows of a (3, 10, 17, 24, 31, 38) and 3 times 1 of b; pictures 5, 18 of a and 5 of b thrice
    assert rejected == {"row_malformed": 6 * (6 + 3), "image_corrupt": 6 * (2 + 3)}
    assert kept["a0"] == 6 and kept["b0"] == 18 and "a3" not in kept and "a5" not in kept


def test_an_epoch_is_every_sample_as_often_as_asked() -> None:
    mix = Mix(((Numbers("a", 5), 2), (Numbers("b", 3), 1)), seed=0)
    epochs = [[mix.locate(epoch * len(mix) + i) for i in range(len(mix))] for epoch in range(3)]
    expected = sorted([(0, i) for i in range(5)] * 2 + [(1, i) for i in range(3)])
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [replace(mix, seed=1).locate(i) for i in range(len(mix))]


def test_the_order_is_a_permutation_without_pattern() -> None:
    for size in (1, 2, 3, 17, 256, 257, 1000):
        assert sorted(permute(i, size, b"k") for i in range(size)) == list(range(size))
    order = torch.tensor([permute(i, 1000, b"k") for i in range(1000)], dtype=torch.float)
    assert abs(torch.corrcoef(torch.stack([order, torch.arange(1000.0)]))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([order[1:], order[:-1]]))[0, 1]) < 0.1
    assert permute(10**6 - 1, 10**6, b"k") < 10**6


def step_of(num_samples: int, num_rejected: int) -> StepData:
    counts = {"image_missing": num_rejected} if num_rejected else {}
    return StepData(0, [], (), counts, num_samples, messages=("image_missing: x.png",) * min(num_rejected, 5))


def test_the_tally_stops_above_the_share_and_says_why() -> None:
    tally = RejectionTally(0.05, num_planned=10_000)
    tally.add(step_of(32, 32))  # a bad beginning is not yet 5% of a thousand
    tally.add(step_of(32, 18))
    with pytest.raises(DataError, match=r"(?s)51 of 96.*image_missing 51.*max_rejected_share=0\.05.*x\.png"):
        tally.add(step_of(32, 1))
    late = RejectionTally(0.05, num_planned=10_000)
    late.add(step_of(2000, 100))
    with pytest.raises(DataError):
        late.add(step_of(1, 1))
    small = RejectionTally(0.05, num_planned=64)
    small.add(step_of(32, 3))
    with pytest.raises(DataError):
        small.add(step_of(1, 1))
    with pytest.raises(DataError):
        RejectionTally(0.0, num_planned=10_000).add(step_of(32, 1))
    RejectionTally(1.0, num_planned=32).add(step_of(32, 32))


def test_build_mix_names_the_place_of_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]')
    item = {"name": "llava_json", "path": str(path), "repeat": 3}
    mix = build_mix(DataConfig.model_validate({"mix": [item]}), SourceContext(seed=1))
    assert len(mix) == 3 and mix.sample_at(2).messages[1].text() == "a"
    wrong = DataConfig.model_validate({"mix": [item, {**item, "pth": 1}]})
    with pytest.raises(ConfigError, match=r"run\.yaml: data\.mix\.1\.pth.*'path'"):
        build_mix(wrong, SourceContext(), "run.yaml: data")
    with pytest.raises(DataError):
        Mix((), seed=0)
