"""Any encoder of timm: the last feature map of a CNN, the patch tokens of a ViT.

Shape legend: P tiles, S tile side in pixels, K patches, D encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.schema.base import Section
from prismcap.data.schema import ImageSpec
from prismcap.model.contracts import VisionEncoder
from prismcap.model.shapes import is_shapes_only
from prismcap.model.weights import load_weights


class Options(Section):
    model: str = Field(description="name of a timm model, without its pretrained tag")
    weights: str | None = Field(
        default=None, description="safetensors of its state dict; none: random weights"
    )
    image_size: int | None = Field(
        default=None, ge=1, description="tile side in pixels; none: the model's own"
    )
    mean: tuple[float, float, float] | None = Field(default=None, description="none: the model's own")
    std: tuple[float, float, float] | None = Field(default=None, description="none: the model's own")


class TimmEncoder(VisionEncoder):
    """A timm model without its head. Convolutions run channels last, which is faster on every device."""

    def __init__(self, model: Any, image_spec: ImageSpec) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.image_spec = image_spec
        self.hidden_size: int = model.num_features
        self.grid = self._measure_grid()

    def forward(self, tiles_P3SS: Tensor) -> Tensor:
        """features_PKD, row-major: CNN maps flattened, a ViT's class and register tokens dropped."""
        features = self._features(tiles_P3SS)
        if features.ndim == 3:
            return features[:, self._num_prefix_tokens() :]
        return features.flatten(1, 2)

    def unused_parameters(self) -> frozenset[str]:
        """What a model keeps of its head (ConvNeXt's norm); found by a backward pass over a blank tile."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.named_parameters()}
        size = self.image_spec.size_px
        tile = torch.zeros(1, 3, size, size, device=next(self.parameters()).device)
        modes = {module: module.training for module in self.modules()}
        self.eval()  # BatchNorm's statistics stay as they are
        try:
            with torch.enable_grad():
                features = functional_call(self, leaves, (tile,))
                gradients = torch.autograd.grad(features.sum(), list(leaves.values()), allow_unused=True)
        finally:
            for module, training in modes.items():
                module.training = training
        return frozenset(name for name, value in zip(leaves, gradients, strict=True) if value is None)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.model.set_grad_checkpointing(enabled)

    def _features(self, tiles_P3SS: Tensor) -> Tensor:
        """[P, prefix + K, D] of a ViT, or the map [P, rows, columns, D]."""
        tiles = tiles_P3SS.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.model.forward_features(tiles)
        if features.ndim == 4 and getattr(self.model, "output_fmt", "NCHW") == "NCHW":
            features = features.permute(0, 2, 3, 1)
        return features

    def _num_prefix_tokens(self) -> int:
        return int(getattr(self.model, "num_prefix_tokens", 0))

    def _measure_grid(self) -> tuple[int, int]:
        size = self.image_spec.size_px
        was_training = self.model.training
        with torch.no_grad():
            features = self._features_in_eval(torch.zeros(1, 3, size, size))
        self.model.train(was_training)
        if features.ndim == 4:
            return features.shape[1], features.shape[2]
        rows, columns = self.model.patch_embed.grid_size
        return rows, columns

    def _features_in_eval(self, tiles_P3SS: Tensor) -> Tensor:
        self.model.eval()
        return self._features(tiles_P3SS)


def build(options: Options) -> TimmEncoder:
    """Raises ConfigError for an unknown model, a size it cannot take, or weights that do not fit."""
    if not timm.is_model(options.model):
        raise ConfigError(f"timm has no model {options.model!r}.{nearest(options.model, timm.list_models())}")
    model_config = timm.get_pretrained_cfg(options.model)
    size = options.image_size or model_config.input_size[-1]
    keywords: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    if model_config.fixed_input_size:
        keywords["img_size"] = size
    model = timm.create_model(options.model, pretrained=False, **keywords)
    _check_size(model, options.model, size)
    if options.weights is not None and not is_shapes_only():
        _load(model, options.model, resolve_path(options.weights))
    image_spec = ImageSpec(
        size_px=size, mean=options.mean or model_config.mean, std=options.std or model_config.std
    )
    return TimmEncoder(model, image_spec)


def _check_size(model: Any, name: str, size: int) -> None:
    patch_embed = getattr(model, "patch_embed", None)
    for patch in getattr(patch_embed, "patch_size", ()):
        if size % patch:
            lower, upper = size // patch * patch, (size // patch + 1) * patch
            raise ConfigError(
                f"image_size {size} is not divisible by the {patch} px patches of {name}: "
                f"take {lower} or {upper}"
            )


def _load(model: Any, name: str, path: Path) -> None:
    """Every weight of the model must be in the file; more in the file may only be the head's."""
    if not path.is_file():
        raise ConfigError(f"no weights for {name} at {path}: run `prismcap fetch`, or give `weights:` a file")
    state: Mapping[str, Tensor] = load_weights(path)
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    extra = set(state.keys() - own.keys())
    if extra:
        with torch.device("meta"):
            extra -= timm.create_model(name, pretrained=False).state_dict().keys()
    if missing or extra:
        raise ConfigError(
            f"{path} holds other weights than timm's {name}: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {sorted(extra)[:3]}"
        )
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise ConfigError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, {name} at this image_size has "
                f"{tuple(value.shape)}"
            )
    model.load_state_dict({key: state[key] for key in own}, strict=True)
