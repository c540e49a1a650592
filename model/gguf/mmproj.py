"""CLIP or SigLIP and a two-layer MLP as llama.cpp's multimodal projector of type `mlp`.

Keys, names and the graph: llama.cpp, tools/mtmd (clip-impl.h, clip.cpp, models/llava.cpp). The graph runs one
layer less than there are unless `feature_layer` says which hidden states are read, and it normalises what it
reads if the file has a last LayerNorm: so the first is written, and the second is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from torch import Tensor, nn

from prismcap.model.captioner import Captioner
from prismcap.model.connector.mlp import MlpConnector
from prismcap.model.gguf.writing import add_tensors, finish, named, start
from prismcap.model.hf.export import Precision
from prismcap.model.hf.native import TOWERS
from prismcap.model.vision._huggingface import TowerEncoder

# hidden_act -> use_gelu (tanh's approximation), use_silu; neither: x * sigmoid(1.702 x)
ACTIVATIONS = {
    "quick_gelu": (False, False),
    "gelu": (True, False),
    "gelu_pytorch_tanh": (True, False),
    "silu": (False, True),
}
# looked up row by row, or read by a convolution: never bf16 in llama.cpp's own files either
EXACT = frozenset({"v.position_embd.weight", "v.patch_embd.weight"})


def why_not_mmproj(captioner: Captioner) -> str | None:
    """None when llama.cpp's graph computes the captioner's image tokens; else what stands in the way."""
    encoder, connector = captioner.vision_encoder, captioner.connector
    if not isinstance(encoder, TowerEncoder) or encoder.tower.config.model_type not in TOWERS:
        return "the vision encoder is neither CLIP nor SigLIP"
    config = encoder.tower.config
    if encoder.post_layernorm:
        return "the vision encoder applies post_layernorm, which llama.cpp does not"
    if list(encoder.layers_read) != sorted(set(encoder.layers_read)) or max(encoder.layers_read) == 0:
        return "llama.cpp joins layers from the lowest to the highest, each once, and not embeddings alone"
    if encoder.num_dropped_patches:
        return "the encoder leaves out its first patch (drop_first_patch), which llama.cpp does not"
    if config.hidden_act not in ACTIVATIONS:
        return f"llama.cpp does not know the vision encoder's activation {config.hidden_act}"
    if config.intermediate_size == config.hidden_size:
        return "llama.cpp would swap the two matrices of an encoder's MLP that is as wide as the encoder"
    if not isinstance(connector, MlpConnector) or not isinstance(connector.norm, nn.Identity):
        return "the connector is no plain MLP"
    if len(_linear(connector)) != 2:
        return "llama.cpp's MLP has two layers"
    return None


def write_mmproj(path: Path, captioner: Captioner, name: str, precision: Precision) -> None:
    """The file for `--mmproj`. The captioner must pass why_not_mmproj. Raises OSError."""
    encoder: Any = captioner.vision_encoder
    config, spec = encoder.tower.config, encoder.image_spec
    writer = start(path, "clip", "mmproj", name, precision)
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool(gguf.Keys.Clip.HAS_LLAVA_PROJECTOR, True)  # older builds ask for it
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_block_count(encoder.num_layers_run)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_projection_dim(captioner.llm.get_input_embeddings().embedding_dim)
    writer.add_vision_image_mean(list(spec.mean))
    writer.add_vision_image_std(list(spec.std))
    writer.add_array("clip.vision.feature_layer", list(encoder.layers_read))
    use_gelu, use_silu = ACTIVATIONS[config.hidden_act]
    writer.add_vision_use_gelu(use_gelu)
    writer.add_vision_use_silu(use_silu)
    add_tensors(writer, _tensors(encoder, captioner.connector), precision, EXACT)
    finish(writer)


def _tensors(encoder: TowerEncoder, connector: nn.Module) -> dict[str, Tensor]:
    unread = encoder.unused_parameters()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, encoder.num_layers_run)
    tensors: dict[str, Tensor] = {
        named(
            names, f"vision_tower.vision_model.{name.removeprefix('tower.').removeprefix('vision_model.')}"
        ): value
        for name, value in encoder.named_parameters()
        if name not in unread
    }
    for index, layer in zip((0, 2), _linear(connector), strict=True):
        tensors[f"mm.{index}.weight"] = layer.weight
        tensors[f"mm.{index}.bias"] = layer.bias
    return tensors


def _linear(connector: nn.Module) -> list[nn.Linear]:
    return [layer for layer in connector.modules() if isinstance(layer, nn.Linear)]
