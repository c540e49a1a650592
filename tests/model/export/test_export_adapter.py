"""A LoRA that is kept apart: base and adapter together are the trained model, the base alone is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import Group, GroupConfig, LoraConfig
from prismcap.data.image import to_tiles
from prismcap.model.hf.adapter import take_adapter, write_adapter
from prismcap.model.hf.export import export_captioner
from prismcap.model.hf.files import read_marker
from prismcap.model.hf.load import load_exported
from prismcap.model.trainable import finish_stage, prepare_stage, trainable_parameters

CASES = [("clip-mlp", False), ("clip-mlp", True), ("eva-qformer", False), ("clip-deep", False)]
TARGETS = ("q_proj", "down_proj")


def trained(tools: Any, cases: Any, kind: str, train: dict[Group, GroupConfig]) -> Any:
    """A captioner at the end of a stage with LoRA, before it is merged."""
    captioner = tools.make_captioner(tools.kinds[kind], cases.tokenizer)
    prepare_stage(captioner, train)
    with torch.no_grad():
        torch.manual_seed(3)
        for value in trainable_parameters(captioner).values():
            value.add_(torch.randn_like(value) * 0.1)
    return captioner.eval()


def stage(dora: bool = False) -> dict[Group, GroupConfig]:
    lora = LoraConfig(rank=2, alpha=8, target_modules=TARGETS, dora=dora)
    return {"connector": GroupConfig(lr=1e-3), "llm": GroupConfig(lr=1e-3, lora=lora)}


@torch.no_grad()
def logits(captioner: Any, inputs: dict[str, torch.Tensor], image_token_id: int, tools: Any) -> torch.Tensor:
    batch = tools.batch_of(inputs["input_ids"], inputs["pixel_values"], image_token_id)
    found: torch.Tensor = captioner.logits(batch)
    return found


@pytest.mark.parametrize(("kind", "dora"), CASES)
def test_base_and_adapter_are_the_trained_model(
    kind: str, dora: bool, tools: Any, cases: Any, tmp_path: Path
) -> None:
    captioner = trained(tools, cases, kind, stage(dora))
    unmerged = copy.deepcopy(captioner)
    adapter = take_adapter(captioner, stage(dora))
    info = tools.make_info(tools.make_template("chatml"))
    folder = export_captioner(
        captioner, tmp_path / "model", image_spec=captioner.image_spec, info=info, adapter=adapter
    )
    marker = read_marker(folder)
    assert marker["weights"] == "adapter" and marker["format"] == tools.kinds[kind].format
    assert "is not merged" in (folder / "README.md").read_text(encoding="utf-8")

    trust = marker["format"] == "custom"
    base = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trust).eval()
    image_id = base.config.image_token_id
    number = captioner.connector.num_tokens
    inputs = {
        "input_ids": torch.tensor([[5, *[image_id] * number, 7, 11, 13]]),
        "pixel_values": to_tiles(tools.picture(50, 40), captioner.image_spec),
    }
    expected = logits(unmerged, inputs, image_id, tools)
    rows = expected.shape[-1]
    with torch.no_grad():
        alone = base(**inputs).logits[..., :rows]
        together = PeftModel.from_pretrained(base, folder / "adapter").eval()
        found = together(**inputs).logits[..., :rows]
        merged = load_exported(folder).model(**inputs).logits[..., :rows]
    assert (alone - expected).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(merged, expected, atol=5e-5, rtol=1e-4)
    finish_stage(unmerged)
    torch.testing.assert_close(expected, logits(unmerged, inputs, image_id, tools), atol=5e-5, rtol=1e-4)


def test_the_adapter_is_peft_s_own_form(tools: Any, cases: Any, tmp_path: Path) -> None:
    captioner = trained(tools, cases, "clip-mlp", stage())
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    adapter = take_adapter(captioner, stage())
    # the base is what it was before the stage, the connector what it was after it
    for name, value in captioner.state_dict().items():
        layer, _, rest = name.rpartition(".")
        assert torch.equal(value, before.get(f"{layer}.base_layer.{rest}", before.get(name))), name
    info = tools.make_info(tools.make_template("chatml"))
    folder = export_captioner(
        captioner, tmp_path / "model", image_spec=captioner.image_spec, info=info, adapter=adapter
    )
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.language_model.layers.1.mlp.down_proj.lora_A.weight"
    own = "llm.model.layers.1.mlp.down_proj.lora_A.default.weight"
    assert torch.equal(weights[name], before[own]) and len(weights) == 2 * 2 * len(TARGETS)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 8, "LORA")
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="adapter is missing"):
        load_exported(folder)


def test_a_full_disk_is_an_os_error(
    tools: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = take_adapter(trained(tools, cases, "clip-mlp", stage()), stage())

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"adapter_model\.safetensors: the adapter cannot be written: No space"):
        write_adapter(tmp_path / "adapter", adapter, "llava")


@pytest.mark.parametrize("groups", [(), ("vision_encoder",), ("vision_encoder", "llm")])
def test_only_the_llms_lora_is_kept_apart(groups: tuple[Group, ...], tools: Any, cases: Any) -> None:
    lora = LoraConfig(rank=2, target_modules=("q_proj",))
    train: dict[Group, GroupConfig] = {"connector": GroupConfig(lr=1e-3)}
    train |= {group: GroupConfig(lr=1e-3, lora=lora) for group in groups}
    captioner = trained(tools, cases, "clip-mlp", train)
    with pytest.raises(ConfigError, match="--adapter keeps the LLM's LoRA"):
        take_adapter(captioner, train)
