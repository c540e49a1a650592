"""What the CLIP and SigLIP towers of transformers have in common.

Shape legend: P tiles, S tile side in pixels, K patches, D encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import BaseImageProcessor

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.data.schema import ImageSpec
from prismcap.model.contracts import VisionEncoder
from prismcap.model.huggingface import load_pretrained, local_or_hub, set_checkpointing


class TowerOptions(Section):
    """Exactly one of `path` and `config`."""

    path: str | None = Field(default=None, description="directory (or cache:…) or hub name")
    revision: str | None = Field(default=None, description="commit or tag of a hub name")
    config: dict[str, Any] | None = Field(default=None, description="sizes of a randomly initialised tower")
    layer: int = Field(default=-2, description="index into hidden_states, 0 being the embeddings")

    @model_validator(mode="after")
    def _one_origin(self) -> TowerOptions:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of path and config")
        return self


class TowerEncoder(VisionEncoder):
    """`hidden_states[layer]` of a tower, without its class token where the model type has one.

    Layers above `layer` are kept, for the export, and not run. The last hidden state comes before the
    tower's post_layernorm, as in LLaVA, so that the export is equal.
    """

    def __init__(self, tower: Any, layer: int, num_class_tokens: int, image_spec: ImageSpec) -> None:
        super().__init__()
        self.tower = tower
        self.layer = layer
        self.num_class_tokens = num_class_tokens
        self.image_spec = image_spec
        self.hidden_size: int = tower.config.hidden_size
        side = tower.config.image_size // tower.config.patch_size
        self.grid = (side, side)
        depth = tower.config.num_hidden_layers
        if not -(depth + 1) <= layer <= depth:
            raise ConfigError(
                f"layer {layer}: the tower has hidden_states 0 to {depth} (or -{depth + 1} to -1)"
            )
        self.num_layers_run = layer % (depth + 1)

    def forward(self, tiles_P3SS: Tensor) -> Tensor:
        """features_PKD."""
        hidden: Tensor = self.tower.embeddings(tiles_P3SS)
        if hasattr(self.tower, "pre_layrnorm"):  # CLIP's; the spelling is transformers' own
            hidden = self.tower.pre_layrnorm(hidden)
        for layer in self.tower.encoder.layers[: self.num_layers_run]:
            hidden = layer(hidden, None)
        return hidden[:, self.num_class_tokens :]

    def unused_parameters(self) -> frozenset[str]:
        layers = range(self.num_layers_run, self.tower.config.num_hidden_layers)
        unread = (*(f"tower.encoder.layers.{i}." for i in layers), "tower.post_layernorm.", "tower.head.")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(unread))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        set_checkpointing(self.tower, enabled)


def build_tower(
    options: TowerOptions,
    model_class: Any,
    config_class: Any,
    num_class_tokens: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> TowerEncoder:
    """A tower from a directory, the hub or a config; mean and std are what the family defaults to.

    Raises ConfigError when it cannot be loaded, or some of its weights are not in the files.
    """
    if options.config is not None:
        tower = model_class(config_class(**options.config)).float()
        image_spec = ImageSpec(size_px=tower.config.image_size, mean=mean, std=std)
    else:
        assert options.path is not None
        tower = load_pretrained(model_class, options.path, revision=options.revision, dtype=torch.float32)
        processor = _processor_values(options.path, options.revision)
        mean = tuple(processor.get("image_mean", mean))
        std = tuple(processor.get("image_std", std))
        image_spec = ImageSpec(size_px=tower.config.image_size, mean=mean, std=std)
    return TowerEncoder(tower.eval(), options.layer, num_class_tokens, image_spec)


def _processor_values(path: str, revision: str | None) -> Mapping[str, Any]:
    """The image processor's config beside the weights; empty where there is none."""
    name = local_or_hub(path)
    if resolve_path(path).is_dir():
        files = ("preprocessor_config.json", "processor_config.json")
        if not any((resolve_path(path) / file).is_file() for file in files):
            return {}
    values, _ = BaseImageProcessor.get_image_processor_dict(name, revision=revision)
    found: Mapping[str, Any] = values.get("image_processor", values)
    return found
