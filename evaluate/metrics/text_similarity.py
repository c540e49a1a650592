"""Similarity of texts by the vectors of their tokens, after BERTScore, with any local encoder.

Source: Zhang et al., BERTScore (arXiv 1904.09675). Each token of the text is matched with the most similar
token of the reference (precision), and the other way round (recall). Unlike the authors' program, special
tokens can be matched with nothing, and no baseline is subtracted.

Shape legend: n, m tokens of a text, D width of the encoder, B texts, T tokens of a batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModel

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.local_models import local_device, model_identity
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._encoders import load_tokenizer, model_folder, text_cut, token_limit, too_long

VERSION = 1  # raise it whenever a figure changes


class Options(Section):
    """The encoder, and how its tokens weigh."""

    path: str = Field(description="directory (or cache:…) of an encoder as transformers saves it")
    layer: int = Field(
        default=-1, description="whose output is compared: 0 the embeddings, 1 the first, -1 the last"
    )
    idf: bool = Field(default=False, description="weigh tokens by how few of the references hold them")


def build(options: Options, context: MetricContext) -> TextSimilarity:
    """Raises ConfigError for a directory that is not there."""
    return TextSimilarity(options, context)


class TextSimilarity:
    """precision, recall and f1: cosines, -1 to 1; and text_cut.

    With several references each figure is that of the reference where it is largest, as in the authors'
    program. A text without a token scores 0. With idf the values of an item depend on all items' references.
    """

    needs: frozenset[Need] = frozenset({"references"})

    def __init__(self, options: Options, context: MetricContext) -> None:
        self._options = options
        self._context = context
        self._folder = model_folder(options.path, f"{context.where}: text_similarity.path")

    @cached_property
    def identity(self) -> str:
        """Of the model's files."""
        options = self._options
        weights = "idf" if options.idf else "even"
        return f"text_similarity {VERSION} {model_identity(str(self._folder))} {options.layer} {weights}"

    @cached_property
    def _encoder(self) -> TokenEncoder:
        return TokenEncoder(self._folder, self._options.layer, self._context)

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """Raises ConfigError where the model cannot be loaded, or has no such layer."""
        encoder = self._encoder
        weights = self._weights(items)
        rows: list[tuple[float, float, float]] = []
        # some items at a time: the vectors of all texts' tokens would not fit into memory
        for start in range(0, len(items), self._context.batch_size):
            some = items[start : start + self._context.batch_size]
            texts = encoder.encode({text for item in some for text in (item.text, *item.references)})
            for item in some:
                found = [match(texts[item.text], texts[other], weights) for other in item.references]
                rows.append(
                    (max(p for p, _, _ in found), max(r for _, r, _ in found), max(f for *_, f in found))
                )
        notes = {
            "precision": "mean over the text's tokens of the largest cosine to a token of the reference",
            "recall": "mean over the reference's tokens of the largest cosine to a token of the text",
            "f1": "harmonic mean of precision and recall",
        }
        figures = [
            ItemFigure(name, [row[at] for row in rows], note, unit="score")
            for at, (name, note) in enumerate(notes.items())
        ]
        return [*figures, text_cut(encoder.too_long([item.text for item in items]))]

    def _weights(self, items: Sequence[CaptionItem]) -> Mapping[int, float] | None:
        """Of token ids, as the authors' program has them: log((N + 1) / (n + 1)) of a token that n of N
        references hold. None: all weigh the same."""
        if not self._options.idf:
            return None
        references = [text for item in items for text in item.references]
        held = Counter(token for ids in self._encoder.token_ids(references) for token in set(ids))
        unseen = math.log(len(references) + 1)
        return _Idf(unseen, {token: unseen - math.log(n + 1) for token, n in held.items()})


class _Idf(dict[int, float]):
    """Weights by token id, and of ids that are in no reference."""

    def __init__(self, unseen: float, known: Mapping[int, float]) -> None:
        super().__init__(known)
        self._unseen = unseen

    def __missing__(self, token: int) -> float:
        return self._unseen


@dataclass(frozen=True)
class Tokens:
    """ids: without special ones. vectors_nD: theirs, of length 1."""

    ids: tuple[int, ...]
    vectors_nD: Tensor


