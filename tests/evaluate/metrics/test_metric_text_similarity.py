"""Greedy matching of tokens against a loop over every pair."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_items import build, by_name, values_of
from tiny_encoders import bert, clip
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from prismcap.configs.errors import ConfigError
from prismcap.evaluate.metrics._contract import CaptionItem, MetricContext

ITEMS = [
    CaptionItem("1", "a tiger", references=("a tiger on the left", "one big cat")),
    CaptionItem("2", "a hammer and a drum", references=("drums",)),
    CaptionItem("3", "", references=("a house", "x")),
    CaptionItem("4", "a tree", references=("", "a tree")),
    CaptionItem("5", "zzzz", references=("q", "a horse [x]", "two words", "a horse")),
    CaptionItem("6", "long " * 30, references=("long words " * 20,)),  # more than the encoder reads
]
MAX_TOKENS = 64


@pytest.fixture(autouse=True)
def own_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("model"), max_tokens=MAX_TOKENS)


class Loop:
    """BERTScore as the paper writes it, one text at a time and one cosine at a time."""

    def __init__(self, folder: Path, layer: int, idf: bool) -> None:
        self.model = AutoModel.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.layer = layer
        references = [text for item in ITEMS for text in item.references]
        self.documents = [set(self.ids(text)) for text in references]
        self.idf = idf

    def ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids[: MAX_TOKENS - 2])

    def weight(self, token: int) -> float:
        if not self.idf:
            return 1.0
        held = sum(token in document for document in self.documents)
        return math.log((len(self.documents) + 1) / (held + 1))

    def vectors(self, text: str) -> Any:
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        with torch.inference_mode():
            output = self.model(torch.tensor([[start, *self.ids(text), end]]), output_hidden_states=True)
        return output.hidden_states[self.layer][0, 1:-1]

    def one(self, text: str, reference: str) -> tuple[float, float, float]:
        said, true = self.vectors(text), self.vectors(reference)
        if not len(said) or not len(true):
            return 0.0, 0.0, 0.0
        cosines = [[float(torch.cosine_similarity(a, b, dim=0)) for b in true] for a in said]
        of_text = [self.weight(token) for token in self.ids(text)]
        of_reference = [self.weight(token) for token in self.ids(reference)]
        best = [max(row) for row in cosines]
        best_of_reference = [max(row[m] for row in cosines) for m in range(len(true))]
        precision = sum(w * b for w, b in zip(of_text, best, strict=True)) / sum(of_text)
        recall = sum(w * b for w, b in zip(of_reference, best_of_reference, strict=True)) / sum(of_reference)
        return precision, recall, 2 * precision * recall / (precision + recall)

    def figures(self) -> list[list[float]]:
        rows = [[self.one(item.text, text) for text in item.references] for item in ITEMS]
        return [[max(scores[at] for scores in row) for row in rows] for at in range(3)]


@pytest.mark.parametrize(
    ("layer", "idf"), [(-1, False), (0, False), (2, False), (-1, True), (-2, True), (0, True)]
)
def test_figures_are_those_of_the_loop(folder: Path, layer: int, idf: bool) -> None:
    metric = build("text_similarity", path=str(folder), layer=layer, idf=idf)
    figures = by_name(metric.figures(ITEMS))
    wanted = dict(zip(("precision", "recall", "f1"), Loop(folder, layer, idf).figures(), strict=True))
    for name, values in wanted.items():
        assert figures[name].values == pytest.approx(values, abs=3e-6), name
    assert figures["text_cut"].values == [0, 0, 0, 0, 0, 1]
    assert figures["f1"].values[2] == 0 and figures["f1"].values[3] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_batches_change_nothing(folder: Path, batch_size: int) -> None:
    one = build("text_similarity", path=str(folder), idf=True).figures(ITEMS)
    context = MetricContext(batch_size=batch_size)
    other = build("text_similarity", context, path=str(folder), idf=True).figures(ITEMS)
    for before, after in zip(one, other, strict=True):
        assert after.values == pytest.approx(list(before.values), abs=3e-6)


def test_a_token_weighs_by_the_references_that_hold_it_and_one_more(folder: Path) -> None:
    # of three references two hold an a, one a b, and none a z
    items = [CaptionItem("1", "az", references=("ab",)), CaptionItem("2", "c", references=("a", "c"))]
    a, b, z = math.log(4 / 3), math.log(4 / 2), math.log(4 / 1)
    # of the embeddings, where an a in the same place is the same vector: its cosine is 1
    options: dict[str, Any] = {"path": str(folder), "layer": 0}
    even = by_name(build("text_similarity", **options).figures(items))
    weighed = by_name(build("text_similarity", **options, idf=True).figures(items))
    for name, other in (("precision", z), ("recall", b)):
        alike, found = even[name].values[0], weighed[name].values[0]
        assert alike is not None and alike < 0.95, "the example tells"
        assert found == pytest.approx((a * 1 + other * (2 * alike - 1)) / (a + other), abs=3e-6), name


def test_words_that_every_reference_holds_weigh_alike_where_there_are_no_others(folder: Path) -> None:
    items = [CaptionItem("1", "ab", references=("ba",))]
    even = values_of(build("text_similarity", path=str(folder)), items)
    weighed = values_of(build("text_similarity", path=str(folder), idf=True), items)
    assert weighed == pytest.approx(even) and 0 < even["f1"] < 1


def test_a_model_for_filling_gaps_has_no_pooler_and_needs_none(folder: Path, tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "gaps")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "gaps")
    one = values_of(build("text_similarity", path=str(folder)), ITEMS)
    assert values_of(build("text_similarity", path=str(tmp_path / "gaps")), ITEMS) == pytest.approx(one)


def test_model_layer_and_weights_are_in_the_identity(folder: Path, tmp_path: Path) -> None:
    other = bert(tmp_path, seed=1, max_tokens=MAX_TOKENS)
    cases: list[dict[str, Any]] = [{}, {"layer": 1}, {"idf": True}, {"path": str(other)}]
    identities = {build("text_similarity", **{"path": str(folder), **case}).identity for case in cases}
    assert len(identities) == 4
    assert build("text_similarity", path=str(folder)).needs == {"references"}


def test_what_cannot_be_used_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: text_similarity\.path: .* is no directory"):
        build("text_similarity", MetricContext(where="run.yaml"), path="bert-base-uncased")
    for layer in (4, -5):
        with pytest.raises(
            ConfigError, match=rf"text_similarity\.layer: {layer} is not there: .* has 3 layers"
        ):
            build("text_similarity", path=str(folder), layer=layer).figures(ITEMS)
    with pytest.raises(ConfigError, match="a CLIPModel is no encoder of texts"):
        build("text_similarity", path=str(clip(tmp_path))).figures(ITEMS)
