"""What the benchmarks print and write, at toy sizes. Never what took how long."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import to_yaml
from prismcap.configs.schema.run import RunConfig
from prismcap.scripts.commands.bench import bench
from prismcap.train.bench import memory, pairs
from prismcap.train.bench import train as bench_train
from prismcap.train.bench.cases import GenerateCase, LossCase, TrainCase
from prismcap.train.bench.data import LoaderFigures, measure, report
from prismcap.train.bench.race import BenchError
from prismcap.train.bench.rows import rows_report, run_rows
from prismcap.train.bench.train import Plan, choose, ratios

TOY = ("--quick", "--samples", "4", "--visual-tokens", "16", "--row-tokens", "256", "--threads", "1")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench, arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_the_training_table_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    which = ("--mix", "stage1_pairs", "--stage", "align", "--rows", "1,2", "--repeats", "2")
    done = invoke("train", *TOY, *which, "--out", str(path))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    for words, cut in (("ours ", "packed"), ("(a) LLaVA ", "padded"), ("(a+) LLaVA, tuned ", "padded")):
        assert sum(line.startswith(words) and cut in line for line in lines) == 1
    assert done.output.count("ours / (a) LLaVA ") == done.output.count("ours / (a+) LLaVA, tuned") == 1
    assert "stage1_pairs · align" in done.output and "scaled down from 576" in done.output
    written = json.loads(path.read_text())
    assert written["bench"] == "train" and written["versions"]["torch"]
    (one,) = written["results"]
    assert set(one["steps"]) == {"ours", "llava", "llava_tuned"}
    counts = {
        tuple((step["num_tokens"], step["num_target_tokens"]) for step in steps)
        for steps in one["steps"].values()
    }
    assert len(counts) == 1  # every contender had the same samples
    assert len(one["rates"]) == 2
    assert {tried["rows"] for tried in one["pilots"]["llava"]} == {1, 2}


@pytest.mark.usefixtures("in_process")
def test_losses_that_differ_end_the_comparison(case: TrainCase, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismcap.train.bench import llava

    made = llava.padded
    monkeypatch.setattr(
        llava, "padded", lambda *given: (b := made(*given)) | {"labels": b["labels"].roll(1, dims=1)}
    )
    with pytest.raises(BenchError, match="do not compute the same loss"):
        bench_train.run_case(case, Plan(repeats=1, rows=(2,), try_compile=False), lambda _: None)


@pytest.mark.usefixtures("in_process")
def test_a_size_that_does_not_fit_is_left_out_and_said(
    case: TrainCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismcap.train.bench import llava

    plan = Plan(repeats=1, rows=(1, 4), try_compile=False)
    at_4_rows = max(len(s) for s in bench_all(case)[:4]) * 4
    monkeypatch.setattr(llava, "available_mb", lambda: at_4_rows * 512 * 16 * 2 / 1e6 - 0.01)
    spec, tries = choose(case, plan, "llava", lambda _: None)
    assert spec["rows"] == 1
    assert ["unfit" in one for one in tries] == [False, True]
    monkeypatch.setattr(llava, "available_mb", lambda: 0.0)
    with pytest.raises(BenchError, match="no size of micro-batch can run here: 4 padded rows"):
        choose(case, plan, "llava", lambda _: None)


def bench_all(case: TrainCase) -> list[Any]:
    from prismcap.train.bench.samples import all_samples

    return all_samples(case)


def test_a_ratio_is_taken_within_a_repeat() -> None:
    def steps(*times: float, memory_mb: float) -> list[dict[str, Any]]:
        return [{"time_s": time, "peak_memory_mb": memory_mb} for time in times]

    # the machine became ten times slower in between
    (one,) = ratios({"ours": steps(1, 10, 1, memory_mb=50), "llava": steps(2, 20, 3, memory_mb=200)})
    assert (one.speed, one.lowest, one.highest, one.memory) == (2, 2, 3, 0.25)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_generates_what_single_prompts_do(precision: str) -> None:
    values = {"size": "tiny", "num_prompts": 5, "visual_tokens": 16, "max_new_tokens": 6}
    case = GenerateCase.model_validate(values | {"precision": precision})
    outcome = pairs.run_generate(case, 1)
    batch, single = outcome.steps["batch"][0], outcome.steps["one_by_one"][0]
    assert [len(tokens) for tokens in batch["tokens"]] == [6] * 5
    if precision == "fp32":
        assert batch["tokens"] == single["tokens"]
        assert "100 % of the tokens are equal" in pairs.generate_report(outcome)


def test_our_loss_is_that_of_all_logits_in_less_memory() -> None:
    """In real processes. Memory, unlike time, does not depend on what else the machine does."""
    case = LossCase(vocabulary=20_000, hidden=64, positions=512)
    outcome = pairs.run_loss(case, 1)
    ours, full = outcome.steps["ours"][0], outcome.steps["full"][0]
    assert ours["loss"] == pytest.approx(full["loss"], rel=1e-4)
    logits_mb = 4 * 20_000 * 512 / 1e6
    assert ours["extra_memory_mb"] < logits_mb < full["extra_memory_mb"]
    printed = pairs.loss_report(outcome)
    assert "ours, supervised positions" in printed and "cross entropy of all logits" in printed


@pytest.mark.usefixtures("in_process")
def test_another_loss_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from prismcap.train.bench import loss

    exact = loss.token_loss
    monkeypatch.setattr(loss, "token_loss", lambda hidden, target, head: exact(hidden, target.roll(1), head))
    with pytest.raises(BenchError, match="same loss"):
        pairs.run_loss(LossCase(vocabulary=50, hidden=8, positions=64), 1)


@pytest.mark.usefixtures("in_process")
def test_row_lengths_are_raced_on_the_same_samples() -> None:
    case = TrainCase(
        mix="mix665k", size="tiny", precision="fp32", samples_per_step=6, visual_tokens=16, max_tokens=100
    )
    outcome = run_rows(case, (128, 512), repeats=2)
    assert list(outcome.steps) == [128, 512]
    short, long = outcome.steps[128], outcome.steps[512]
    assert [step["num_tokens"] for step in short] == [step["num_tokens"] for step in long]
    assert [step["loss"] for step in short] == pytest.approx([step["loss"] for step in long], rel=1e-4)
    assert any(one["num_positions"] != other["num_positions"] for one, other in zip(short, long, strict=True))
    printed = rows_report(outcome)
    assert "128" in printed and "512" in printed and "up to 100 tokens" in printed
    with pytest.raises(ConfigError, match=r"--row-tokens 64.*--max-tokens"):
        run_rows(case, (64, 128), repeats=1)


def test_the_loader_is_counted(make_config: Callable[..., RunConfig]) -> None:
    config = make_config()
    figures = measure(config, "instruct", num_steps=3, step_time_s=0.001, repeats=2)
    assert figures.num_samples == 3 * 6
    assert len(figures.wait_shares) == len(figures.samples_per_s) == len(figures.tokens_per_s) == 2
    assert all(0 <= share <= 1 for share in figures.wait_shares)
    assert 0 <= figures.padding_share < 1


def test_the_loaders_figures_are_printed_with_their_spread() -> None:
    figures = LoaderFigures(5, 30, 2, (10.0, 30.0, 20.0), (100.0, 300.0, 210.0), 0.1, 0.5, (0.0, 0.5, 0.01))
    printed = report("tiny · instruct", figures)
    assert "5 steps · median (lowest .. highest) of 3 repeats" in printed
    assert "20.0 (10.0 .. 30.0) samples/s, 210 (100 .. 300) tokens/s" in printed
    assert "1.00 (0.00 .. 50.00) % of the time waiting behind a step of 0.5 s" in printed


def test_what_a_config_leaves_open_is_settled_for_the_loader(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    source = tmp_path / "open.yaml"
    config = make_config("stages.*.batch.row_tokens=0", "stages.*.precision=auto")
    source.write_text(to_yaml(config))
    done = invoke(*("data", str(source), "--steps", "2", "--step-time-s", "0.001", "--out", str(out)))
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())["results"]
    assert len(results["wait_shares"]) == 3 and results["num_samples"] == 2 * 6


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux alone")
def test_peak_memory_starts_anew() -> None:
    memory.restart_peak()
    before_mb = memory.peak_mb()
    held = torch.ones(25_000_000)
    assert held.sum() > 0
    del held
    with_tensor_mb = memory.peak_mb()
    assert with_tensor_mb - before_mb == pytest.approx(100, abs=30)
    memory.restart_peak()
    assert memory.peak_mb() < with_tensor_mb - 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--contenders", "ours,lava"), "Did you mean 'llava'"),
        (("train", "--mix", "mix666k"), "mix665k"),
        (("train", "--rows", "1,zero"), "--rows 1,zero"),
        (("train", "--visual-tokens", "500"), "--visual-tokens 500"),
        (("train", "--row-tokens", "300"), "--row-tokens"),
        (("data", "demo/scenes", "--stage", "alin"), "Did you mean 'align'"),
        (("data", "no/such"), "no/such"),
    ],
)
def test_a_bad_option_is_named_before_anything_runs(arguments: tuple[str, ...], words: str) -> None:
    done = invoke(*arguments)
    assert isinstance(done.exception, ValueError), done.output
    assert words in str(done.exception)


@pytest.mark.parametrize("arguments", [("train", "--size", "huge"), ("loss", "--supervised", "2"), ("race",)])
def test_a_mistake_on_the_command_line_is_named(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2
