"""What lies in an export: names of weights, files that transformers 4.57 needs, whole or not at all."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.stage import GroupConfig, LoraConfig
from prismcap.data.image import to_tiles
from prismcap.model.connector._newline import Newline
from prismcap.model.hf import export as export_module
from prismcap.model.hf.dry_run import ExportError, dry_run
from prismcap.model.hf.export import choose_layout, export_captioner
from prismcap.model.hf.files import read_marker, write_weights
from prismcap.model.hf.llm import grow
from prismcap.model.hf.load import load_exported
from prismcap.model.trainable import finish_stage, prepare_stage


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def test_layout_of_the_weights(case: Any) -> None:
    with safe_open(case.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    prefixes = ("vision_encoder.", "connector.", "llm.model.", "llm.lm_head.")
    head = "llm.lm_head.weight"
    if case.kind.format == "llava":
        prefixes = (
            "vision_tower.vision_model.embeddings.",
            "vision_tower.vision_model.encoder.layers.",
            "vision_tower.vision_model.",
            "language_model.model.",
            "language_model.lm_head.",
            "multi_modal_projector.linear_1.",
            "multi_modal_projector.linear_2.",
        )
        head = "language_model.lm_head.weight"
    elif case.kind.format == "blip2":
        prefixes = (
            "vision_model.embeddings.",
            "vision_model.encoder.layers.",
            "vision_model.post_layernorm.",
            "query_tokens",
            "qformer.layernorm.",
            "qformer.encoder.layer.",
            "language_projection.",
            "language_model.model.",
            "language_model.lm_head.",
        )
        head = "language_model.lm_head.weight"
    for prefix in prefixes:
        there = any(name.startswith(prefix) for name in names)
        assert there or (case.kind.tied and head.startswith(prefix)), prefix
    assert not [name for name in names if not name.startswith(prefixes)]
    assert (head in names) != case.kind.tied


def test_code_only_where_it_is_needed(case: Any) -> None:
    code = {path.name for path in case.folder.glob("*.py")}
    config = read(case.folder / "config.json")
    card = (case.folder / "README.md").read_text(encoding="utf-8")
    if not case.trust:
        assert not code and "auto_map" not in config and "without remote code" in card
    else:
        assert code == {"configuration_prismcap.py", "connectors_prismcap.py", "modeling_prismcap.py"}
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForImageTextToText"}
        assert "trust_remote_code=True" in card


def test_the_code_of_an_export_stands_alone(cases: Any) -> None:
    folder = cases["clip-deep"].folder
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert (folder / f"{node.module}.py").is_file(), node.module
            elif isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                top = str(module).partition(".")[0]
                assert top in sys.stdlib_module_names or top in ("torch", "transformers", "timm"), module


def test_files_that_457_needs(llava: Any) -> None:
    config = read(llava.folder / "config.json")
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert config["text_config"]["rope_theta"] == 100000.0, "4.57 would take 10000 without a word"
    assert config["image_seq_length"] == 16 and config["vision_feature_select_strategy"] == "default"
    assert config["dtype"] == config["text_config"]["dtype"] == config["vision_config"]["dtype"] == "float32"
    assert "_name_or_path" not in json.dumps(config)
    tokenizer = read(llava.folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<image>"]
    assert "token_type_ids" not in tokenizer["model_input_names"]
    assert not {"extra_special_tokens", "backend", "is_local"} & tokenizer.keys()
    pictures = read(llava.folder / "preprocessor_config.json")
    assert pictures["image_processor_type"] == "LlavaImageProcessor"
    assert pictures["do_center_crop"] and pictures["size"] == {"shortest_edge": 32} and not pictures["do_pad"]
    processor = read(llava.folder / "processor_config.json")
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (8, 1)
    assert "image_processor" not in processor
    assert (llava.folder / "chat_template.jinja").read_text(encoding="utf-8") == llava.info.chat_template


def test_generation_stops_where_the_template_does(
    llava: Any, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = llava.captioner.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert read(llava.folder / "generation_config.json")["eos_token_id"] == [end]
    # an LLM's own may hold what fails validation: do_sample false with a temperature
    monkeypatch.setattr(llava.captioner.llm.generation_config, "temperature", 0.5)
    info = tools.make_info(tools.make_template("plain"))
    folder = export_captioner(llava.captioner, tmp_path / "model", image_spec=llava.image_spec, info=info)
    found = read(folder / "generation_config.json")
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert sorted(found["eos_token_id"]) == sorted([end, *newline]) and "temperature" not in found
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path / "again")


def test_shards_hold_the_same(llava: Any, tmp_path: Path) -> None:
    folder = export_captioner(
        llava.captioner,
        tmp_path / "model",
        image_spec=llava.image_spec,
        info=llava.info,
        max_shard_size="40KB",
    )
    index = read(folder / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 2
    whole = load_file(llava.folder / "model.safetensors")
    parts: dict[str, torch.Tensor] = {}
    for name in set(index["weight_map"].values()):
        parts |= load_file(folder / name)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    load_exported(folder)


@pytest.mark.parametrize("name", ["clip-mlp", "timm-patch_concat", "eva-qformer", "clip-qformer"])
def test_bf16(cases: Any, tmp_path: Path, name: str) -> None:
    case = cases[name]
    folder = export_captioner(
        case.captioner, tmp_path / "model", image_spec=case.image_spec, info=case.info, precision="bf16"
    )
    model = load_exported(folder).model
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    own = case.captioner.llm.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[: len(own)], own.to(torch.bfloat16))


def test_only_an_export_is_replaced(llava: Any, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="no export"):
        export_captioner(llava.captioner, target, image_spec=llava.image_spec, info=llava.info)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    (target / "thesis.txt").unlink()
    for _ in range(2):  # into an empty folder, then over an older export
        export_captioner(llava.captioner, target, image_spec=llava.image_spec, info=llava.info)
        assert read_marker(target)["format"] == "llava"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match="a file is in the way"):
        export_captioner(llava.captioner, target / "README.md", image_spec=llava.image_spec, info=llava.info)


def test_a_failed_export_leaves_the_old_one(
    llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    export_captioner(llava.captioner, target, image_spec=llava.image_spec, info=llava.info)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_processor", full)
    with pytest.raises(OSError, match="No space left"):
        export_captioner(llava.captioner, target, image_spec=llava.image_spec, info=llava.info)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_exported_is_named(cases: Any, tools: Any, tmp_path: Path) -> None:
    case = cases["clip-deep"]
    keywords = {"image_spec": case.image_spec, "info": case.info}
    with pytest.raises(ConfigError, match="two-layer MLP"):
        export_captioner(case.captioner, tmp_path / "model", format="llava", **keywords)
    captioner = tools.make_captioner(tools.kinds["clip-mlp"], cases.tokenizer)
    lora = GroupConfig(lr=1e-4, lora=LoraConfig(rank=2, target_modules=("q_proj",)))
    prepare_stage(captioner, {"llm": lora})
    with pytest.raises(ConfigError, match="LoRA"):
        export_captioner(captioner, tmp_path / "model", **keywords)
    finish_stage(captioner)
    export_captioner(captioner, tmp_path / "model", **keywords)
    captioner.tokenizer = None
    with pytest.raises(ConfigError, match="no tokenizer"):
        export_captioner(captioner, tmp_path / "model", **keywords)


NEARLY_BLIP2: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"class_token": "drop"}, {}, "class_token: keep"),
    ({"layer": -2, "post_layernorm": False}, {}, "last hidden state"),
    ({"post_layernorm": False}, {}, "last hidden state"),
    ({}, {"projection_depth": 2}, "one linear layer"),
    ({}, {"layer_norm": True}, "one linear layer"),
]


@pytest.mark.parametrize(("encoder", "connector", "words"), NEARLY_BLIP2)
def test_what_is_nearly_blip2_becomes_the_custom_model(
    encoder: dict[str, Any], connector: dict[str, Any], words: str, cases: Any, tools: Any
) -> None:
    kind = tools.kinds["eva-qformer"]
    kind = replace(kind, vision_encoder=kind.vision_encoder | encoder, connector=kind.connector | connector)
    captioner = tools.make_captioner(kind, cases.tokenizer)
    assert choose_layout(captioner, captioner.image_spec, "auto") == "custom"
    with pytest.raises(ConfigError, match=words):
        choose_layout(captioner, captioner.image_spec, "blip2")
    clip = cases["clip-qformer"].captioner
    with pytest.raises(ConfigError, match="needs eva_vit_g"):
        choose_layout(clip, clip.image_spec, "blip2")


def test_blip2_stops_where_the_template_does(cases: Any) -> None:
    """It generates by its LLM's own config, and reads no generation_config.json."""
    folder = cases["eva-qformer"].folder
    ends = read(folder / "generation_config.json")["eos_token_id"]
    assert read(folder / "config.json")["text_config"]["eos_token_id"] == ends != []
    assert load_exported(folder).model.language_model.generation_config.eos_token_id == ends


