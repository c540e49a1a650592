"""Configs: inheritance, overrides, errors that say where and what, and every shipped preset."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import PRESETS, load_any, load_config, load_prism, presets, to_yaml
from prismcap.configs.registry import PACKAGES, available, component_module
from prismcap.configs.schema.prism import Decoding, PrismConfig
from prismcap.configs.schema.run import RunConfig

MINIMAL = """
name: base
model:
  vision_encoder: {name: timm, model: test_vit, image_size: 32}
  connector: {name: linear}
  llm: {name: random, config: {model_type: llama}}
stages:
  align:
    train: {connector: {lr: 1e-3}}
    data: {mix: [{name: llava_json, path: a.json}], max_tokens: 64}
    template: {name: plain}
    batch: {row_tokens: 64}
    schedule: {max_steps: 4}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(MINIMAL)
    return path


def test_scientific_notation_is_a_number(base: Path) -> None:
    assert load_config(base).stages["align"].train["connector"].lr == 0.001


def test_base_is_overlaid_key_by_key(base: Path) -> None:
    child = base.with_name("child.yaml")
    child.write_text("base: base.yaml\nname: child\nstages: {align: {schedule: {max_steps: 9}}}\n")
    config = load_config(child)
    assert (config.name, config.stages["align"].schedule.max_steps) == ("child", 9)
    assert config.model == load_config(base).model


def test_another_component_drops_the_options_of_the_first(base: Path) -> None:
    child = base.with_name("child.yaml")
    child.write_text("base: base.yaml\nmodel: {connector: {name: mlp}, vision_encoder: {image_size: 64}}\n")
    config = load_config(child)
    assert config.model.connector.options == {}
    assert config.model.vision_encoder.options == {"model": "test_vit", "image_size": 64}


def test_null_removes_what_the_base_says(base: Path) -> None:
    child = base.with_name("child.yaml")
    child.write_text("base: base.yaml\nstages: {align: {schedule: {max_steps: null, epochs: 2}}}\n")
    assert load_config(child).stages["align"].schedule.epochs == 2


def test_several_bases_are_laid_over_one_another_in_order(base: Path) -> None:
    stages = "stages: {align: {schedule: {max_steps: %d}, precision: fp32}}\n"
    for name, steps in (("first", 5), ("second", 6)):
        base.with_name(f"{name}.yaml").write_text(stages % steps)
    child = base.with_name("child.yaml")
    child.write_text("base: [base.yaml, first.yaml, second.yaml]\nname: child\n")
    config = load_config(child)
    assert (config.name, config.stages["align"].schedule.max_steps) == ("child", 6)
    assert config.stages["align"].precision == "fp32"


def test_a_star_is_every_entry_that_the_base_has(base: Path) -> None:
    """And what is said of one entry comes after it. It makes no entry, and reaches no scalar."""
    second = MINIMAL.partition("  align:")[2]
    base.write_text(f"{MINIMAL}  instruct:{second}")
    child = base.with_name("child.yaml")
    child.write_text(
        "base: base.yaml\nname: child\nstages:\n"
        "  instruct: {schedule: {max_steps: 9}}\n"
        '  "*": {schedule: {max_steps: 7}, data: {geometry: pad}, template: {name: chatml}}\n'
    )
    stages = load_config(child).stages
    assert {name: stage.schedule.max_steps for name, stage in stages.items()} == {"align": 7, "instruct": 9}
    assert {stage.data.geometry for stage in stages.values()} == {"pad"}
    assert {stage.template.name for stage in stages.values()} == {"chatml"}


def test_a_star_without_a_base_is_no_stage(base: Path) -> None:
    base.write_text(MINIMAL.replace("  align:", '  "*":'))
    with pytest.raises(ConfigError, match=re.escape("'*' must be letters")):
        load_config(base)


def test_a_star_has_keys(base: Path) -> None:
    child = base.with_name("child.yaml")
    child.write_text('base: base.yaml\nname: child\nstages: {"*": fp32}\n')
    with pytest.raises(ConfigError, match="expected keys for every entry beside it, found 'fp32'"):
        load_config(child)


def test_parts_of_presets_are_no_presets() -> None:
    assert (PRESETS / "recipes/tiny/_shared.yaml").is_file()
    assert not [name for name in presets() if "/_" in name]


