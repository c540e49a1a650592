"""Ablations as files: bases, overrides, errors that say where, and what they are told apart by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_ablation, load_any, load_config, load_prism, to_yaml
from prismcap.configs.schema.ablation import AblationConfig

ABLATION = """
name: heads
question: Does it matter?
run: demo/scenes
set: {stages: {align: {schedule: null}}}
axes:
  connector:
    question: Which connector?
    levels:
      mlp: {}
      linear: {model: {connector: {name: linear, bias: null}}}
      deep: [model.connector.name=mlp, model.connector.depth=3]
figures: [unseen_pairs.all_right]
"""


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    path = tmp_path / "heads.yaml"
    path.write_text(ABLATION)
    return path


def test_bases_and_overrides_are_those_of_every_config(ablation: Path) -> None:
    child = ablation.with_name("child.yaml")
    child.write_text("base: heads.yaml\nname: child\nseeds: [1, 2]\n")
    config = load_ablation(child, ["launch.parallel=3", "axes.connector.question=Which?"])
    assert (config.name, config.seeds, config.launch.parallel) == ("child", (1, 2), 3)
    assert config.axes["connector"].question == "Which?"
    assert list(config.axes["connector"].levels) == ["mlp", "linear", "deep"]


def test_it_is_told_from_runs_and_printed_whole(ablation: Path, tmp_path: Path) -> None:
    config = load_any(ablation)
    assert isinstance(config, AblationConfig)
    # a null in an overlay takes a key away: it must not get lost
    assert config.axes["connector"].levels["linear"]["model"]["connector"]["bias"] is None
    again = tmp_path / "elsewhere" / "ablation.yaml"
    again.parent.mkdir()
    again.write_text(to_yaml(config))
    assert load_any(again) == config
    for load, words in ((load_config, "not of training"), (load_prism, "not of Prism")):
        with pytest.raises(ConfigError, match=rf"an ablation \(it has `axes`\), {words}: prismcap ablate"):
            load(ablation)
    with pytest.raises(ConfigError, match=r"a run of training .* not an ablation: prismcap train"):
        load_ablation("demo/scenes")
    with pytest.raises(ConfigError, match=r"a Prism run .* not an ablation: prismcap prism run"):
        load_ablation("demo/prism")


def test_the_run_is_a_file_beside_it_or_a_preset(ablation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_ablation(ablation).run == "demo/scenes"
    (ablation.parent / "mine.yaml").write_text("base: demo/scenes\nname: mine\n")
    ablation.write_text(ABLATION.replace("demo/scenes", "mine.yaml"))
    monkeypatch.chdir("/")
    assert load_ablation(ablation).run == str(ablation.parent / "mine.yaml")
    ablation.write_text(ABLATION.replace("demo/scenes", "demo/scnes"))
    with pytest.raises(ConfigError, match=re.escape(f"{ablation}: run: no config 'demo/scnes'")):
        load_ablation(ablation)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds", "seed"), r"heads.yaml: seed: unknown key .* Did you mean 'seeds'"),
        (("figures: [unseen_pairs.all_right]", ""), "heads.yaml: figures: this key is required"),
        (("      linear:", "      a-b:"), "must be letters, digits and underscores"),
    ],
)
def test_a_wrong_key_is_named(ablation: Path, change: tuple[str, str], words: str) -> None:
    ablation.write_text((ABLATION + "seeds: [0]\n").replace(*change))
    with pytest.raises(ConfigError, match=words):
        load_ablation(ablation)