def test_a_full_disk_is_an_os_error_and_the_dry_run_says_what_to_do(
    llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    keywords: dict[str, Any] = {"image_spec": llava.image_spec, "info": llava.info}
    with pytest.raises(OSError, match=r"model\.safetensors: the weights cannot be written.*No space left"):
        export_captioner(llava.captioner, tmp_path / "model", **keywords)
    with pytest.raises(ExportError, match=r"cannot be written: .*Make room there.*--no-dry-export"):
        dry_run(llava.captioner, folder=tmp_path, **keywords)
    assert list(tmp_path.iterdir()) == []


def test_loading_refuses_code_and_gaps(llava: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        load_exported(tmp_path / "nothing")
    folder = export_captioner(
        llava.captioner, tmp_path / "model", image_spec=llava.image_spec, info=llava.info
    )
    weights = load_file(folder / "model.safetensors")
    del weights["vision_tower.vision_model.embeddings.class_embedding"]
    write_weights(weights, folder)
    with pytest.raises(ConfigError, match="1 missing"):
        load_exported(folder)
    config = read(folder / "config.json") | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(ConfigError, match="code of its own"):
        load_exported(folder)


def test_our_custom_model_loads_without_its_code(cases: Any, tmp_path: Path) -> None:
    case = cases["clip-deep"]
    folder = export_captioner(case.captioner, tmp_path / "model", image_spec=case.image_spec, info=case.info)
    for path in folder.glob("*.py"):
        path.write_text("raise SystemExit('this code must not run')")
    assert load_exported(folder).model.config.model_type == "prismcap"


def test_exports_of_before_connectors_had_kinds_load(cases: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(cases["clip-deep"].folder, folder)
    config = read(folder / "config.json")
    for key in ("kind", "mean", "bias"):
        del config["connector"][key]
    (folder / "config.json").write_text(json.dumps(config))
    old, new = load_exported(folder).model, load_exported(cases["clip-deep"].folder).model
    features = torch.randn(1, 16, 16)
    assert torch.equal(old.connector(features), new.connector(features))


def test_grow_adds_means() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert torch.equal(grow(rows, 4), torch.tensor([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0], [2.0, 4.0]]))
    assert torch.equal(grow(rows[:, 0], 3), torch.tensor([1.0, 3.0, 2.0]))
    assert grow(rows, 1) is rows


OLD = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1")
LOAD_457 = """
import json, sys, torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
assert transformers.__version__ == "4.57.6", transformers.__file__
torch.set_num_threads(1)
folder, picture = sys.argv[1:]
model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "Describe the picture."}]
inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
    tokenize=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**inputs).logits
model.generate(**inputs, max_new_tokens=2)
torch.save({"report": {key: list(value) for key, value in report.items()}, "logits": logits,
    "input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}, folder + "/../found.pt")
"""


@pytest.fixture(scope="session")
def transformers_457(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4.57.6 and what it pins, laid over this environment."""
    target = tmp_path_factory.mktemp("transformers-4.57")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), *OLD]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["siglip-mlp", "clip-mlp", "siglip-last-linear", "clip-layers-resized", "eva-qformer"]
)
def test_transformers_457_reads_the_same(
    cases: Any, tools: Any, transformers_457: Path, tmp_path: Path, name: str
) -> None:
    case = cases[name]
    tools.picture(90, 40).save(tmp_path / "picture.png")
    (tmp_path / "model").symlink_to(case.folder)
    environment = os.environ | {"PYTHONPATH": str(transformers_457), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_457, str(tmp_path / "model"), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    path = case.folder.parent / "found.pt"
    found = torch.load(path, weights_only=True)
    path.unlink()
    assert not any(found["report"].values()), found["report"]
    batch = tools.batch_of(found["input_ids"], found["pixel_values"], int(found["input_ids"].max()))
    with torch.no_grad():
        expected = case.captioner.logits(batch)
    # fp32 over another order of sums: 1.6e-5 was seen on a CPU without AVX-512
    assert (found["logits"][..., : expected.shape[-1]] - expected).abs().max() < 3e-5


@pytest.mark.slow
def test_transformers_457_reads_llava_next(
    cases: Any, tools: Any, transformers_457: Path, tmp_path: Path
) -> None:
    """An anyres picture that is not square, against the same class of transformers 5, and our own tiles."""
    captioner = tools.make_captioner(tools.kinds["clip-mlp"], cases.tokenizer)
    captioner.connector.newline = Newline(captioner.llm.config.hidden_size)
    spec = replace(captioner.image_spec, geometry="anyres", grids=((1, 2), (2, 1), (2, 2), (1, 3)))
    info = tools.make_info(tools.make_template("chatml"))
    folder = export_captioner(captioner, tmp_path / "model", image_spec=spec, info=info)
    picture = tools.picture(90, 25)
    picture.save(tmp_path / "picture.png")
    environment = os.environ | {"PYTHONPATH": str(transformers_457), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_457, str(folder), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert not any(found["report"].values()), found["report"]
    assert (found["pixel_values"][0] - to_tiles(picture, spec)).abs().max() < 0.05
    inputs = {key: found[key] for key in ("input_ids", "pixel_values")}
    with torch.no_grad():
        model = load_exported(folder, dtype="float32").model
        expected = model(**inputs, image_sizes=torch.tensor([[25, 90]])).logits
    assert (found["logits"] - expected).abs().max() < 3e-5
