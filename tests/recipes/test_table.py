"""`prismcap recipes`, and the table of README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.load import load_config
from prismcap.configs.schema.data import MixItem
from prismcap.data.length_mixes.published import published_mix, published_set, published_sets
from prismcap.scripts.cli import cli
from prismcap.train.plan.gpus import find_gpu
from prismcap.train.plan.recipes import recipe_names, recipe_stages
from prismcap.train.plan.report import Machine

README = (Path(__file__).parents[2] / "README.md").read_text()
STARTS = "| recipe | stage |"


def invoke(*arguments: str) -> list[str]:
    done = CliRunner().invoke(cli, ["recipes", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def readme_rows() -> list[str]:
    return re.findall(r"^\|.*\|$", README[README.index(STARTS) :].partition("\n\n")[0], re.MULTILINE)


def test_the_names_are_listed_at_once() -> None:
    assert invoke("--short") == [f"recipes/{name}" for name in recipe_names()]


def test_the_readme_has_a_row_for_every_stage() -> None:
    names = [line.split("|")[1].strip(" `") for line in readme_rows()[2:]]
    assert [name for name in names if name] == recipe_names()
    assert len(names) == sum(len(load_config(f"recipes/{name}").stages) for name in recipe_names())


def test_a_row_says_what_trains_and_what_it_takes() -> None:
    head, _, row = invoke("prismcaptioner_2b_paper")
    assert head.startswith(STARTS) and row in readme_rows()
    assert "6,557,696" in row and "QLoRA of rank 512" in row and "2 x Evol-Instruct-143K" in row
    memory, hours = (float(cell) for cell in row.split("|")[-3:-1])
    assert 2 < memory < 80 and 1 < hours < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava15_7b_lora", "minigpt4_llama2_7b", "mplug_owl_7b"])
def test_the_readme_has_what_the_command_prints(name: str) -> None:
    """Of one recipe for each engine and kind of training: all of them take some minutes."""
    rows = readme_rows()
    found = invoke(name)
    first = rows.index(found[2])
    assert rows[:2] == found[:2] and rows[first : first + len(found) - 2] == found[2:]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="llava15_7b"):
        recipe_stages(["llava15_7"], Machine(find_gpu("A100-80G"), 8))


def test_the_data_of_every_recipe_are_published_sets() -> None:
    """Their lengths are known, so that every stage has a time; and no set is there for nothing."""
    used = set()
    for name in recipe_names():
        if name == "siglip_smollm2":
            continue  # one to start from, with placeholders for data
        for stage in load_config(f"recipes/{name}").stages.values():
            used |= {published_set(item).name for item in stage.data.mix}
    assert used == {known.name for known in published_sets().values()}


@pytest.mark.parametrize(
    ("name", "path", "known"),
    [
        ("webdataset", "/data/coco/{00000..00059}.tar", "COCO captions"),
        ("llava_json", "/data/coco/mine.json", None),
        ("llava_json", "LLaVA-CC3M-Pretrain-595K/chat.json", "CC595K"),
        ("llava_json", "LLaVA-CC3M-Pretrain-595K/best.json", None),
        ("webdataset", "cc3m/mine/0.tar", None),
        ("owl_json", "owl/text.jsonl", "Alpaca, Vicuna, Baize"),
        ("owl_json", "my_owl/text.jsonl", None),
        ("llava_json", "llava_v1_5_mix665k.json/part.json", None),
    ],
)
def test_a_set_is_known_by_the_end_of_its_path(name: str, path: str, known: str | None) -> None:
    item = MixItem.model_validate({"name": name, "path": path})
    if known is not None:
        assert published_set(item).name == known
        return
    with pytest.raises(DataError, match="no published set is known by this path's end"):
        published_set(item)


def test_a_mix_of_sets_keeps_their_shares() -> None:
    known = published_sets()
    captions, text = known["ALLaVA-Caption-LAION-4V.json"], known["Evol-Instruct-GPT4-Turbo-143K.json"]
    drawn = published_mix([(captions, 3000), (text, 1000)]).sample(4000, max_tokens=4096)
    without = sum(item.num_images == 0 for item in drawn)
    assert without == pytest.approx(1000, rel=0.1)
