"""The time model: its one constant fitted on LLaVA-1.5-7B's published hours, tested on 13B's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.model.build import build_captioner
from prismcap.scripts.cli import cli
from prismcap.train.plan.duration import lengths_of_mix
from prismcap.train.plan.gpus import A100_MFU, find_gpu
from prismcap.train.plan.memory import StageMemory
from prismcap.train.plan.report import Machine, stage_duration

# facts of arXiv 2310.03744 and the LLaVA repository, on 8 x A100-80G
PUBLISHED_HOURS = {"7b": {"align": 3.5, "instruct": 10.0}, "13b": {"align": 6.0, "instruct": 20.0}}
PUBLISHED_STEPS = {"align": 2181, "instruct": 5198}
MIXES = {"align": "stage1_pairs", "instruct": "mix665k"}


@pytest.fixture(scope="module")
def hours_at_full_rate(stage_memory: Callable[[str, str], StageMemory]) -> dict[str, dict[str, float]]:
    """By size and stage, at MFU 1; the numbers of steps are the published ones."""
    found: dict[str, dict[str, float]] = {}
    for size, stages in PUBLISHED_HOURS.items():
        for name in stages:
            memory = stage_memory(f"recipes/llava15_{size}", name)
            lengths = lengths_of_mix(MIXES[name], memory.captioner, memory.stage)
            took = stage_duration(memory, lengths, Machine(find_gpu("A100-80G"), 8, mfu=1.0))
            assert took.num_steps == pytest.approx(PUBLISHED_STEPS[name], abs=1)
            found.setdefault(size, {})[name] = took.hours
    return found


@pytest.mark.slow
def test_the_constant_is_the_fit(hours_at_full_rate: dict[str, dict[str, float]]) -> None:
    fitted = sum(hours_at_full_rate["7b"].values()) / sum(PUBLISHED_HOURS["7b"].values())
    assert pytest.approx(fitted, abs=0.005) == A100_MFU


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_the_13b_times_follow_from_it(hours_at_full_rate: dict[str, dict[str, float]], stage: str) -> None:
    hours = hours_at_full_rate["13b"][stage] / A100_MFU
    assert hours == pytest.approx(PUBLISHED_HOURS["13b"][stage], rel=0.25)


@pytest.mark.slow
def test_the_constant_holds_in_both_stages(hours_at_full_rate: dict[str, dict[str, float]]) -> None:
    for stage, published in PUBLISHED_HOURS["7b"].items():
        assert hours_at_full_rate["7b"][stage] / A100_MFU == pytest.approx(published, rel=0.25)


def test_the_command_prints_a_plan(world: Path) -> None:
    arguments = ["plan", str(world / "config.yaml"), "--gpu", "A100-80G", "--num-gpus", "8"]
    overrides = ["stages.align.schedule={epochs: 1}", "stages.align.batch.samples_per_step=256"]
    lengths = ["--lengths", "align=stage1_pairs"]
    done = CliRunner().invoke(cli, [*arguments, *overrides, *lengths], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for words in ("ZeRO-3", "optimiser", "most rows that fit", "GPU-hours", "MFU 0."):
        assert words in done.output
    assert "2,181 steps" in done.output and "7 steps" in done.output
    assert "23 samples of its data" in done.output
    gone = ["stages.*.data.mix=[{name: llava_json, path: gone.json}]"]
    done = CliRunner().invoke(cli, [*arguments, *gone], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.count("time: unknown") == 2


def test_max_text_tokens_shortens_the_answers_of_a_length_mix(world: Path) -> None:
    overrides = ["stages.align.data.max_tokens=2048", "stages.align.batch.row_tokens=2048"]
    config = load_config(world / "config.yaml", overrides)
    captioner, stage = build_captioner(config.model), config.stages["align"]
    whole = lengths_of_mix("mix665k", captioner, stage)
    data = stage.data.model_copy(update={"max_text_tokens": 32})
    short = lengths_of_mix("mix665k", captioner, stage.model_copy(update={"data": data}))
    assert max(whole.targets) > 32 and short.targets == tuple(min(target, 32) for target in whole.targets)
    lost = [all - kept for all, kept in zip(whole.targets, short.targets, strict=True)]
    assert short.tokens == tuple(all - less for all, less in zip(whole.tokens, lost, strict=True))


@pytest.mark.parametrize("name", ["A100", "Z9-80G", "A100-80"])
def test_an_unknown_gpu_lists_the_known(name: str) -> None:
    with pytest.raises(ConfigError, match="as A100-80G"):
        find_gpu(name)
