"""From a ModelConfig to a Captioner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.run import ModelConfig
from prismcap.model.captioner import Captioner
from prismcap.model.connector._newline import Newline
from prismcap.model.contracts import Connector, LanguageModel, VisionEncoder

# config keys of transformers' models that change the logits after lm_head, and the value that does not
LOGIT_CHANGES = {
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
}


def build_captioner(config: ModelConfig, where: str = "", seed: int = 0) -> Captioner:
    """The captioner of a config on the CPU, fp32, in eval mode, with nothing trainable.

    `where` (file and key path) goes into errors. What starts at random starts from `seed`, whatever
    was drawn before, so that weights which no stage trains are the same when a run is loaded again.
    Raises ConfigError for bad options, missing weights, or parts that do not fit together.
    """
    prefix = f"{where}: model" if where else "model"
    with _seeded(seed):
        module, options = component_options("llm", config.llm, f"{prefix}.llm")
        language_model: LanguageModel = module.build(options)
    with _seeded(seed + 1):
        module, options = component_options(
            "vision_encoder", config.vision_encoder, f"{prefix}.vision_encoder"
        )
        vision_encoder: VisionEncoder = module.build(options)
    llm = language_model.model
    check_llm(language_model, f"{prefix}.llm")
    with _seeded(seed + 2):
        module, options = component_options("connector", config.connector, f"{prefix}.connector")
        llm_width = llm.get_input_embeddings().embedding_dim
        connector: Connector = module.build(
            options, vision_encoder.hidden_size, vision_encoder.grid, llm_width
        )
        _check_class_tokens(vision_encoder, connector, prefix, config.connector.name)
        if getattr(options, "match_embedding_std", False):
            scale_to_embeddings(connector, vision_encoder, llm.get_input_embeddings().weight)
        if config.image_newline:
            _check_grid(connector, prefix, config.connector.name)
            _check_whole_grid(vision_encoder, prefix)
            connector.newline = Newline(llm_width)
    captioner = Captioner(vision_encoder, connector, llm, language_model.tokenizer)
    captioner.requires_grad_(False)
    return captioner.eval()


def _check_class_tokens(
    vision_encoder: VisionEncoder, connector: Connector, prefix: str, connector_name: str
) -> None:
    if vision_encoder.num_class_tokens and not connector.takes_class_tokens:
        raise ConfigError(
            f"{prefix}.vision_encoder.class_token: keep: the connector {connector_name} makes tokens of the "
            "patches of a grid, and has no place for the class token. Set class_token: drop, or take a "
            "connector that looks at all features"
        )


def _check_grid(connector: Connector, prefix: str, connector_name: str) -> None:
    if connector.token_grid is None:
        raise ConfigError(
            f"{prefix}.image_newline: true (for geometry: anyres): the tokens of the connector "
            f"{connector_name} lie in no grid, so tiles make no map with rows to end. Take linear, mlp, "
            "patch_concat, pixel_shuffle or pooling, or another data.geometry and image_newline: false"
        )


def _check_whole_grid(vision_encoder: VisionEncoder, prefix: str) -> None:
    if getattr(vision_encoder, "num_dropped_patches", 0):
        raise ConfigError(
            f"{prefix}.vision_encoder.drop_first_patch: true leaves no square of patches, and "
            f"{prefix}.image_newline: true (for geometry: anyres) makes one map of all tiles: take one"
        )


def check_llm(language_model: LanguageModel, where: str) -> None:
    """Raises ConfigError for a model whose logits are more than lm_head, or whose tokenizer emits ids
    past its embeddings."""
    config = language_model.model.config
    for key, neutral in LOGIT_CHANGES.items():
        value: Any = getattr(config, key, neutral)
        if value not in (neutral, None):
            raise ConfigError(
                f"{where}: {config.model_type} changes its logits ({key}={value}); not supported"
            )
    rows = language_model.model.get_input_embeddings().num_embeddings
    if language_model.tokenizer is not None and len(language_model.tokenizer) > rows:
        raise ConfigError(
            f"{where}: the tokenizer has {len(language_model.tokenizer)} tokens, the model embeds {rows}: "
            "they do not belong together"
        )


@torch.no_grad()
def scale_to_embeddings(
    connector: Connector, vision_encoder: VisionEncoder, embeddings_VH: torch.Tensor
) -> None:
    """Scale the connector's last layer so that tokens start with the spread of the LLM's embeddings.

    Measured on unit-normal features, which is what a connector with LayerNorm makes of any features.
    An LLM that has never seen a vector of this size answers worse at the start, and stage 1 is slower.
    """
    features = torch.randn(16, vision_encoder.features_per_tile, vision_encoder.hidden_size)
    last = [layer for layer in connector.modules() if isinstance(layer, torch.nn.Linear)][-1]
    if last.bias is not None:
        last.bias.zero_()
    last.weight.mul_(embeddings_VH.std() / connector(features).std())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
