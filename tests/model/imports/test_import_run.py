"""The folder that an import leaves is a run's: exported, captioned with, trained on, written whole or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from internlm2_files import make_internlm2
from PIL import Image

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.registry import available
from prismcap.configs.schema.base import Component
from prismcap.model.hf.files import read_marker
from prismcap.model.imports import llava
from prismcap.model.llm import causal_lm
from prismcap.model.restore import load_trained
from prismcap.scripts import importing
from prismcap.scripts.cli import cli
from prismcap.scripts.commands.import_ import import_
from prismcap.scripts.importing import import_weights
from prismcap.scripts.run_card import origin, run_sections
from prismcap.train.checkpoint import verify


@pytest.fixture
def projector(tools: Any) -> tuple[Path, list[str]]:
    """A projector of v1.5's kind, and the options of its import."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state = {
        f"model.mm_projector.{name}": 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    file = tools.tmp_path / "mm_projector.bin"
    torch.save(state, file)
    options = [f"llm={tools.llm()[0]}", f"vision_encoder={tools.tower('clip')[0]}", "template=chatml"]
    return file, options


def prismcap(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_import_export_caption_on_the_command_line(tools: Any, projector: tuple[Path, list[str]]) -> None:
    file, options = projector
    run = tools.tmp_path / "runs" / "released"
    said = prismcap("import", "llava", file, run, *options).output
    assert f"prismcap export {run} && prismcap caption {run} PICTURE.jpg" in said
    prismcap("export", run)
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "Weights released by others, layout llava; not trained here." in card
    assert (
        "rained with prismcap" not in card and "trained-elsewhere" not in card and "## Training" not in card
    )
    assert read_marker(run / "model")["details"]["Stages"] == "none of this run's own"
    picture = tools.tmp_path / "picture.png"
    Image.new("RGB", (40, 24), (200, 30, 60)).save(picture)
    done = prismcap("caption", run, picture, "--max-new-tokens", 4)
    assert done.output.startswith(f"{picture}: ") or f"{picture}: " in done.output


def test_training_goes_on_from_it(tools: Any, projector: tuple[Path, list[str]]) -> None:
    """Another stage with `base:` and --resume auto: the imported one is as its manifest says, and is kept."""
    file, options = projector
    run = tools.tmp_path / "released"
    import_weights("llava", file, run, options)
    assert verify(run / "imported" / "final").stages == ["imported"]
    before, config = load_trained(run)
    assert (config.name, Path(config.output_dir)) == ("released", tools.tmp_path)
    for i in range(2):
        Image.new("RGB", (16, 16), (90 * i, 30, 60)).save(tools.tmp_path / f"{i}.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A colour."}]
    rows = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(2)]
    (tools.tmp_path / "rows.json").write_text(json.dumps(rows))
    stage = {
        "train": {"connector": {"lr": 1e-3}},
        "data": {
            "mix": [{"name": "llava_json", "path": str(tools.tmp_path / "rows.json")}],
            "num_workers": 0,
        },
        "template": {"name": "chatml"},
        "batch": {"samples_per_step": 2},
        "schedule": {"max_steps": 1},
    }
    further = tools.tmp_path / "further.yaml"
    further.write_text(yaml.safe_dump({"base": str(run / "config.yaml"), "stages": {"instruct": stage}}))
    prismcap("train", further, "--resume", "auto", "--no-dry-export")
    after, config = load_trained(run)
    assert list(config.stages) == ["imported", "instruct"]
    assert origin(config, run) == "Trained with prismcap from weights released by others, layout llava."
    assert "instruct" in run_sections(config, run) and "imported" not in run_sections(config, run)
    trained = after.connector.layers[0].weight - before.connector.layers[0].weight
    assert 0 < float(trained.detach().abs().max()) < 0.01, "one small step away from the released weights"


