"""BLIP-2's parts, against Blip2ForConditionalGeneration with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blip2_files import QUERIES, write_blip2
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import ModelConfig
from prismcap.model.build import build_captioner
from prismcap.model.imports import _parts
from prismcap.scripts.importing import import_weights


@pytest.mark.parametrize("layout", ["sharded-safetensors", "bin"])
def test_parts_are_blip2s_and_its_llm_is_not_read(
    tools: Any, blip2: Any, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = _parts.read_tensors

    def noting(*arguments: Any) -> dict[str, Tensor]:
        found = plain(*arguments)
        read.extend(found)
        return found

    monkeypatch.setattr(_parts, "read_tensors", noting)
    parts = tools.tmp_path / "parts"
    assert import_weights("blip2", write_blip2(tools, blip2, layout), parts).run is None
    assert not [name for name in read if name.startswith(("language", "lm_head"))]
    base, _ = tools.llm()
    values: dict[str, Any] = {
        "vision_encoder": {"name": "eva_vit_g", "path": str(parts / "vision_encoder"), "class_token": "keep"},
        "connector": {
            "name": "qformer",
            "path": str(parts / "qformer"),
            "num_queries": QUERIES,
            "hidden": 24,
            "layers": 3,
            "heads": 4,
            "intermediate": 40,
        },
        "llm": {"name": "causal_lm", "path": str(base)},
    }
    captioner = build_captioner(ModelConfig.model_validate(values))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = blip2.vision_model(pixels).last_hidden_state
        ours = captioner.encode_images(pixels)
        torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
        expected = blip2.qformer(
            query_embeds=blip2.query_tokens.expand(2, -1, -1), encoder_hidden_states=features
        ).last_hidden_state
        torch.testing.assert_close(captioner.connector.query(ours), expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std(dim=(0, 1)).min()) > 0.01
    values["connector"]["hidden"] = 48
    with pytest.raises(ConfigError, match="not the queries and Q-Former of these options"):
        build_captioner(ModelConfig.model_validate(values))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"itm_head.weight": torch.zeros(2)}, "1 not BLIP-2's: itm_head.weight"),
        ({"qformer.layernorm.weight": None}, "1 missing: qformer: qformer.layernorm.weight"),
        ({"query_tokens": None}, "1 missing: qformer: queries"),
        ({"query_tokens": torch.zeros(1, 4, 24)}, r"queries \[1, 4, 24\], not \[1, 5, 24\]"),
        ({"vision_model.post_layernorm.bias": None}, "1 missing: vision_encoder: post_layernorm.bias"),
        ({"vision_model.x": torch.zeros(2)}, "1 more than .*vision_encoder: x"),
    ],
)
def test_every_weight_of_blip2_is_accounted_for(
    tools: Any, blip2: Any, changes: dict[str, Tensor | None], words: str
) -> None:
    source = write_blip2(tools, blip2, **changes)
    with pytest.raises(ConfigError, match=words):
        import_weights("blip2", source, tools.tmp_path / "parts")
    assert [path.name for path in tools.tmp_path.iterdir()] == [source.name]