def test_a_circle_of_bases_is_named(base: Path) -> None:
    base.write_text("base: base.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(base)


def test_overrides_reach_mappings_lists_and_every_stage(base: Path) -> None:
    overrides = ["stages.align.data.mix.0.limit=3", "stages.*.precision=fp32", "seed=7"]
    config = load_config(base, overrides)
    stage = config.stages["align"]
    assert (stage.data.mix[0].options["limit"], stage.precision, config.seed) == (3, "fp32", 7)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.align.schedule.max_step=3", ["stages.align.schedule.max_step", "3", "'max_steps'"]),
        ("model.connectr.name=mlp", ["model.connectr", "'connector'"]),
        ("model.connector.name=liner", ["model.connector", "liner", "'linear'"]),
        ("model.connector.depht=2", ["model.connector.depht", "unknown key", "2"]),
        ("stages.align.train.connector.lr=-1", ["stages.align.train.connector.lr", "-1"]),
        ("stages.align.template.name=vicuna", ["stages.align.template", "'vicuna_v1'"]),
        ("stages.align.data.mix.0.pth=x", ["stages.align.data.mix.0", "pth", "'path'"]),
        ("stages.align.data.mix.4.path=x", ["mix.4", "list of 1"]),
        ("stages.align.batch.row_tokens=32", ["row_tokens=32", "max_tokens=64"]),
        ("stages.align.feature_cache=yes please", ["stages.align.feature_cache", "yes please"]),
        ("seed", ["seed", "key.sub=value"]),
        ("name.sub=1", ["name.sub=1", "'base'"]),
    ],
)
def test_errors_name_path_value_and_remedy(base: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(base, [override])
    for word in words:
        assert word in str(caught.value)


def test_errors_name_the_file(base: Path) -> None:
    base.write_text(MINIMAL.replace("schedule:", "shedule:"))
    with pytest.raises(ConfigError) as caught:
        load_config(base)
    assert str(base) in str(caught.value)
    assert "Did you mean 'schedule'" in str(caught.value)


def test_anchors_are_separate_for_overrides(base: Path) -> None:
    shared = MINIMAL.replace("stages:\n  align:", "stages:\n  align: &first")
    base.write_text(shared + "  instruct: *first\n")
    config = load_config(base, ["stages.align.schedule.max_steps=9"])
    assert [stage.schedule.max_steps for stage in config.stages.values()] == [9, 4]


def test_a_key_given_twice_is_refused(base: Path) -> None:
    base.write_text(MINIMAL + "name: again\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_config(base)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="demo/scenes"):
        load_config("demo/scene")


def test_yaml_round_trip(base: Path, tmp_path: Path) -> None:
    overrides = ["stages.align.train.connector.weight_decay=0.1", "stages.*.optimizer.clip_norm=.inf"]
    config = load_config(base, overrides)
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config


def test_null_is_a_value_where_another_component_is_named(base: Path) -> None:
    """A template that replaces the base's has no key of its to remove."""
    child = base.parent / "child.yaml"
    child.write_text("base: base.yaml\nstages: {align: {template: {name: llama_2, system: null}}}\n")
    assert load_config(child).stages["align"].template.options == {"system": None}
    assert load_config("recipes/minigpt4_llama2_7b").stages["instruct"].template.options == {"system": None}


def test_an_option_of_null_comes_back(base: Path, tmp_path: Path) -> None:
    """llama_2 without a system text: left out, it would have LLaVA's."""
    config = load_config(base)
    values = config.model_dump(exclude_none=True)
    values["stages"]["align"]["template"] = {"name": "llama_2", "system": None}
    config = RunConfig.model_validate(values)
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again).stages["align"].template.options == {"system": None}


@pytest.mark.parametrize("name", presets())
def test_every_preset_validates_and_round_trips(name: str, tmp_path: Path) -> None:
    config = load_any(name)
    again = tmp_path / "resolved.yaml"
    again.write_text(to_yaml(config))
    assert load_any(again) == config


def test_presets_of_prism_are_told_from_those_of_training() -> None:
    prism = [name for name in presets() if isinstance(load_any(name), PrismConfig)]
    assert prism == ["demo/prism", "prism/long", "prism/paper", "prism/released"]
    with pytest.raises(ConfigError, match="a Prism run"):
        load_config("demo/prism")
    with pytest.raises(ConfigError, match="a run of training"):
        load_prism("demo/scenes")


def test_presets_of_prism_decode_as_the_facts_say() -> None:
    """Source: arXiv 2406.14544 (paper) and its published code (released)."""
    decoding = {name: load_prism(f"prism/{name}").decoding for name in ("paper", "released", "long")}
    paper, released, long = decoding["paper"], decoding["released"], decoding["long"]
    assert (paper.perceive, paper.reason) == (Decoding(max_new_tokens=512), Decoding(max_new_tokens=512))
    assert released.perceive == Decoding(max_new_tokens=512, num_beams=5)
    assert released.reason == Decoding(max_new_tokens=256)
    assert (long.perceive, long.reason) == (Decoding(max_new_tokens=2048), Decoding(max_new_tokens=2048))


def test_a_wrong_key_of_a_prism_config_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: prism/paper\nname: mine\nreasoners: {llm: {modle: x}}\n")
    with pytest.raises(ConfigError, match=r"modle.*Did you mean 'model'"):
        load_any(path)
    with pytest.raises(ConfigError, match=r"decodng.*Did you mean 'decoding'"):
        load_prism("prism/paper", ["decodng.reason.max_new_tokens=3"])


def test_presets_are_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("demo/scenes").name == "demo"
    assert yaml.safe_load((PRESETS / "demo/scenes.yaml").read_text())["name"] == "demo"


# sinks are made by the trainer from the run's config: they have no keys of their own
@pytest.mark.parametrize("kind", sorted(PACKAGES.keys() - {"sink"}))
def test_every_file_of_a_registry_folder_is_a_component(kind: str) -> None:
    names = available(kind)
    assert names
    for name in names:
        module = component_module(kind, name)
        assert callable(module.build)
        assert module.Options.model_config.get("extra") == "forbid", (
            f"{kind} {name} would ignore a typing error"
        )