def test_a_destination_with_something_in_it_is_left_alone(
    tools: Any, projector: tuple[Path, list[str]]
) -> None:
    file, options = projector
    run = tools.tmp_path / "run"
    run.mkdir()
    (run / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already, and not empty"):
        import_weights("llava", file, run, options)
    assert [path.name for path in run.iterdir()] == ["note.txt"]
    (run / "note.txt").unlink()
    import_weights("llava", file, run, options)
    with pytest.raises(ConfigError, match="is there already"):
        import_weights("llava", file, run, options)


def test_what_fails_late_leaves_nothing(
    tools: Any, projector: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, options = projector
    before = sorted(tools.tmp_path.iterdir())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "replace_text", full)
    with pytest.raises(ConfigError, match=r"cannot be imported to .*run: .*No space"):
        import_.main(["llava", str(file), str(tools.tmp_path / "run"), *options], standalone_mode=False)
    assert sorted(tools.tmp_path.iterdir()) == before


def test_names_of_runs_and_layouts_are_checked(tools: Any, projector: tuple[Path, list[str]]) -> None:
    file, options = projector
    with pytest.raises(ConfigError, match=r"no layout 'lava'\. Did you mean 'llava'"):
        import_weights("lava", file, tools.tmp_path / "run")
    with pytest.raises(ConfigError, match="no such file or directory"):
        import_weights("llava", tools.tmp_path / "nowhere", tools.tmp_path / "run", options)
    with pytest.raises(ConfigError, match="is no name of a run"):
        import_weights("llava", file, tools.tmp_path / "-run", options)
    assert available("import") == ["blip2", "llava", "llava_hf", "minigpt4", "mplug_owl", "prismcaptioner"]
    helped = CliRunner().invoke(cli, ["import", "--help"]).output
    assert all(name.replace("_", "-") in helped for name in available("import"))


def test_parts_that_do_not_fit_are_refused(tools: Any, projector: tuple[Path, list[str]]) -> None:
    file, options = projector
    tools.change_bin(file, lambda state: state.update({"model.mm_projector.2.weight": torch.zeros(31, 32)}))
    with pytest.raises(ConfigError, match=r"layers.2.weight: shape \(31, 32\) in the file, \(32, 32\)"):
        import_weights("llava", file, tools.tmp_path / "run", options)


def test_shards_are_read_one_at_a_time(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is opened when all that was made of the one before is on the disk."""
    from prismcap.model.imports import _parts

    steps: list[str] = []
    read, write = _parts.read_tensors, _parts.ShardWriter.write

    def noting_read(path: Path, *arguments: Any) -> Any:
        steps.append("read")
        return read(path, *arguments)

    def noting_write(*arguments: Any) -> None:
        steps.append("write")
        write(*arguments)

    monkeypatch.setattr(_parts, "read_tensors", noting_read)
    monkeypatch.setattr(_parts.ShardWriter, "write", noting_write)
    parts = _parts.Parts(tools.tmp_path, tools.tmp_path / "out", "nobody")
    files = []
    for i in range(3):
        tools.write_weights(tools.tmp_path / str(i), {f"model.{i}": torch.randn(3)}, "bin")
        files.append(tools.tmp_path / str(i) / "pytorch_model.bin")
    parts.read(files, llava._route)
    assert steps == ["read", "write"] * 3
    with pytest.raises(ConfigError, match=r"weights that are in two files: model\.1"):
        parts.read(files[1:2], llava._route)


def test_internlm2_in_its_own_layout_is_told_to_be_converted(tools: Any) -> None:
    source = make_internlm2().write(tools.tmp_path / "internlm2")
    with pytest.raises(ConfigError, match=f"prismcap convert internlm2 {source} DST"):
        causal_lm.build(causal_lm.Options(path=str(source)))


def test_a_config_of_the_import_is_one_of_ours(tools: Any, projector: tuple[Path, list[str]]) -> None:
    file, options = projector
    run = tools.tmp_path / "run"
    import_weights("llava", file, run, options)
    config = load_config(run / "config.yaml")
    assert config.model.llm == Component(name="causal_lm", path=options[0].removeprefix("llm="))
    assert (
        (run / "config.yaml").read_text().startswith("# Released weights, written by `prismcap import llava`")
    )