def match(
    text: Tokens, reference: Tokens, weights: Mapping[int, float] | None = None
) -> tuple[float, float, float]:
    """precision, recall and their harmonic mean; 0 where either text has no token, or the mean none."""
    if not text.ids or not reference.ids:
        return 0.0, 0.0, 0.0
    cosines_nm = text.vectors_nD @ reference.vectors_nD.T
    precision = _mean(cosines_nm.amax(dim=1), text.ids, weights)
    recall = _mean(cosines_nm.amax(dim=0), reference.ids, weights)
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def _mean(best_n: Tensor, ids: Sequence[int], weights: Mapping[int, float] | None) -> float:
    """Weighted; where every weight is 0 (words that all references hold) all tokens weigh the same."""
    weight_n = torch.ones(len(ids)) if weights is None else torch.tensor([weights[token] for token in ids])
    if not weight_n.any():
        weight_n = torch.ones(len(ids))
    return float((best_n * weight_n).sum() / weight_n.sum())


class TokenEncoder:
    """A local encoder in float32, and its tokenizer."""

    def __init__(self, folder: Path, layer: int, context: MetricContext) -> None:
        """Raises ConfigError where the model cannot be loaded, or has no such layer."""
        self._device = local_device(context.device)
        self._batch_size = context.batch_size
        self._tokenizer = load_tokenizer(folder)
        model = _load(folder)
        num_layers = getattr(model.config, "num_hidden_layers", None)
        if num_layers is None:
            raise ConfigError(
                f"{folder}: a {type(model).__name__} is no encoder of texts: give a BERT or its kind"
            )
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"{context.where}: text_similarity.layer: {layer} is not there: {folder} has {num_layers} "
                f"layers, so 0 (its embeddings) to {num_layers}, or -1 for the last"
            )
        self._layer = layer
        self._model = model.to(self._device).eval()
        self._limit = token_limit(self._tokenizer, model.config)

    @torch.inference_mode()
    def encode(self, texts: Iterable[str]) -> dict[str, Tokens]:
        """The tokens of each text. What is longer than the model reads is cut at its end."""
        # texts of like length together: less padding
        order = sorted(texts, key=lambda text: (len(text), text))
        found: dict[str, Tokens] = {}
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            inputs = self._tokens(batch, padding=True, return_tensors="pt")
            given = {name: inputs[name].to(self._device) for name in ("input_ids", "attention_mask")}
            states_BTD = self._model(**given, output_hidden_states=True).hidden_states[self._layer]
            vectors_BTD = torch.nn.functional.normalize(states_BTD.float(), dim=-1).cpu()
            kept_BT = (inputs["attention_mask"] == 1) & (inputs["special_tokens_mask"] == 0)
            for row, text in enumerate(batch):
                kept_T = kept_BT[row]
                ids = tuple(inputs["input_ids"][row, kept_T].tolist())
                found[text] = Tokens(ids, vectors_BTD[row, kept_T])
        return found

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, without special ones, as `encode` cuts it."""
        if not texts:
            return []
        inputs = self._tokens(list(texts))
        both = zip(inputs["input_ids"], inputs["special_tokens_mask"], strict=True)
        return [[token for token, flag in zip(ids, mask, strict=True) if not flag] for ids, mask in both]

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Of each text whether its end is cut."""
        return too_long(self._tokenizer, texts, self._limit)

    def _tokens(self, texts: list[str], **how: Any) -> Any:
        return self._tokenizer(
            texts,
            truncation=self._limit is not None,
            max_length=self._limit,
            return_special_tokens_mask=True,
            **how,
        )


def _load(folder: Path) -> Any:
    """The encoder of a model. Raises ConfigError where weights are missing that its layers need."""
    try:
        model, report = AutoModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: the encoder cannot be loaded: {error}") from error
    # models saved for filling gaps have no pooler, and nothing here reads it
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing or report["mismatched_keys"]:
        raise ConfigError(
            f"{folder}: not the weights of a {type(model).__name__}: {len(missing)} missing {missing[:3]}, "
            f"{len(report['mismatched_keys'])} of another shape"
        )
    return model.get_encoder() if model.config.is_encoder_decoder else model
