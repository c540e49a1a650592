"""From a captioner to Blip2ForConditionalGeneration, which transformers loads without remote code.

Source of the layout: transformers, models/blip_2/modeling_blip_2.py. The processor is LlavaProcessor:
BLIP-2's own puts the image tokens before all text, and in training they stand where the template says.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prismcap.model.captioner import Captioner
from prismcap.model.connector.qformer import QFormerConnector
from prismcap.model.hf.llm import is_tied, text_config, text_state
from prismcap.model.vision._huggingface import TowerEncoder


def why_not_blip2(captioner: Captioner) -> str | None:
    """None when the captioner is exactly a BLIP-2 with a causal LM; else what stands in the way."""
    encoder, connector = captioner.vision_encoder, captioner.connector
    if not isinstance(encoder, TowerEncoder) or encoder.tower.config.model_type != "blip_2_vision_model":
        kind = type(encoder.tower if isinstance(encoder, TowerEncoder) else encoder).__name__
        return f"the vision encoder is a {kind}, BLIP-2 needs eva_vit_g"
    if encoder.layers_read != (encoder.tower.config.num_hidden_layers,) or not encoder.post_layernorm:
        return "BLIP-2 reads the encoder's last hidden state, normalised (layer: -1, post_layernorm: true)"
    if encoder.num_class_tokens == 0:
        return "BLIP-2's Q-Former sees the class token too (class_token: keep)"
    if not isinstance(connector, QFormerConnector):
        return f"the connector is a {type(connector).__name__}, BLIP-2 needs a qformer"
    if not isinstance(connector.norm, nn.Identity) or not isinstance(connector.projection, nn.Linear):
        return "BLIP-2's Q-Former has no LayerNorm of the features, and one linear layer behind it"
    return None


def blip2_config(
    captioner: Captioner, image_token_id: int, vocab_size: int, end_ids: list[int]
) -> dict[str, Any]:
    """config.json, whole. end_ids: where an answer ends; BLIP-2 generates by its LLM's config, and reads no
    generation_config.json."""
    from transformers import Blip2Config

    encoder: Any = captioner.vision_encoder
    connector: Any = captioner.connector
    config = Blip2Config(
        vision_config=encoder.tower.config.to_dict(),
        qformer_config=connector.qformer.config.to_dict(),
        text_config=text_config(captioner.llm, vocab_size),
        num_query_tokens=connector.num_tokens,
        image_token_index=image_token_id,
        tie_word_embeddings=is_tied(captioner.llm),
    )
    values: dict[str, Any] = config.to_dict()
    values["architectures"] = ["Blip2ForConditionalGeneration"]
    # Blip2Config parses the LLM's part again, and with it drops the names that 4.57 reads
    values["text_config"] = text_config(captioner.llm, vocab_size) | {"eos_token_id": end_ids}
    return values


def blip2_state(captioner: Captioner, vocab_size: int) -> dict[str, Tensor]:
    """Weights under the names of Blip2ForConditionalGeneration."""
    encoder: Any = captioner.vision_encoder
    connector: Any = captioner.connector
    parts = {
        "vision_model": encoder.tower.state_dict(),
        "qformer": connector.qformer.state_dict(),
        "language_projection": connector.projection.state_dict(),
        "language_model": text_state(captioner.llm, vocab_size),
    }
    state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return {"query_tokens": connector.queries, **state}
