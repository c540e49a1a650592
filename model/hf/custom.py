"""From a captioner to the small custom model of modeling_prismcap.py, for all that has no native class."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from prismcap.configs.errors import ConfigError
from prismcap.model.captioner import Captioner
from prismcap.model.connector.abstractor import AbstractorConnector
from prismcap.model.connector.linear import LinearConnector
from prismcap.model.connector.mlp import MlpConnector
from prismcap.model.connector.patch_concat import PatchConcatConnector
from prismcap.model.connector.pixel_shuffle import PixelShuffleConnector
from prismcap.model.connector.pooling import PoolingConnector
from prismcap.model.connector.qformer import QFormerConnector
from prismcap.model.connector.resampler import ResamplerConnector
from prismcap.model.contracts import VisionEncoder
from prismcap.model.hf import configuration_prismcap, connectors_prismcap, modeling_prismcap
from prismcap.model.hf.llm import DROPPED_KEYS, is_tied, text_config, text_state
from prismcap.model.vision._huggingface import TowerEncoder
from prismcap.model.vision.timm import TimmEncoder

CODE = (configuration_prismcap, connectors_prismcap, modeling_prismcap)
# where a single layer is not called `layers`
SINGLE_LAYER = {LinearConnector: "linear", PixelShuffleConnector: "projection"}
BLOCKS = (LinearConnector, MlpConnector, PatchConcatConnector, PixelShuffleConnector, PoolingConnector)


def custom_config(captioner: Captioner, image_token_id: int, vocab_size: int) -> dict[str, Any]:
    """config.json. Raises ConfigError for parts that modeling_prismcap.py does not know."""
    config = configuration_prismcap.PrismcapConfig(
        vision=_vision(captioner.vision_encoder),
        connector=_connector(captioner.connector, captioner.vision_encoder),
        text_config=text_config(captioner.llm, vocab_size),
        image_token_id=image_token_id,
        tie_word_embeddings=is_tied(captioner.llm),
    )
    values: dict[str, Any] = config.to_dict()
    values["architectures"] = [modeling_prismcap.PrismcapForConditionalGeneration.__name__]
    values["auto_map"] = {
        "AutoConfig": "configuration_prismcap.PrismcapConfig",
        "AutoModelForImageTextToText": "modeling_prismcap.PrismcapForConditionalGeneration",
    }
    values["text_config"] = text_config(captioner.llm, vocab_size)
    return values


def _vision(encoder: nn.Module) -> dict[str, Any]:
    if isinstance(encoder, TowerEncoder):
        return {
            "kind": "tower",
            "class": type(encoder.tower).__name__,
            "config": _plain(encoder.tower.config),
            "blocks": encoder.architecture.blocks,
            "takes_mask": encoder.architecture.takes_mask,
            "layers": list(encoder.layers_read),
            "norm": encoder.architecture.norm if encoder.post_layernorm else None,
            "num_prefix_tokens": encoder.num_prefix_tokens,
            "num_class_tokens": encoder.num_class_tokens,
        }
    if isinstance(encoder, TimmEncoder):
        made = encoder.model.pretrained_cfg
        keywords: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
        if made.get("fixed_input_size"):
            keywords["img_size"] = encoder.image_spec.size_px
        return {"kind": "timm", "model": made["architecture"], "keywords": keywords}
    raise _unknown("vision encoder", encoder)


def _connector(connector: nn.Module, encoder: VisionEncoder) -> dict[str, Any]:
    """What modeling_prismcap.py makes the same module of."""
    if isinstance(connector, BLOCKS):
        return {
            "kind": "blocks",
            "grid": list(encoder.grid),
            "block": list(getattr(connector, "block", (1, 1))),
            "widths": _widths(connector),
            "layer_norm": isinstance(getattr(connector, "norm", None), nn.LayerNorm),
            "mean": isinstance(connector, PoolingConnector),
            "bias": not isinstance(connector, PixelShuffleConnector),
        }
    if isinstance(connector, QFormerConnector):
        return {
            "kind": "qformer",
            "qformer": _plain(connector.qformer.config),
            "num_queries": connector.num_tokens,
            "projection": _widths(connector.projection),
            "layer_norm": isinstance(connector.norm, nn.LayerNorm),
        }
    if isinstance(connector, ResamplerConnector):
        return {
            "kind": "resampler",
            "vision_width": encoder.hidden_size,
            "intermediate": connector.modality_projection.gate_proj.out_features,
            "perceiver": _plain(connector.perceiver_resampler.config),
        }
    if isinstance(connector, AbstractorConnector):
        layer = cast(connectors_prismcap.AbstractorLayer, connector.layers[0])
        return {
            "kind": "abstractor",
            "vision_width": encoder.hidden_size,
            "llm_width": connector.projection.out_features,
            "num_queries": connector.num_tokens - 1,
            "depth": len(connector.layers),
            "layer": {
                "width": layer.w1.in_features,
                "heads": layer.heads,
                "inner": layer.w1.out_features,
                "original": layer.original,
            },
        }
    raise _unknown("connector", connector)


def _widths(module: nn.Module) -> list[int]:
    """Of the linear layers in it, which follow one another."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def _plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.to_dict()
    return {key: value for key, value in values.items() if key not in DROPPED_KEYS}


def _unknown(kind: str, module: nn.Module) -> ConfigError:
    return ConfigError(
        f"the {kind} {type(module).__name__} has no export: add it to model/hf/custom.py and "
        "modeling_prismcap.py, or train without one (--no-dry-export)"
    )


def custom_state(captioner: Captioner, vocab_size: int) -> dict[str, Tensor]:
    """Weights by the captioner's own names; a connector's only layer becomes the first of `layers`."""
    single = SINGLE_LAYER.get(type(captioner.connector))
    state: dict[str, Tensor] = {}
    for name, value in captioner.state_dict().items():
        if name.startswith(("llm.", "connector.newline.")):  # a newline ends rows of anyres pictures alone
            continue
        if single is not None:
            name = name.replace(f"connector.{single}.", "connector.layers.0.")
        state[name] = value
    for name, value in text_state(captioner.llm, vocab_size).items():
        state[f"llm.{name}"] = value
    return state


def write_code(folder: Path) -> None:
    """The files that load the export where prismcap is not installed."""
    for module in CODE:
        assert module.__file__ is not None
        shutil.copyfile(module.__file__, folder / Path(module.__file__).name)
