"""An exported prismcap captioner: vision encoder, connector and causal LM.

This file is copied into exports, which load without prismcap: it imports torch, transformers, timm where the
encoder is timm's, and the two files beside it. Weight names are those of the trained captioner, but for a
connector of a single layer.

Shape legend: P images, S their side in pixels, K features of an image, D encoder width, N tokens of an image,
B rows, T positions, H LLM width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# relative, as transformers wants it of the copy in an export
from .configuration_prismcap import PrismcapConfig  # noqa: TID251
from .connectors_prismcap import Abstractor, QFormer, Resampler, blocks_of, mlp  # noqa: TID251


class TimmVision(nn.Module):
    """The last feature map of a CNN, the patch tokens of a ViT."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        try:  # transformers asks for all that is imported outside of such a block
            import timm
        except ImportError as error:
            raise ImportError("the vision encoder of this model is timm's: pip install timm") from error

        self.model = timm.create_model(vision["model"], pretrained=False, **vision["keywords"])

    def forward(self, pixels_P3SS: Tensor) -> Tensor:
        """features_PKD, patches in row-major order."""
        features: Tensor = self.model.forward_features(
            pixels_P3SS.contiguous(memory_format=torch.channels_last)
        )
        if features.ndim == 3:
            return features[:, int(getattr(self.model, "num_prefix_tokens", 0)) :]
        if getattr(self.model, "output_fmt", "NCHW") == "NCHW":
            features = features.permute(0, 2, 3, 1)
        return features.flatten(1, 2)


class TowerVision(nn.Module):
    """`hidden_states` of some layers of a tower, joined over channels: class tokens if kept, then patches."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        tower_class: Any = getattr(transformers, vision["class"])
        self.tower = tower_class._from_config(tower_class.config_class(**vision["config"]))
        self.blocks: str = vision["blocks"]
        self.norm: str | None = vision["norm"]
        self.layers: list[int] = vision["layers"]
        self.mask = (None,) if vision["takes_mask"] else ()
        self.num_prefix_tokens: int = vision["num_prefix_tokens"]
        self.num_class_tokens: int = vision["num_class_tokens"]

    def forward(self, pixels_P3SS: Tensor) -> Tensor:
        """features_PKD."""
        hidden: Tensor = self.tower.embeddings(pixels_P3SS)
        if hasattr(self.tower, "pre_layrnorm"):  # CLIP's; the spelling is transformers' own
            hidden = self.tower.pre_layrnorm(hidden)
        states, last = [hidden], max(self.layers)
        for block in self.tower.get_submodule(self.blocks)[:last]:
            states.append(block(states[-1], *self.mask))
        if self.norm is not None:
            states[last] = self.tower.get_submodule(self.norm)(states[last])
        features_PKD = torch.cat([states[layer] for layer in self.layers], dim=-1)
        kept, patches = features_PKD[:, : self.num_class_tokens], features_PKD[:, self.num_prefix_tokens :]
        return torch.cat([kept, patches], dim=1)


class Blocks(nn.Module):
    """Blocks of neighbouring patches (1 x 1: none) joined or averaged into one token each, LayerNorm, MLP."""

    def __init__(
        self,
        grid: tuple[int, int],
        block: tuple[int, int],
        widths: list[int],
        layer_norm: bool,
        mean: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.block, self.mean = grid, block, mean
        self.norm = nn.LayerNorm(widths[0]) if layer_norm else nn.Identity()
        self.layers = mlp(widths, bias)

    def forward(self, features_PKD: Tensor) -> Tensor:
        """tokens_PNH, in row-major order of the coarser grid."""
        blocks = blocks_of(features_PKD, self.grid, self.block)
        tokens_PNH: Tensor = self.layers(self.norm(blocks.mean(dim=2) if self.mean else blocks.flatten(2)))
        return tokens_PNH


CONNECTORS: dict[str, type[nn.Module]] = {
    "blocks": Blocks,
    "qformer": QFormer,
    "resampler": Resampler,
    "abstractor": Abstractor,
}


class PrismcapForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Logits over the vocabulary for text with images, and `generate`."""

    config_class = PrismcapConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: PrismcapConfig) -> None:
        super().__init__(config)
        kind = config.vision["kind"]
        self.vision_encoder = TimmVision(config.vision) if kind == "timm" else TowerVision(config.vision)
        arguments = dict(config.connector)  # older exports know blocks alone, and do not say so
        self.connector: nn.Module = CONNECTORS[arguments.pop("kind", "blocks")](**arguments)
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.llm.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.llm.get_output_embeddings()
        return head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.llm.set_output_embeddings(new_embeddings)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # timm's position tables that are no weights would stay uninitialised after loading
        fill: Any = getattr(module, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """tokens_PNH of pixels_P3SS."""
        pixels_P3SS = pixel_values.to(device=self.device, dtype=self.dtype)
        tokens_PNH: Tensor = self.connector(self.vision_encoder(pixels_P3SS))
        return tokens_PNH

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """[B, T, H]: token embeddings, with image tokens in place of image_token_id, in order.

        Raises ValueError when text and pictures disagree on the number of image tokens.
        """
        embeddings_BTH: Tensor = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embeddings_BTH
        tokens = self.get_image_features(pixel_values).flatten(0, 1).to(embeddings_BTH.dtype)
        is_image_BT = input_ids == self.config.image_token_id
        places = int(is_image_BT.sum())
        if places != len(tokens):
            raise ValueError(f"{places} image tokens in the text, but the pictures give {len(tokens)}")
        return embeddings_BTH.masked_scatter(is_image_BT[..., None], tokens)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As of a causal LM, with pictures [P, 3, S, S] in the order of their tokens in the text."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids, pixel_values)
        output: CausalLMOutputWithPast = self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        return output

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            inputs.pop("pixel_values", None)  # the pictures are in the cache already
        return inputs
