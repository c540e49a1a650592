"""`prismcap prism` on the command line: a run with rules alone, its comparison, fusion, subset and TSV."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from prismcap.scripts.cli import cli

ROWS = """\
index\tquestion\tA\tB\tanswer\tcategory\treference\timage
1\tWhat is in the picture?\ttiger\tboat\tA\tthing\tA tiger.\t{image}
2\tWhat floats?\ttiger\tboat\tB\tthing\tA boat.\t1
3\tWhich colour is it?\tred\tblue\tA\tcolour\tIt is red.\t1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, format="PNG")
    image = base64.b64encode(stream.getvalue()).decode()
    (tmp_path / "things.tsv").write_text(ROWS.format(image=image))
    path = tmp_path / "prism.yaml"
    path.write_text(
        f"""
name: first
output_dir: {tmp_path / "runs"}
benchmarks: {{things: {{name: tsv, path: {tmp_path / "things.tsv"}}}}}
perceivers: {{reference: {{name: reference}}}}
reasoners: {{keyword: {{name: keyword}}, random: {{name: random}}}}
"""
    )
    return path


def prismcap(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Path:
    done = prismcap("prism", "run", config, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "reference" in done.output and "Report:" in done.output
    return tmp_path / "runs" / "first"


def test_a_run_prints_its_table_and_writes_its_files(run: Path) -> None:
    assert (run / "report.html").is_file()
    for name in ("config.yaml", "items.jsonl", "attribution.jsonl", "results.json", "results.csv"):
        assert (run / name).is_file(), name
    cells = json.loads((run / "results.json").read_text())["cells"]
    assert cells[0]["micro"]["rate"] == 1.0


def test_stages_run_alone(config: Path, tmp_path: Path) -> None:
    for stage in ("instruct", "perceive", "reason", "score", "report"):
        done = prismcap("prism", "run", config, "--stage", stage, "--device", "cpu")
        assert done.exit_code == 0, done.output
        assert (tmp_path / "runs/first/report.html").is_file() == (stage == "report")


def test_runs_are_compared_and_fused(run: Path, config: Path, tmp_path: Path) -> None:
    second = prismcap("prism", "run", config, "name=second", "seed=5", "--device", "cpu")
    assert second.exit_code == 0, second.output
    runs = [run, run.parent / "second"]
    compared = prismcap("prism", "compare", *runs, "--out", tmp_path / "side.html")
    assert compared.exit_code == 0, compared.output
    assert "McNemar" in compared.output and "detectable from" in compared.output
    assert (tmp_path / "side.html").is_file()
    assert json.loads((tmp_path / "side.json").read_text())["comparisons"]
    fused = prismcap("prism", "fuse", *runs, "--out", tmp_path / "fused.jsonl")
    assert fused.exit_code == 0, fused.output
    rows = [json.loads(line) for line in (tmp_path / "fused.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and rows[0]["text"].count("A tiger.") == 2
    # what was fused is a perceiver of the next run
    from_file = [f"perceivers={{fused: {{name: file, path: {tmp_path / 'fused.jsonl'}}}}}", "name=third"]
    third = prismcap("prism", "run", config, *from_file, "--device", "cpu")
    assert third.exit_code == 0, third.output


def test_a_subset_is_a_benchmark_again(run: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "ids.json"
    chosen = ("--benchmark", "things", "--out", out, "--reasoner", "keyword")
    done = prismcap("prism", "subset", run, *chosen)
    assert done.exit_code == 0, done.output
    assert "3 kept" in done.output  # the rule answers nothing blind
    override = f"benchmarks.things.ids_file={out}"
    again = prismcap("prism", "run", config, override, "name=sub", "--device", "cpu")
    assert again.exit_code == 0, again.output
    wrong = prismcap("prism", "subset", run, "--benchmark", "thing", "--out", out)
    assert "Did you mean 'things'" in str(wrong.exception)


def test_a_benchmark_is_written_and_read_again(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.tsv"
    done = prismcap("prism", "tsv", config, "things", out)
    assert done.exit_code == 0, done.output
    again = prismcap("prism", "run", config, f"benchmarks.things.path={out}", "--device", "cpu")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prism", "rum"], "Did you mean 'run'"),
        (["prsm"], "Did you mean 'prism'"),
        (["config", "shwo"], "Did you mean 'show'"),
        (["prism", "run", "demo/prims"], "Did you mean 'demo/prism'"),
        (["prism", "run", "demo/scenes"], "a run of training"),
        (["prism", "run", "demo/prism", "reasoners.keyword.nme=x"], "unknown key"),
        (["prism", "run", "demo/prism", "--retry-faild"], "No such option"),
        (["prism", "run", "demo/prism", "--stage", "percieve"], "perceive"),
        (["prism", "compare", "nowhere", "either"], "results.json"),
        (["prism", "tsv", "demo/prism", "scene", "out.tsv"], "Did you mean 'scenes'"),
        (["prism", "fuse", "nowhere"], "--out"),
    ],
)
def test_wrong_arguments_are_told_clearly(
    arguments: list[str], says: str, refused: Callable[[list[str]], str]
) -> None:
    assert says in refused(arguments)


def test_configs_of_prism_are_shown_and_validated(config: Path) -> None:
    shown = prismcap("config", "show", config, "seed=7")
    assert shown.exit_code == 0 and "seed: 7" in shown.output and "perceivers:" in shown.output
    assert prismcap("config", "validate", config, "prism/released").exit_code == 0
    assert "trains nothing" in str(prismcap("config", "show", config, "--deepspeed").exception)


def test_a_run_of_ranks_scores_once(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert prismcap("prism", "run", config, "--device", "cpu").exit_code == 0
    run = tmp_path / "runs" / "first"
    assert not (run / "results.json").exists() and (run / "reason").is_dir()
