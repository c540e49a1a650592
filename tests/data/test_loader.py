"""A step is a function of seed and number: of neither ranks, workers, nor where the run began."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.data import BatchConfig, DataConfig
from prismcap.data.encode import build_encoder
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
    """Sample i says i; every seventh row is rejected."""

    name: str
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if index % 7 == 3:
            raise SampleRejected("row_malformed", f"row {index}")
        messages = (
            Message("user", (ImagePart(0), TextPart("q"))),
            Message("assistant", (TextPart("w " * (index % 5 + 1)),), train=True),
        )
        return Sample(f"{self.name}{index}", (Grey(index % 64),), messages, self.name)


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


@pytest.mark.parametrize("num_workers", [0, 2])
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


def test_ranks_share_out_the_same_samples(loader: StepLoader) -> None:
    for step in range(8):
        whole = loader.load(step)
        parts = [replace(loader, rank=rank, world_size=5).load(step) for rank in range(5)]
        assert sorted(name for part in parts for name in part.sample_ids) == sorted(whole.sample_ids)
        assert sum((Counter(part.num_rejected) for part in parts), Counter()) == Counter(whole.num_rejected)
        assert sum(part.num_samples for part in parts) == whole.num_samples == 12
        packed = [name for batch in whole.micro_batches for name in batch.sample_ids]
        assert sorted(packed) == sorted(whole.sample_ids)


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
