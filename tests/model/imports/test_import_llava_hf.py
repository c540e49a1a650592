"""LlavaForConditionalGeneration in each of its key layouts: imported, it computes the same; exported and
imported again, it is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.base import Component
from prismcap.model.restore import load_trained
from prismcap.scripts.cli import cli
from prismcap.scripts.importing import import_weights

IMAGE = "<image>"
PROCESSOR = {
    "do_center_crop": True,
    "size": {"shortest_edge": 16},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


def reference(tools: Any, family: str = "clip", strategy: str = "default", tied: bool = False) -> Any:
    config = LlavaConfig(
        vision_config={"model_type": f"{family}_vision_model", **tools.tower_config},
        text_config={
            "model_type": "llama",
            **tools.llama_config,
            "vocab_size": tools.vocabulary + 1,
            "tie_word_embeddings": tied,
        },
        image_token_index=tools.vocabulary,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=tied,
    )
    return tools.shake(LlavaForConditionalGeneration(config))


def in_layout(model: Any, layout: str) -> dict[str, Tensor]:
    """4: as transformers 4.57 writes them; module: the model's own names, as 4.52 and others had them."""
    state = {name: value for name, value in model.state_dict().items() if not _is_second(model, name)}
    if layout == "module":
        return state
    renamed = {}
    for name, value in state.items():
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
        name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
        renamed[f"language_model.{name}" if name.startswith("lm_head") else name] = value
    return renamed


def _is_second(model: Any, name: str) -> bool:
    return bool(model.config.tie_word_embeddings) and name == "lm_head.weight"


def write(tools: Any, model: Any, layout: str, processor: dict[str, Any] | None = None) -> Path:
    source: Path = tools.tmp_path / "hf"
    model.save_pretrained(source)  # as this version of transformers writes it
    if layout != "5":
        (source / "model.safetensors").unlink()
        tools.write_weights(source, in_layout(model, layout), "sharded-safetensors")
    tools.write_tokenizer(source, [IMAGE])
    (source / "preprocessor_config.json").write_text(json.dumps(processor or PROCESSOR))
    return source


def check_parity(tools: Any, model: Any, run: Path, num_tokens: int) -> Any:
    captioner, config = load_trained(run)
    assert captioner.connector.num_tokens == num_tokens
    samples, tiles = tools.samples(num_tokens)
    for sample, logits, tile in zip(samples, tools.logits(captioner, samples, tiles), tiles, strict=True):
        input_ids = sample.input_ids.clone()
        for _, start, size in sample.spans:
            input_ids[start : start + size] = tools.vocabulary
        with torch.no_grad():
            expected = model(input_ids=input_ids[None], pixel_values=tile[None], use_cache=False).logits[0]
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    return captioner, config


@pytest.mark.parametrize("layout", ["4", "5", "module"])
@pytest.mark.parametrize(
    ("family", "strategy", "num_tokens"),
    [
        ("clip", "default", 16),
        ("siglip", "full", 16),
        ("siglip", "default", 15),  # the quirk of PrismCaptioner: the first patch is not a class token
    ],
)
def test_the_import_is_transformers_llava(
    tools: Any, layout: str, family: str, strategy: str, num_tokens: int
) -> None:
    model = reference(tools, family, strategy)
    run = tools.tmp_path / "run"
    import_weights("llava-hf", write(tools, model, layout), run)
    captioner, config = check_parity(tools, model, run, num_tokens)
    assert config.stages["imported"].data.geometry == "center_crop"
    assert captioner.image_spec.mean == (0.4, 0.5, 0.6) and captioner.image_spec.std == (0.2, 0.3, 0.4)


@pytest.mark.parametrize("layout", ["4", "5"])
def test_a_tied_head_may_stand_in_the_files_or_not(tools: Any, layout: str) -> None:
    model = reference(tools, tied=True)
    source = write(tools, model, layout)
    import_weights("llava-hf", source, tools.tmp_path / "run")
    captioner, _ = check_parity(tools, model, tools.tmp_path / "run", 16)
    assert captioner.llm.lm_head.weight is captioner.llm.get_input_embeddings().weight
    state = in_layout(model, "4") | {"language_model.lm_head.weight": model.lm_head.weight.detach()}
    for file in source.glob("model*"):
        file.unlink()
    tools.write_weights(source, state)
    import_weights("llava-hf", source, tools.tmp_path / "again")
    check_parity(tools, model, tools.tmp_path / "again", 16)


@pytest.mark.parametrize(
    ("processor", "geometry"),
    [
        ({"do_pad": True, "do_center_crop": False}, "pad"),
        ({"do_center_crop": False}, "resize"),
        ({"do_center_crop": True, "size": {"height": 16, "width": 16}}, "resize"),
    ],
)
def test_the_geometry_is_the_processors(tools: Any, processor: dict[str, Any], geometry: str) -> None:
    import_weights("llava-hf", write(tools, reference(tools), "4", processor), tools.tmp_path / "run")
    _, config = load_trained(tools.tmp_path / "run")
    assert config.stages["imported"].data.geometry == geometry


