"""Every preset of ablations: it loads, all its cells are valid configs, and it says what it asks."""

from __future__ import annotations

import math
import re

import pytest

from prismcap.configs.load import PRESETS, load_ablation, load_config, load_prism, presets
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.configs.schema.prism import PrismConfig
from prismcap.configs.schema.run import RunConfig
from prismcap.train.ablate.expand import Cell, expand

FOLDER = "ablations/"
NAMES = [name for name in presets() if name.startswith(FOLDER)]
TINY = [name for name in NAMES if name.startswith(f"{FOLDER}tiny/")]
OF_PAPERS = {
    "connector": ["mlp", "linear", "qformer", "resampler", "patch_concat"],
    "vision_encoder": ["siglip", "clip", "dinov2"],
    "resolution": ["px224", "px336", "tiles"],
    "feature_layer": ["before_last", "last"],
    "freezing": ["frozen", "upper_half", "whole", "whole_decayed"],
    "text_data_share": ["twice", "none", "once", "four_times"],
    "stage1_skipped": ["two_stage", "skipped", "merged"],
    "caption_or_qa": ["captions", "questions", "both"],
    "llm_size": ["internlm2_1_8b", "internlm2_7b", "internlm2_20b"],
    "data_size": ["all", "half", "fifth", "tenth"],
    "response_format": ["prompted", "bare", "question_answer"],
    "prism_instructions": ["human1", "human2", "gpt1", "gpt2", "cot", "decompose"],
}
LADDER = ["llava", "vqa", "format", "mlp", "knowledge", "regions", "resolution", "gqa", "text", "llm"]


def cells(name: str) -> list[Cell]:
    return expand(load_ablation(f"{FOLDER}{name}"), name)


def by_level(name: str) -> dict[str, RunConfig]:
    found: dict[str, RunConfig] = {}
    for cell in cells(name):
        assert isinstance(cell.config, RunConfig)
        (level,) = cell.levels.values()
        found[level] = cell.config
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_valid_config(name: str) -> None:
    ablation = load_ablation(name)
    made = expand(ablation, name)
    of_list = 1 + sum(len(axis.levels) - 1 for axis in ablation.axes.values())
    assert ablation.combine == "list" and len(made) == of_list * len(ablation.seeds)
    assert ablation.question.endswith("?") and ablation.figures
    assert all(axis.question.endswith("?") for axis in ablation.axes.values())


