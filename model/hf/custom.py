"""From a captioner to the small custom model of modeling_prismcap.py, for all that is no LLaVA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prismcap.configs.errors import ConfigError
from prismcap.model.captioner import Captioner
from prismcap.model.connector.linear import LinearConnector
from prismcap.model.connector.mlp import MlpConnector
from prismcap.model.connector.patch_concat import PatchConcatConnector
from prismcap.model.hf import configuration_prismcap, modeling_prismcap
from prismcap.model.hf.llm import DROPPED_KEYS, is_tied, text_config, text_state
from prismcap.model.hf.processor import TokenRule
from prismcap.model.vision._huggingface import TowerEncoder
from prismcap.model.vision.timm import TimmEncoder

LINEAR = "connector.linear."


def custom_rule(captioner: Captioner) -> TokenRule:
    """LlavaProcessor counts (size // patch_size)^2 + additional: one, and the rest of the tokens."""
    size = captioner.image_spec.size_px
    return TokenRule(patch_size=size, additional=captioner.connector.num_tokens - 1, strategy="full")


def custom_config(captioner: Captioner, image_token_id: int, vocab_size: int) -> dict[str, Any]:
    """config.json. Raises ConfigError for parts that modeling_prismcap.py does not know."""
    config = configuration_prismcap.PrismcapConfig(
        vision=_vision(captioner.vision_encoder),
        connector=_connector(captioner.connector, captioner.vision_encoder.grid),
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
        tower = encoder.tower.config.to_dict()
        for key in DROPPED_KEYS:
            tower.pop(key, None)
        return {
            "kind": "tower",
            "class": type(encoder.tower).__name__,
            "config": tower,
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


def _connector(connector: nn.Module, grid: tuple[int, int]) -> dict[str, Any]:
    if not isinstance(connector, LinearConnector | MlpConnector | PatchConcatConnector):
        raise _unknown("connector", connector)
    layers = [layer for layer in connector.modules() if isinstance(layer, nn.Linear)]
    return {
        "block": list(getattr(connector, "block", (1, 1))),
        "grid": list(grid),
        "widths": [layers[0].in_features, *(layer.out_features for layer in layers)],
        "layer_norm": isinstance(getattr(connector, "norm", None), nn.LayerNorm),
    }


def _unknown(kind: str, module: nn.Module) -> ConfigError:
    return ConfigError(
        f"the {kind} {type(module).__name__} has no export: add it to model/hf/custom.py and "
        "modeling_prismcap.py, or train without one (--no-dry-export)"
    )


def custom_state(captioner: Captioner, vocab_size: int) -> dict[str, Tensor]:
    """Weights by the captioner's own names; a single linear layer becomes the first of `layers`."""
    state: dict[str, Tensor] = {}
    for name, value in captioner.state_dict().items():
        if name.startswith(("llm.", "connector.newline.")):  # a newline ends rows of anyres pictures alone
            continue
        if name.startswith(LINEAR):
            name = f"connector.layers.0.{name.removeprefix(LINEAR)}"
        state[name] = value
    for name, value in text_state(captioner.llm, vocab_size).items():
        state[f"llm.{name}"] = value
    return state


def write_code(folder: Path) -> None:
    """The two files that load the export where prismcap is not installed."""
    for module in (configuration_prismcap, modeling_prismcap):
        assert module.__file__ is not None
        shutil.copyfile(module.__file__, folder / Path(module.__file__).name)
