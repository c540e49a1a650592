"""`prismcap export` and `prismcap caption` on a tiny run, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from tiny_run import PROMPT, SIGLIP, TOWER, export_run, make_run

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.text import SHORT_PROMPT
from prismcap.model.hf.files import read_marker
from prismcap.model.restore import load_trained
from prismcap.scripts import exporting
from prismcap.scripts.commands.caption import caption, find_images
from prismcap.scripts.commands.export import export
from prismcap.scripts.exporting import export_inputs

EVA = {"name": "eva_vit_g", "config": TOWER | {"initializer_range": 0.3}, "class_token": "keep"}
QFORMER = {"name": "qformer", "num_queries": 3, "hidden": 24, "layers": 2, "heads": 4, "intermediate": 40}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": (SIGLIP, {"name": "mlp"}),
    "blip2": (EVA, QFORMER),
    "custom": (SIGLIP, {"name": "patch_concat", "k": 2}),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An exported run of each format."""
    root = tmp_path_factory.mktemp("checkpoints")
    found = {name: make_run(root / name, connector, vision) for name, (vision, connector) in PARTS.items()}
    for name, run in found.items():
        export_run(run)
        assert read_marker(run / "model")["format"] == name
    return found


def test_an_export_says_what_it_is(runs: dict[str, Path]) -> None:
    marker = read_marker(runs["llava"] / "model")
    assert (marker["format"], marker["weights"]) == ("llava", "merged")
    assert marker["details"]["Stages"] == "align: connector (whole)"
    assert "| Stages | align: connector (whole) |" in (runs["llava"] / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep" / "er").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, width, height in (("b.png", 60, 20), ("a.JPG", 30, 50), ("deep/er/c.png", 40, 40)):
        pixels = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / name, format="PNG")
    (folder / "deep" / "notes.txt").write_text("no picture")
    return folder


def run_caption(*arguments: str | Path | int) -> Result:
    options = [str(argument) for argument in arguments]
    return CliRunner().invoke(caption, [*options, "--device", "cpu"])


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_export_holds_the_trained_weights(runs: dict[str, Path]) -> None:
    captioner, _ = load_trained(runs["llava"])
    weights = load_file(runs["llava"] / "model" / "model.safetensors")
    assert torch.equal(weights["multi_modal_projector.linear_1.weight"], captioner.connector.layers[0].weight)
    marker = json.loads((runs["llava"] / "model" / "prismcap.json").read_text(encoding="utf-8"))
    assert marker["prompt"] == PROMPT and marker["image"]["geometry"] == "pad"


def test_the_configs_prompt_is_the_default_one(runs: dict[str, Path]) -> None:
    captioner, config = load_trained(runs["llava"])
    assert config.prompt == SHORT_PROMPT, "what the demo's captioner was trained with"
    _, info = export_inputs(captioner, config.model_copy(update={"prompt": "Say it."}))
    assert info.prompt == "Say it."


def test_the_dry_export_is_made_in_the_runs_folder(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(exporting, "dry_run", lambda *_, folder, **__: float(seen.append(folder) or 0))
    captioner, config = load_trained(runs["llava"])
    messages: list[str] = []
    exporting.dry_export(messages.append)(captioner, config)
    assert seen == [runs["llava"]] and len(messages) == 2


@pytest.mark.parametrize("kind", list(PARTS))
def test_batches_say_what_single_pictures_say(
    kind: str, runs: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    for size in (1, 3):
        out = tmp_path / f"{size}.jsonl"
        done = run_caption(runs[kind], pictures, "--batch-size", size, "--max-new-tokens", 6, "--jsonl", out)
        assert done.exit_code == 0, done.output
    single, batched = records(tmp_path / "1.jsonl"), records(tmp_path / "3.jsonl")
    assert single == batched
    assert [Path(record["image"]).name for record in single] == ["a.JPG", "b.png", "c.png"]
    assert all(record["prompt"] == PROMPT and record["caption"] for record in single)
    assert single[0]["model"] == str(runs[kind] / "model")


def test_unreadable_pictures_are_named_and_skipped(
    runs: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / "b.png").read_bytes()[:100])
    strip = tmp_path / "strip.png"
    Image.new("1", (20_000, 1)).save(strip)
    out = tmp_path / "out.jsonl"
    out.write_text('{"image": "earlier"}\n')
    done = run_caption(
        runs["llava"], broken, pictures / "b.png", strip, "--max-new-tokens", 3, "--jsonl", out
    )
    assert done.exit_code == 1
    assert "broken.png: not a readable picture" in done.stderr
    assert "strip.png: 20000 x 1 pixels is too long" in done.stderr
    assert "2 of 3 pictures could not be read" in done.stderr
    assert [Path(record["image"]).name for record in records(out)] == ["earlier", "b.png"]


def test_prompt_and_limit(runs: dict[str, Path], pictures: Path) -> None:
    done = run_caption(
        runs["llava"] / "model", pictures, "--limit", 1, "--max-new-tokens", 4, "--prompt", "Name <it>"
    )
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) >= 1 and "a.JPG: " in done.stdout and "b.png" not in done.stdout


def test_find_images(pictures: Path) -> None:
    def names(*patterns: str) -> list[str]:
        return [str(path.relative_to(pictures)) for path in find_images(patterns)]

    assert names(str(pictures)) == ["a.JPG", "b.png", "deep/er/c.png"]
    assert names(f"{pictures}/*.png", str(pictures / "b.png")) == ["b.png"]
    assert names(f"{pictures}/**/*.png") == ["b.png", "deep/er/c.png"]
    assert names(f"{pictures}/d*", str(pictures / "a.JPG")) == ["deep/er/c.png", "a.JPG"]
    assert names(str(pictures / "deep" / "notes.txt")) == ["deep/notes.txt"], "a named file is tried"
    with pytest.raises(ConfigError, match="as a glob it matches nothing"):
        find_images([f"{pictures}/*.bmp"])
    with pytest.raises(ConfigError, match="no pictures there"):
        find_images([f"{pictures}/deep/*.txt"])


def test_wrong_arguments_are_named(runs: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x\n")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((tmp_path / "run", pictures), "prismcap export"),
        ((tmp_path / "empty", pictures), "neither an exported model"),
        ((tmp_path / "nothing", pictures), "no such directory"),
        ((runs["llava"], tmp_path / "x.png"), "x.png"),
        ((runs["llava"], pictures, "--jsonl", tmp_path / "no" / "out.jsonl"), "--jsonl"),
    ):
        done = run_caption(*arguments)
        assert isinstance(done.exception, ConfigError), done.output
        assert words in str(done.exception)


def test_export_refuses_what_is_not_a_run_or_not_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    for arguments, words in (
        ([str(tmp_path / "nothing")], "config.yaml"),
        ([str(runs["llava"]), str(runs["llava"] / "align")], "is no export"),
        ([str(runs["custom"]), str(tmp_path / "new"), "--format", "llava"], "--format custom"),
    ):
        done = CliRunner().invoke(export, arguments)
        assert isinstance(done.exception, ConfigError), done.output
        assert words in str(done.exception)
    assert not (tmp_path / "new").exists()
