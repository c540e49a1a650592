"""CLIP, SigLIP and their kind: pictures and texts as vectors of one space.

Shape legend: n pictures or texts, D width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from prismcap.configs.errors import ConfigError, DataError
from prismcap.data.schema import ImageRef
from prismcap.evaluate.local_models import local_device
from prismcap.evaluate.metrics._encoders import load_tokenizer, token_limit, too_long
from prismcap.model.huggingface import load_pretrained


class DualEncoder:
    """A model in float32 with its tokenizer and its picture processor (PIL, the same on every machine)."""

    def __init__(self, folder: Path, device: str, batch_size: int) -> None:
        """Raises ConfigError where the folder holds no such model."""
        self._device = local_device(device)
        self._batch_size = batch_size
        model = _load_model(folder)
        if not all(hasattr(model, name) for name in ("get_text_features", "get_image_features")):
            raise ConfigError(
                f"{folder}: a {type(model).__name__} puts pictures and texts into no common space: give a "
                "CLIP or SigLIP"
            )
        self._model = model.to(self._device).eval()
        try:
            self._pictures = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: its picture processor cannot be loaded: {error}") from error
        self._tokenizer = load_tokenizer(folder)
        config = model.config
        self._limit = token_limit(self._tokenizer, getattr(config, "text_config", config))
        # SigLIP was trained on texts padded to the full length, and reads the padding
        self._is_siglip = str(config.model_type).startswith("siglip")

    @torch.inference_mode()
    def pictures(self, images: Sequence[ImageRef], where: Sequence[str]) -> Tensor:
        """[n, D] of length 1 on the CPU. Pictures are loaded batch by batch; where: file and row of each.

        Raises DataError for a picture that cannot be loaded.
        """
        rows = []
        both = iter(zip(images, where, strict=True))
        while batch := list(islice(both, self._batch_size)):
            loaded = [_load(image, place) for image, place in batch]
            inputs = self._pictures(images=loaded, return_tensors="pt").to(self._device)
            rows.append(_unit(self._model.get_image_features(**inputs)))
        return torch.cat(rows)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[n, D] of length 1 on the CPU. What is longer than the model reads is cut at its end."""
        rows = []
        for start in range(0, len(texts), self._batch_size):
            inputs = self._tokenizer(
                list(texts[start : start + self._batch_size]),
                padding="max_length" if self._is_siglip else True,
                truncation=self._limit is not None,
                max_length=self._limit,
                return_tensors="pt",
            ).to(self._device)
            names = ("input_ids",) if self._is_siglip else ("input_ids", "attention_mask")
            rows.append(_unit(self._model.get_text_features(**{name: inputs[name] for name in names})))
        return torch.cat(rows)

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Of each text whether its end is cut."""
        return too_long(self._tokenizer, texts, self._limit)


def _load_model(folder: Path) -> Any:
    try:
        return load_pretrained(AutoModel, str(folder), dtype=torch.float32, local_files_only=True)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{folder}: the model cannot be loaded: {error}") from error


def _load(image: ImageRef, where: str) -> Any:
    try:
        return image.load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _unit(output: Any) -> Tensor:
    features = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()
