"""From a captioner to LlavaForConditionalGeneration, which transformers 4.57 and 5 load without remote code.

Source of the layout: transformers, models/llava/modeling_llava.py and conversion_mapping.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prismcap.model.captioner import Captioner
from prismcap.model.connector.linear import LinearConnector
from prismcap.model.connector.mlp import MlpConnector
from prismcap.model.hf.llm import is_tied, text_config, text_state
from prismcap.model.hf.processor import TokenRule
from prismcap.model.vision._huggingface import TowerEncoder

TOWERS = ("clip_vision_model", "siglip_vision_model")
# inside Llava the embeddings reach these as they are, and their logits are lm_head's
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")


def why_not_llava(captioner: Captioner) -> str | None:
    """None when the captioner is exactly a LLaVA; else what stands in the way."""
    encoder, connector, llm = captioner.vision_encoder, captioner.connector, captioner.llm
    if not isinstance(encoder, TowerEncoder) or encoder.tower.config.model_type not in TOWERS:
        return f"the vision encoder is a {_kind(encoder)}, LLaVA needs CLIP or SigLIP"
    if encoder.post_layernorm:
        return "the vision encoder applies post_layernorm, LLaVA reads hidden states before it"
    if _projector_layers(connector) is None:
        return "the connector is neither one linear layer nor a plain two-layer MLP of the LLM's width"
    if llm.config.model_type not in LANGUAGE_MODELS:
        return f"the LLM is a {llm.config.model_type}, known to work are {', '.join(LANGUAGE_MODELS)}"
    if llm.get_output_embeddings().bias is not None:
        return "the LLM's lm_head has a bias, LLaVA's has none"
    return None


def _kind(encoder: nn.Module) -> str:
    tower = encoder.tower if isinstance(encoder, TowerEncoder) else encoder
    return type(tower).__name__


def _projector_layers(connector: nn.Module) -> list[nn.Linear] | None:
    """The one or two linear layers of a connector that LLaVA can say; None for any other."""
    if isinstance(connector, LinearConnector):
        return [connector.linear]
    if not isinstance(connector, MlpConnector) or not isinstance(connector.norm, nn.Identity):
        return None
    layers = [layer for layer in connector.layers if isinstance(layer, nn.Linear)]
    plain = len(layers) == 1 or (len(layers) == 2 and layers[0].out_features == layers[1].out_features)
    return layers if plain else None


def llava_rule(captioner: Captioner) -> TokenRule:
    """How the processor counts tokens: CLIP's class token is counted in, then dropped again; of
    SigLIP, which has none, the strategy drops the first patch."""
    encoder: Any = captioner.vision_encoder
    drops = encoder.num_prefix_tokens > 0  # the connectors above take no class tokens
    return TokenRule(
        patch_size=encoder.tower.config.patch_size,
        additional=encoder.num_prefix_tokens - encoder.num_dropped_patches,
        strategy="default" if drops else "full",
    )


def llava_config(captioner: Captioner, image_token_id: int, vocab_size: int) -> dict[str, Any]:
    """config.json of LlavaForConditionalGeneration."""
    from transformers import LlavaConfig

    values = llava_values(LlavaConfig, captioner, image_token_id, vocab_size)
    values["architectures"] = ["LlavaForConditionalGeneration"]
    return values


def llava_values(
    config_class: Any, captioner: Captioner, image_token_id: int, vocab_size: int, **more: Any
) -> dict[str, Any]:
    """A config of LLaVA's or LLaVA-NeXT's class, whole: defaults differ between versions of transformers, so
    none is left out. more: what the class has besides."""
    encoder: Any = captioner.vision_encoder
    layers = _projector_layers(captioner.connector)
    assert layers is not None
    config = config_class(
        vision_config=encoder.tower.config.to_dict(),
        text_config=text_config(captioner.llm, vocab_size),
        image_token_index=image_token_id,
        image_seq_length=captioner.connector.num_tokens,
        projector_hidden_act="gelu" if len(layers) == 2 else "linear",
        vision_feature_select_strategy=llava_rule(captioner).strategy,
        vision_feature_layer=encoder.layer if isinstance(encoder.layer, int) else list(encoder.layer),
        multimodal_projector_bias=True,
        tie_word_embeddings=is_tied(captioner.llm),
        **more,
    )
    values: dict[str, Any] = config.to_dict()
    # the class parses the LLM's part again, and with it drops the names that 4.57 reads
    values["text_config"] = text_config(captioner.llm, vocab_size)
    return values


def llava_state(captioner: Captioner, vocab_size: int) -> dict[str, Tensor]:
    """Weights under the names that both 4.57 and 5 read (5's own are read by 4.57 as a random tower)."""
    encoder: Any = captioner.vision_encoder
    state: dict[str, Tensor] = {}
    for name, value in encoder.tower.state_dict().items():
        state[f"vision_tower.vision_model.{name.removeprefix('vision_model.')}"] = value
    layers = _projector_layers(captioner.connector)
    assert layers is not None
    for index, layer in enumerate(layers, start=1):
        state[f"multi_modal_projector.linear_{index}.weight"] = layer.weight
        state[f"multi_modal_projector.linear_{index}.bias"] = layer.bias
    if len(layers) == 1:
        width = layers[0].out_features
        state["multi_modal_projector.linear_2.weight"] = torch.eye(width)
        state["multi_modal_projector.linear_2.bias"] = torch.zeros(width)
    for name, value in text_state(captioner.llm, vocab_size).items():
        state[f"language_model.{name}"] = value
    return state