@pytest.mark.parametrize(("family", "strategy"), [("clip", "default"), ("siglip", "default")])
def test_export_and_import_again_change_no_bit(tools: Any, family: str, strategy: str) -> None:
    """Also what stands around the weights: geometry, template, prompt, normalisation, the dropped patch."""
    source = write(tools, reference(tools, family, strategy), "5", {**PROCESSOR, "do_pad": True})
    first, second = tools.tmp_path / "first", tools.tmp_path / "second"
    import_weights("llava-hf", source, first, ["template=chatml"])
    done = CliRunner().invoke(cli, ["export", str(first)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    import_weights("llava-hf", first / "model", second)
    before, config = load_trained(first)
    after, config_again = load_trained(second)
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    assert before.image_spec == after.image_spec
    stage, again = config.stages["imported"], config_again.stages["imported"]
    assert (stage.template, stage.data) == (again.template, again.data)
    assert stage.template.name == "chatml"
    assert config.prompt == config_again.prompt


@pytest.mark.parametrize(
    ("template", "options"),
    [("llama_2", {"system": None}), ("vicuna_v1", {"end": "<|im_end|>"}), ("plain", {"bos": "<|im_start|>"})],
)
def test_the_templates_options_come_back(tools: Any, template: str, options: dict[str, Any]) -> None:
    first = tools.tmp_path / "first"
    import_weights("llava-hf", write(tools, reference(tools), "5"), first, [f"template={template}"])
    config = yaml.safe_load((first / "config.yaml").read_text())
    config["stages"]["imported"]["template"].update(options)
    (first / "config.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(cli, ["export", str(first)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    import_weights("llava-hf", first / "model", tools.tmp_path / "second")
    again = load_config(tools.tmp_path / "second" / "config.yaml").stages["imported"].template
    assert again == Component(name=template, **options)
    marker = json.loads((first / "model" / "prismcap.json").read_text())
    del marker["template_options"]  # as older exports are
    (first / "model" / "prismcap.json").write_text(json.dumps(marker))
    import_weights("llava-hf", first / "model", tools.tmp_path / "third")
    again = load_config(tools.tmp_path / "third" / "config.yaml").stages["imported"].template
    assert again == Component(name=template)


def test_an_export_with_its_adapter_apart_is_refused(tools: Any) -> None:
    source = write(tools, reference(tools), "5")
    (source / "prismcap.json").write_text(json.dumps({"weights": "adapter", "template": "chatml"}))
    with pytest.raises(ConfigError, match="without --adapter"):
        import_weights("llava-hf", source, tools.tmp_path / "run")


def test_without_an_image_processor_nothing_is_guessed(tools: Any) -> None:
    source = write(tools, reference(tools), "5")
    (source / "preprocessor_config.json").unlink()
    for values in (None, {"processor_class": "LlavaProcessor", "patch_size": 4}):
        if values is not None:
            (source / "processor_config.json").write_text(json.dumps(values))
        with pytest.raises(ConfigError, match=r"put preprocessor_config\.json beside the weights"):
            import_weights("llava-hf", source, tools.tmp_path / "run")
    (source / "processor_config.json").write_text(json.dumps({"image_processor": {"do_pad": True}}))
    import_weights("llava-hf", source, tools.tmp_path / "run")
    assert load_config(tools.tmp_path / "run" / "config.yaml").stages["imported"].data.geometry == "pad"


def test_one_linear_layer_comes_back_from_an_export(tools: Any) -> None:
    base, _ = tools.llm()
    tower, _ = tools.tower("clip")
    file = tools.tmp_path / "mm_projector.bin"
    weight = {"model.mm_projector.weight": torch.randn(32, 16), "model.mm_projector.bias": torch.randn(32)}
    torch.save(weight, file)
    first, second = tools.tmp_path / "first", tools.tmp_path / "second"
    import_weights("llava", file, first, [f"llm={base}", f"vision_encoder={tower}", "template=chatml"])
    assert CliRunner().invoke(cli, ["export", str(first)], catch_exceptions=False).exit_code == 0
    import_weights("llava-hf", first / "model", second)
    captioner, config = load_trained(second)
    assert config.model.connector.name == "linear"
    assert torch.equal(captioner.connector.linear.weight, weight["model.mm_projector.weight"])
    assert torch.equal(captioner.connector.linear.bias, weight["model.mm_projector.bias"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("multi_modal_projector.linear_3.weight", torch.zeros(2), "not LlavaForC.*linear_3.weight"),
        ("vision_tower.vision_model.x", torch.zeros(2), "1 more than .*vision_encoder: x"),
        ("language_model.model.norm.weight", None, "1 missing: llm: model.norm.weight"),
        ("multi_modal_projector.linear_1.bias", None, "1 missing .*connector.layers.0.bias"),
    ],
)
def test_every_weight_is_accounted_for(tools: Any, name: str, value: Tensor | None, words: str) -> None:
    model = reference(tools)
    source = write(tools, model, "5")
    state = {key: part for key, part in in_layout(model, "4").items() if key != name}
    if value is not None:
        state[name] = value
    tools.write_weights(source, state)
    with pytest.raises(ConfigError, match=words):
        import_weights("llava-hf", source, tools.tmp_path / "run")
    assert [path.name for path in tools.tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vision_feature_select_strategy", "full", "keeps CLIP's class token"),
        ("projector_hidden_act", "relu", "projector_hidden_act is 'relu'"),
        ("projector_hidden_act", "linear", "an identity for linear_2"),
        ("model_type", "llava_next", "model_type is 'llava_next'"),
    ],
)
def test_what_is_another_model_is_refused(tools: Any, key: str, value: str, words: str) -> None:
    source = write(tools, reference(tools), "5")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ConfigError, match=words):
        import_weights("llava-hf", source, tools.tmp_path / "run")