def test_the_papers_ablations_are_there() -> None:
    for name, levels in OF_PAPERS.items():
        assert [list(axis.levels) for axis in load_ablation(FOLDER + name).axes.values()] == [levels]
    known = {*OF_PAPERS, "llava15_ladder", "scenes"}
    assert {name.removeprefix(FOLDER) for name in NAMES if name not in TINY} == known


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TINY])
def test_sources_are_said(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    assert name == "ablations/scenes" or re.search(r"\[P\]", text)
    assert text.startswith("# ")


def test_the_ladder_ends_where_llava15_does() -> None:
    """Each rung keeps the ones before, and the last is LLaVA-1.5-13B, but for what it is measured on."""
    (axis,) = load_ablation("ablations/llava15_ladder").axes.values()
    assert axis.cumulative and list(axis.levels) == LADDER
    rungs = by_level("llava15_ladder")
    assert rungs["llava"].model.connector.name == rungs["format"].model.connector.name == "linear"
    assert all(rungs[level].model.connector.name == "mlp" for level in LADDER[3:])
    rows = [len(rungs[level].stages["instruct"].data.mix) for level in LADDER]
    assert rows == [1, 2, 2, 2, 3, 4, 4, 5, 1, 1]
    path = rungs["resolution"].model.vision_encoder.options["path"]
    assert (
        path == "openai/clip-vit-large-patch14-336" != rungs["regions"].model.vision_encoder.options["path"]
    )
    last, whole = rungs["llm"], load_recipe("llava15_13b")
    assert (last.model, last.stages) == (whole.model, whole.stages)


def load_recipe(name: str) -> RunConfig:
    return load_config(f"recipes/{name}")


@pytest.mark.parametrize(
    ("ablation", "level", "recipe"),
    [
        ("connector", "mlp", "llava15_7b"),
        ("resolution", "px336", "llava15_7b"),
        ("resolution", "tiles", "llava15_7b_hd"),
        ("llm_size", "internlm2_7b", "prismcaptioner_7b"),
        ("feature_layer", "before_last", "llava_v1_7b"),
        ("freezing", "frozen", "prismcaptioner_2b"),
    ],
)
def test_levels_are_the_recipes(ablation: str, level: str, recipe: str) -> None:
    made, whole = by_level(ablation)[level], load_recipe(recipe)
    assert (made.model, made.stages) == (whole.model, whole.stages)


@pytest.mark.parametrize("name", ["text_data_share", "caption_or_qa"])
def test_levels_of_data_take_equal_steps(name: str) -> None:
    """An epoch of prismcaptioner_2b: 505,588 + 202,552 captions and 2 x 143,000 texts, 128 a step."""
    steps = {made.stages["instruct"].schedule.max_steps for made in by_level(name).values()}
    assert steps == {math.ceil((505_588 + 202_552 + 2 * 143_000) / 128)}


def test_the_six_wordings_differ_in_the_wording_alone() -> None:
    paper = load_prism("prism/paper")
    keys = []
    for cell in cells("prism_instructions"):
        assert isinstance(cell.config, PrismConfig) and cell.kind == "prism"
        (generic,) = cell.config.instructions.values()
        keys.append(generic.key)
        same = {"instructions": paper.instructions, "name": paper.name, "output_dir": paper.output_dir}
        assert cell.config.model_copy(update=same) == paper
    assert keys == OF_PAPERS["prism_instructions"]


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_twin_asks_what_its_ablation_asks(name: str) -> None:
    twin, whole = load_ablation(name), load_ablation(f"{FOLDER}{name.removeprefix(FOLDER + 'tiny/')}")
    assert twin.question == whole.question and twin.axes.keys() == whole.axes.keys()
    for axis, of_twin in twin.axes.items():
        of_whole = whole.axes[axis]
        assert (of_twin.question, of_twin.cumulative) == (of_whole.question, of_whole.cumulative)
        assert list(of_twin.levels) == [level for level in of_whole.levels if level in of_twin.levels]


# ---- the study


def study() -> AblationConfig:
    return load_ablation("ablations/scenes")


def test_the_study_has_what_was_promised() -> None:
    ablation = study()
    assert len(ablation.axes) >= 3 and len(ablation.seeds) >= 3 and ablation.launch.parallel == 2
    assert {"stage1", "instruction_data"} <= ablation.axes.keys()
    assert ablation.figures[0] == "unseen_pairs.all_right"
    for cell in expand(ablation):
        assert isinstance(cell.config, RunConfig)
        assert cell.config.num_threads == 1
        assert all(stage.data.num_workers == 0 for stage in cell.config.stages.values())


def test_levels_of_the_study_see_equal_samples() -> None:
    """Steps of every stage are the baseline's, but where there is no first one and the second takes over."""
    by_axis: dict[str, dict[str, RunConfig]] = {}
    for cell in expand(study()):
        assert isinstance(cell.config, RunConfig)
        for axis, level in cell.levels.items():
            by_axis.setdefault(axis, {}).setdefault(level, cell.config)
    base = next(iter(by_axis["stage1"].values()))
    for axis, levels in by_axis.items():
        for level, config in levels.items():
            if (axis, level) == ("stage1", "none"):
                continue
            steps = {name: stage.schedule.max_steps for name, stage in config.stages.items()}
            assert steps == {name: stage.schedule.max_steps for name, stage in base.stages.items()}, level
    shares = {level: caption_share(config) for level, config in by_axis["instruction_data"].items()}
    assert shares == pytest.approx({"mixed": 0.5, "captions": 0.9, "questions": 0.1})


def caption_share(config: RunConfig) -> float:
    counts = {True: 0, False: 0}
    for item in config.stages["instruct"].data.mix:
        tasks = item.options.get("tasks", {"short": 1})
        assert set(tasks) in ({"short"}, {"place", "yes_no"})
        counts["short" in tasks] += item.options["num_scenes"] * sum(tasks.values()) * item.repeat
    return counts[True] / sum(counts.values())


def test_the_study_is_trained_and_measured_on_the_same_words() -> None:
    """And never on a pair that it is measured on: object_limit decides which words there are."""
    limits = set()
    for cell in expand(study()):
        assert isinstance(cell.config, RunConfig) and cell.config.evaluation is not None
        sources = [item for stage in cell.config.stages.values() for item in stage.data.mix]
        sources += [split.source for split in cell.config.evaluation.splits.values()]
        limits |= {source.options["object_limit"] for source in sources}
        assert all(source.options.get("split", "train") == "train" for source in sources[:-1])
    assert len(limits) == 1
