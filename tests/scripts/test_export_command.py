"""`prismcap export` of a tiny run with --adapter, --max-shard-size and --format gguf, as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from tiny_run import PROMPT, make_run

from prismcap.configs.errors import ConfigError
from prismcap.model.build import build_captioner
from prismcap.model.hf.files import read_marker
from prismcap.model.restore import load_trained
from prismcap.scripts.cli import cli

MLP = {"name": "mlp"}
LORA = {
    "connector": {"lr": 0.1},
    "llm": {"lr": 0.1, "lora": {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}},
}
LANGUAGE = "language_model.model."  # in the files; modules, which an adapter names, are called
MODULE = "model.language_model."


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA whose connector was trained, and its LLM's LoRA."""
    return make_run(tmp_path_factory.mktemp("checkpoints") / "lora", MLP, train=LORA)


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    """Its export without options: one file of weights, LoRA merged."""
    assert prismcap("export", run, "--prompt", PROMPT).exit_code == 0
    return run / "model"


def prismcap(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def captions(model: Path, folder: Path) -> list[str]:
    for number in range(2):
        pixels = torch.randint(0, 255, (40, 30, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    out = folder / "out.jsonl"
    done = prismcap("caption", model, folder, "--max-new-tokens", 8, "--device", "cpu", "--jsonl", out)
    assert done.exit_code == 0, done.output
    found = [json.loads(line)["caption"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert all(found) and found[0] != found[1]
    return found


def test_an_adapter_lies_beside_the_weights_before_it(run: Path, merged: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    done = prismcap("export", run, model, "--adapter", "--prompt", PROMPT)
    assert done.exit_code == 0, done.output
    assert f"Exported to {model} (LLaVA, fp32, adapter weights)." in done.stdout
    assert read_marker(model)["weights"] == "adapter" and read_marker(merged)["weights"] == "merged"

    weights, whole = load_file(model / "model.safetensors"), load_file(merged / "model.safetensors")
    adapter = load_file(model / "adapter" / "adapter_model.safetensors")
    _, config = load_trained(run)
    before = build_captioner(config.model, seed=config.seed).llm.model.state_dict()
    query = "layers.0.self_attn.q_proj"
    assert torch.equal(weights[f"{LANGUAGE}{query}.weight"], before[f"{query}.weight"])
    down, up = (adapter[f"base_model.model.{MODULE}{query}.lora_{part}.weight"] for part in "AB")
    added = 4 / 2 * up @ down
    assert float(added.abs().max()) > 0.1 and len(adapter) == 4
    torch.testing.assert_close(whole[f"{LANGUAGE}{query}.weight"], before[f"{query}.weight"] + added)
    projector = [name for name in weights if "projector" in name]
    assert len(projector) == 4 and all(torch.equal(weights[name], whole[name]) for name in projector)

    folder = tmp_path / "pictures"
    folder.mkdir()
    said = captions(model, folder)
    (folder / "out.jsonl").unlink()
    assert said == captions(merged, folder)


def test_an_adapter_needs_a_lora_and_a_format_that_keeps_it_apart(run: Path, tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", MLP)
    for arguments, words in (
        ((plain, tmp_path / "new"), "--adapter keeps the LLM's LoRA of the last stage; there, no group has"),
        (
            (run, tmp_path / "new", "--format", "gguf"),
            "a GGUF file holds merged weights",
        ),
    ):
        done = prismcap("export", *arguments, "--adapter")
        assert isinstance(done.exception, ConfigError) and words in str(done.exception), done.output
    assert not (tmp_path / "new").exists()


def test_weights_are_cut_into_files_of_the_size_asked_for(run: Path, merged: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert prismcap("export", run, model, "--max-shard-size", "20KB", "--prompt", PROMPT).exit_code == 0
    files = sorted(model.glob("*.safetensors"))
    assert len(files) > 3 and not (model / "model.safetensors").exists()
    whole = load_file(merged / "model.safetensors")
    places = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(places) == set(whole) and set(places.values()) == {path.name for path in files}
    for path in files:
        tensors = load_file(path)
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        assert size <= 20_000 or len(tensors) == 1, "a tensor is not cut"
        assert all(torch.equal(value, whole[name]) for name, value in tensors.items())
        assert {name for name, place in places.items() if place == path.name} == set(tensors)
    folder = tmp_path / "pictures"
    folder.mkdir()
    said = captions(model, folder)
    (folder / "out.jsonl").unlink()
    assert said == captions(merged, folder)
    # an export with fewer files leaves none of the old ones
    assert prismcap("export", run, model).exit_code == 0
    assert [path.name for path in model.glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("size", ["5", "5 GB", "0KB", "5gb", "-1GB"])
def test_a_size_is_a_number_and_its_unit(run: Path, tmp_path: Path, size: str) -> None:
    done = prismcap("export", run, tmp_path / "new", f"--max-shard-size={size}")
    assert done.exit_code == 2 and f"{size!r} is no size like 5GB or 500MB" in done.stderr
    assert not (tmp_path / "new").exists()


def tensors_of(path: Path) -> dict[str, tuple[torch.Tensor, str]]:
    """Values and type of each."""
    reader: Any = gguf.GGUFReader(path)
    found = {}
    for tensor in reader.tensors:
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        found[tensor.name] = values.reshape([int(n) for n in reversed(tensor.shape)]), tensor.tensor_type.name
    return found


def test_gguf_is_two_files_of_the_merged_model(run: Path, merged: Path) -> None:
    done = prismcap("export", run, "--format", "gguf", "--dtype", "bf16", "--prompt", "Say <it>.")
    assert done.exit_code == 0, done.output
    folder = run / "gguf"
    assert {path.name for path in folder.iterdir()} == {
        "model.gguf",
        "mmproj.gguf",
        "prismcap.json",
        "README.md",
    }
    assert f"Exported to {folder} (GGUF, bf16, merged weights)." in done.stdout
    (line,) = re.findall(r"^Caption with it: (llama-mtmd-cli .*)$", done.stdout, re.MULTILINE)
    assert f"-m {folder / 'model.gguf'} --mmproj {folder / 'mmproj.gguf'}" in line and "'Say <it>.'" in line

    whole = load_file(merged / "model.safetensors")
    language, projector = tensors_of(folder / "model.gguf"), tensors_of(folder / "mmproj.gguf")
    for found, name, expected in (
        (language, "blk.0.ffn_down.weight", f"{LANGUAGE}layers.0.mlp.down_proj.weight"),
        (projector, "mm.0.weight", "multi_modal_projector.linear_1.weight"),
    ):
        values, stored = found[name]
        assert stored == "BF16"
        torch.testing.assert_close(values, whole[expected], atol=0, rtol=2**-8)
    refused = prismcap("caption", folder, merged)
    assert isinstance(refused.exception, ConfigError) and "llama.cpp" in str(refused.exception)


def test_gguf_of_what_llama_cpp_cannot_compute_is_refused(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", {"name": "patch_concat", "k": 2})
    done = prismcap("export", other, "--format", "gguf")
    assert isinstance(done.exception, ConfigError), done.output
    assert "--format gguf: the connector is no plain MLP; take --format auto" in str(done.exception)
    assert not (other / "gguf").exists()
