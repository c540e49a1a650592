"""The config of an exported prismcap captioner.

This file is copied into exports, which load without prismcap: it imports transformers and nothing else.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class PrismcapConfig(PretrainedConfig):
    """Vision encoder, connector and causal LM of a captioner.

    vision: `{"kind": "timm", "model": name, "keywords": {...}}`, or `{"kind": "tower", "class": of
        transformers, "config": {...}, "blocks": name of its list of blocks, "takes_mask": whether a block
        wants an attention mask, "layers": indices into hidden_states, joined over channels, "norm": name of
        the norm of the last one, or null, "num_prefix_tokens": before the patches, "num_class_tokens": of
        these, kept}`.
    connector: `{"kind": "blocks", "qformer", "resampler" or "abstractor", ...}`, the rest being what
        its module takes (Blocks in modeling_prismcap.py, the others in connectors_prismcap.py).
    text_config: of any causal LM of transformers.
    image_token_id: the id that stands for one visual token in `input_ids`.
    """

    model_type = "prismcap"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (transformers' own shape)

    def __init__(
        self,
        vision: dict[str, Any] | None = None,
        connector: dict[str, Any] | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            values = dict(text_config)
            text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        elif text_config is None:
            text_config = AutoConfig.for_model("llama")
        self.vision = vision or {}
        self.connector = connector or {}
        self.text_config = text_config
        self.image_token_id = image_token_id
        kwargs.setdefault("tie_word_embeddings", getattr(text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)
