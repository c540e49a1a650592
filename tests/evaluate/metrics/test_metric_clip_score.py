"""CLIPScore and RefCLIPScore against the formula of the paper, one text and one picture at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_items import Noise, build, by_name, values_of
from PIL import Image
from tiny_encoders import bert, clip, siglip
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from prismcap.configs.errors import ConfigError, DataError
from prismcap.data.schema import SampleRejected
from prismcap.evaluate.metrics._contract import CaptionItem, MetricContext

# the last is longer than either model reads
TEXTS = ("A tiger.", "two drums, three apples and a house", "x", "words " * 30)
ITEMS = [
    CaptionItem(
        f"{picture}/{number}",
        text,
        image=Noise(picture),
        references=(() if number == 2 else (TEXTS[(number + 1) % 3], f"a picture of {text[:9]}", text[:4])),
    )
    for picture in range(4)
    for number, text in enumerate(TEXTS)
]


@pytest.fixture(autouse=True)
def own_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=[clip, siglip], ids=lambda make: make.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("model"))
    return made


def literal(folder: Path, prefix: str = "A photo depicts ") -> tuple[list[float], list[float | None]]:
    """Equations 1 and 2 of the paper. Features are those of the models' own forward pass."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pictures = AutoImageProcessor.from_pretrained(folder, backend="pil")
    length = model.config.text_config.max_position_embeddings

    def text_ids(text: str) -> Any:
        ids = tokenizer(prefix + text)["input_ids"]
        if len(ids) > length:
            ids = [*ids[: length - 1], ids[-1]]
        if model.config.model_type == "siglip":
            ids = ids + [tokenizer.pad_token_id] * (length - len(ids))
        return torch.tensor([ids])

    def both(text: str, image: Any) -> tuple[Any, Any]:
        pixels = pictures(images=[image.load()], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = model(input_ids=text_ids(text), pixel_values=pixels)
        return output.text_embeds[0], output.image_embeds[0]

    scores: list[float] = []
    with_references: list[float | None] = []
    for item in ITEMS:
        own, picture = both(item.text, item.image)
        score = 2.5 * max(float(torch.cosine_similarity(own, picture, dim=0)), 0)
        scores.append(score)
        if not item.references:
            with_references.append(None)
            continue
        nearest = max(
            float(torch.cosine_similarity(own, both(text, item.image)[0], dim=0)) for text in item.references
        )
        nearest = max(nearest, 0)
        with_references.append(0.0 if not score or not nearest else 2 / (1 / score + 1 / nearest))
    return scores, with_references


def test_scores_are_those_of_the_formula(folder: Path) -> None:
    scores, with_references = literal(folder)
    figures = by_name(build("clip_score", path=str(folder)).figures(ITEMS))
    assert figures["clip_score"].values == pytest.approx(scores, abs=2e-6)
    found = figures["ref_clip_score"].values
    assert [one is None for one in found] == [one is None for one in with_references]
    assert [one or 0 for one in found] == pytest.approx([one or 0 for one in with_references], abs=2e-6)
    assert figures["text_cut"].values == [0, 0, 0, 1] * 4
    assert min(scores) == 0 < max(scores) and len(set(scores)) > 4, "a case that tells nothing"


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batches_change_nothing(folder: Path, batch_size: int) -> None:
    one = by_name(build("clip_score", path=str(folder)).figures(ITEMS))
    context = MetricContext(batch_size=batch_size)
    other = by_name(build("clip_score", context, path=str(folder)).figures(ITEMS))
    for name, figure in one.items():
        values = [value or 0 for value in figure.values]
        assert [value or 0 for value in other[name].values] == pytest.approx(values, abs=2e-6)


@dataclass(frozen=True)
class Counted:
    """Counts how often it is loaded; equal ones are one picture."""

    seed: int

    loaded = [0]  # noqa: RUF012

    def load(self) -> Image.Image:
        self.loaded[0] += 1
        return Noise(self.seed).load()

    def fingerprint(self) -> str:
        return str(self.seed)


@dataclass(frozen=True)
class Missing:
    def load(self) -> Image.Image:
        raise SampleRejected("image_missing", "a.jpg: no such file")

    def fingerprint(self) -> str:
        return ""


def test_a_picture_is_loaded_once_and_not_before_it_is_needed(folder: Path) -> None:
    Counted.loaded[0] = 0
    items = [CaptionItem(str(i), TEXTS[i % 3], image=Counted(i // 3)) for i in range(12)]
    metric = build("clip_score", path=str(folder))
    assert metric.identity and metric.needs == {"image"} and Counted.loaded[0] == 0
    found = metric.figures(items)
    assert Counted.loaded[0] == 4
    assert [figure.name for figure in found] == ["clip_score", "text_cut"], "no references, no RefCLIPScore"


def test_a_picture_that_cannot_be_loaded_is_named(folder: Path) -> None:
    items = [CaptionItem("1", "x", image=Noise(0)), CaptionItem("2", "x", "c.json, row 9", image=Missing())]
    with pytest.raises(DataError, match=r"c\.json, row 9: a\.jpg: no such file"):
        build("clip_score", path=str(folder)).figures(items)


def test_the_prefix_and_the_weights_are_in_the_identity(folder: Path, tmp_path: Path) -> None:
    other = clip(tmp_path, seed=1)
    cases = [{"path": str(folder)}, {"path": str(folder), "prefix": ""}, {"path": str(other)}]
    assert len({build("clip_score", **case).identity for case in cases}) == 3
    texts = [CaptionItem("1", TEXTS[0], image=Noise(0)), CaptionItem("2", TEXTS[1], image=Noise(1))]
    assert len({str(values_of(build("clip_score", **case), texts)) for case in cases}) == 3


def test_models_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for path in ("openai/clip-vit-base-patch32", str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=r"run\.yaml: clip_score\.path: .* is no directory"):
            build("clip_score", MetricContext(where="run.yaml"), path=path)
    item = CaptionItem("1", "x", image=Noise(0))
    with pytest.raises(ConfigError, match="no common space: give a CLIP or SigLIP"):
        build("clip_score", path=str(bert(tmp_path))).figures([item])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty"):
        build("clip_score", path=str(tmp_path / "empty")).figures([item])
    made = clip(tmp_path)
    (made / "preprocessor_config.json").unlink(missing_ok=True)
    (made / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="picture processor cannot be loaded"):
        build("clip_score", path=str(made)).figures([item])
    assert AutoTokenizer.from_pretrained(made).eos_token == "<|im_end|>"
