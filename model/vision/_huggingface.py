"""What the towers of transformers have in common.

Shape legend: P tiles, S tile side in pixels, K features of a tile (kept class token, then patches),
D encoder width (the tower's own, times the number of layers read).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import BaseImageProcessor

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.data.schema import ImageSpec
from prismcap.model.contracts import VisionEncoder
from prismcap.model.huggingface import config_values, load_pretrained, local_or_hub, set_checkpointing
from prismcap.model.shapes import is_shapes_only
from prismcap.model.vision._resolution import resize_positions

Layer = int | Annotated[tuple[int, ...], Field(min_length=1)]


class TowerOptions(Section):
    """Exactly one of `path` and `config`."""

    path: str | None = Field(default=None, description="directory (or cache:…) or hub name")
    revision: str | None = Field(default=None, description="commit or tag of a hub name")
    config: dict[str, Any] | None = Field(default=None, description="sizes of a randomly initialised tower")
    layer: Layer = Field(
        default=-2,
        description="index into hidden_states, 0 being the embeddings; a list joins theirs over channels",
    )
    post_layernorm: bool = Field(
        default=False, description="apply the tower's own final norm to its last hidden state"
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="tile side in pixels, with interpolated position embeddings; none: the tower's own",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TowerOptions:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of path and config")
        return self


class ClassTokenOptions(TowerOptions):
    """For a tower that has a class token."""

    class_token: Literal["drop", "keep"] = Field(
        default="drop", description="keep: it stands before the patches, for connectors that see all features"
    )


class LastStateOptions(ClassTokenOptions):
    """By default the tower's own output: the last hidden state, normalised."""

    layer: Layer = -1
    post_layernorm: bool = True


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, and where it keeps what `forward` needs.

    checkpoints: the model types of config.json that hold such a tower. mean, std: where no processor is
    beside the weights. num_class_tokens: they stand first, then register tokens where the config has some.
    blocks, norm: names of submodules. takes_mask: whether a block wants an attention mask, here always None.
    renamed: patterns of weight names in a checkpoint, and what stands there instead in the tower.
    """

    model_class: Any
    checkpoints: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_class_tokens: int
    blocks: str = "encoder.layers"
    norm: str = "post_layernorm"
    takes_mask: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)


class TowerEncoder(VisionEncoder):
    """`hidden_states[layer]` of a tower; without its class token unless it is kept, never with registers.

    Layers above the highest one read are kept, for the export, and not run. The last hidden state comes
    before the tower's final norm, as in LLaVA, unless `post_layernorm` asks for it.
    """

    def __init__(
        self, tower: Any, architecture: Architecture, options: TowerOptions, image_spec: ImageSpec
    ) -> None:
        super().__init__()
        self.tower = tower
        self.architecture = architecture
        self.image_spec = image_spec
        self.layer = options.layer
        self.post_layernorm = options.post_layernorm
        self.layers_read = _layers_read(options, tower.config.num_hidden_layers)
        self.num_layers_run = max(self.layers_read)
        self.num_dropped_patches = int(getattr(options, "drop_first_patch", False))
        num_registers = getattr(tower.config, "num_register_tokens", 0)
        self.num_prefix_tokens = architecture.num_class_tokens + num_registers + self.num_dropped_patches
        keeps = isinstance(options, ClassTokenOptions) and options.class_token == "keep"
        self.num_class_tokens = architecture.num_class_tokens if keeps else 0
        self.hidden_size: int = tower.config.hidden_size * len(self.layers_read)
        # SigLIP's head, which attends to the patches of its normalised last hidden state
        self.pooled_size = tower.config.hidden_size if hasattr(tower, "head") else None
        side = tower.config.image_size // tower.config.patch_size
        # without one of its patches a grid is a row
        self.grid = (1, side * side - 1) if self.num_dropped_patches else (side, side)

    def forward(self, tiles_P3SS: Tensor) -> Tensor:
        """features_PKD."""
        hidden: Tensor = self.tower.embeddings(tiles_P3SS)
        if hasattr(self.tower, "pre_layrnorm"):  # CLIP's; the spelling is transformers' own
            hidden = self.tower.pre_layrnorm(hidden)
        states = {0: hidden}
        mask = (None,) if self.architecture.takes_mask else ()
        for index, block in enumerate(self._blocks()[: self.num_layers_run], start=1):
            hidden = block(hidden, *mask)
            if index in self.layers_read:
                states[index] = hidden
        if self.post_layernorm:
            states[self.num_layers_run] = self.tower.get_submodule(self.architecture.norm)(hidden)
        features_PKD = torch.cat([states[index] for index in self.layers_read], dim=-1)
        patches = features_PKD[:, self.num_prefix_tokens :]
        if self.num_class_tokens == 0:
            return patches
        return torch.cat([features_PKD[:, : self.num_class_tokens], patches], dim=1)

    def pooled(self, tiles_P3SS: Tensor) -> Tensor:
        """See VisionEncoder.pooled."""
        embeddings_PD: Tensor = self.tower(pixel_values=tiles_P3SS).pooler_output
        return embeddings_PD

    def unused_parameters(self) -> frozenset[str]:
        prefix = f"tower.{self.architecture.blocks}"
        above = range(self.num_layers_run, len(self._blocks()))
        unread = (*(f"{prefix}.{index}." for index in above), "tower.head.", "tower.embeddings.mask_token")
        if not self.post_layernorm:
            unread = (*unread, f"tower.{self.architecture.norm}.")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(unread))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        set_checkpointing(self.tower, enabled)

    def _blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.tower.get_submodule(self.architecture.blocks)
        return blocks


def _layers_read(options: TowerOptions, depth: int) -> tuple[int, ...]:
    """Indices into hidden_states, counted from 0, in the order of `layer`. Raises ConfigError."""
    asked = (options.layer,) if isinstance(options.layer, int) else options.layer
    for layer in asked:
        if not -(depth + 1) <= layer <= depth:
            raise ConfigError(
                f"layer {layer}: the tower has hidden_states 0 to {depth} (or -{depth + 1} to -1)"
            )
    layers = tuple(layer % (depth + 1) for layer in asked)
    if options.post_layernorm and depth not in layers:
        raise ConfigError(
            f"post_layernorm: true is for the last hidden state, which layer: {options.layer} does not read: "
            "set layer: -1, or post_layernorm: false"
        )
    return layers


def build_tower(options: TowerOptions, architecture: Architecture) -> TowerEncoder:
    """A tower from a directory, the hub or a config.

    Raises ConfigError when it cannot be loaded, some of its weights are not in the files, or an option
    does not fit it.
    """
    mean, std = architecture.mean, architecture.std
    if options.config is not None:
        model_class = architecture.model_class
        tower = model_class(model_class.config_class(**options.config)).float()
    else:
        assert options.path is not None
        _check_model_type(options.path, options.revision, architecture)
        renamed = {"key_mapping": dict(architecture.renamed)} if architecture.renamed else {}
        tower = load_pretrained(
            architecture.model_class, options.path, revision=options.revision, dtype=torch.float32, **renamed
        )
        processor = _processor_values(options.path, options.revision)
        mean = tuple(processor.get("image_mean", mean))
        std = tuple(processor.get("image_std", std))
    if options.image_size is not None:
        resize_positions(tower, options.image_size)
    image_spec = ImageSpec(size_px=tower.config.image_size, mean=mean, std=std)
    return TowerEncoder(tower.eval(), architecture, options, image_spec)


def _check_model_type(path: str, revision: str | None, architecture: Architecture) -> None:
    """transformers would load another type with a warning, and leave out what this class does not have."""
    model_type = config_values(path, revision).get("model_type")
    if model_type not in architecture.checkpoints:
        raise ConfigError(
            f"{path}: holds a {model_type}, where {' or '.join(architecture.checkpoints)} is expected: "
            "choose the vision_encoder.name of that type"
        )


def _processor_values(path: str, revision: str | None) -> Mapping[str, Any]:
    """The image processor's config beside the weights; empty where there is none, or nothing is read."""
    if is_shapes_only():
        return {}
    name = local_or_hub(path)
    if resolve_path(path).is_dir():
        files = ("preprocessor_config.json", "processor_config.json")
        if not any((resolve_path(path) / file).is_file() for file in files):
            return {}
    values, _ = BaseImageProcessor.get_image_processor_dict(name, revision=revision)
    found: Mapping[str, Any] = values.get("image_processor", values)
    return found
