"""The whole pipeline with the project's own parts: a tiny captioner, descriptions from a file, rules."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.prism import PrismConfig
from prismcap.data.schema import ImageRef
from prismcap.evaluate.benchmarks._write_tsv import write_tsv
from prismcap.evaluate.prism.questions import build_benchmark
from prismcap.evaluate.prism.run import run_dir_of, run_prism
from prismcap.evaluate.prism.table import results_table

Make = Callable[..., PrismConfig]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_of_stand_ins(make_config: Make) -> None:
    config = make_config(
        cells=[
            {},
            {"perceivers": ["blind"]},
            {"reasoners": ["end_to_end"]},
        ],
        prices={"reading": {"tokens_in": 1.0, "tokens_out": 10.0}},
    )
    results = run_prism(config)
    assert results is not None
    run_dir = run_dir_of(config)
    assert json.loads((run_dir / "results.json").read_text()) == results
    cells = {(cell["perceiver"], cell["reasoner"]): cell for cell in results["cells"]}
    assert {key: cell["micro"]["rate"] for key, cell in cells.items()} == {
        ("seeing", "reading"): 1.0,
        ("blind", "reading"): 0.0,
        ("seeing", "end_to_end"): 1.0,
    }
    assert cells["blind", "reading"]["refusals"]["expected"]["rate"] == 0.25
    cost = cells["seeing", "reading"]["cost"]
    assert (cost["perceive"]["requests"], cost["reason"]["requests"]) == (6, 12)
    assert cost["perceive"]["dollars"] is None
    assert cost["reason"]["dollars"] == pytest.approx(12 * (10 * 1.0 + 5 * 10.0) / 1e6)
    items = lines(run_dir / "items.jsonl")
    assert len(items) == 36
    causes = lines(run_dir / "attribution.jsonl")
    assert len(causes) == 12 and {row["cause"] for row in causes} == {"right"}
    assert sum(sum(row["causes"].values()) for row in results["attribution"]) == 12
    assert all((run_dir / row["picture"]).is_file() for row in items)
    assert results["about"]["complete"]
    with (run_dir / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["micro.rate"]) for row in table] == [cell["micro"]["rate"] for cell in results["cells"]]
    assert (run_dir / "report.html").stat().st_size > 1000
    assert "seeing" in results_table(results)


def test_failures_are_wrong_and_make_the_results_incomplete(make_config: Make) -> None:
    config = make_config(benchmark={"unreadable": (2,)})
    results = run_prism(config, ["instruct", "perceive", "reason", "score"])
    assert results is not None and not results["about"]["complete"]
    rows = [row for row in lines(run_dir_of(config) / "items.jsonl") if row["perceiver"] == "seeing"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["id"] for row in failed] == ["4", "5"]
    assert {row["error"] for row in failed} == {"perceive: picture 2: cannot be decoded"}
    assert all(row["description"] is None and not row["right"] for row in failed)
    assert "--retry-failed" in results_table(results)


def test_score_and_report_say_what_they_need(make_config: Make) -> None:
    config = make_config()
    with pytest.raises(ConfigError, match="--stage perceive"):
        run_prism(config, ["score"])
    with pytest.raises(ConfigError, match="--stage score"):
        run_prism(config, ["report"])
    run_prism(config, ["perceive"])
    with pytest.raises(ConfigError, match="--stage reason"):
        run_prism(config, ["score"])


def test_nothing_is_drawn_or_loaded_where_everything_is_known(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    first = run_prism(config, ["instruct", "perceive", "reason", "score"])
    plain, seeing, reading = (
        sys.modules[f"prism_fakes.{name}"] for name in ("benchmark", "perceiver", "reasoner")
    )

    def refuse(*_: object) -> None:
        raise AssertionError("a warm run needs none of this")

    monkeypatch.setattr(plain.Plain, "load", refuse)
    monkeypatch.setattr(seeing.Seeing, "describe", refuse)
    monkeypatch.setattr(reading.Reading, "answer", refuse)
    again = run_prism(config, ["instruct", "perceive", "reason", "score"])
    assert first is not None and again is not None
    assert again["cells"] == first["cells"]


@pytest.fixture
def captioner(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    return make_run(tmp_path / "captioner")


def test_the_projects_own_parts(captioner: Path, make_config: Make, tmp_path: Path) -> None:
    """A TSV written from questions that have references, a captioner with random weights, a file."""
    tsv = tmp_path / "plain.tsv"
    write_tsv(build_benchmark(make_config(), "plain"), tsv)
    described = tmp_path / "described.jsonl"
    colours = ("red", "green", "blue", "black")
    rows = [
        {"benchmark": "plain", "id": str(number), "text": f"It is {colours[number // 2 % 4]}."}
        for number in range(12)
    ]
    described.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        benchmarks={"plain": {"name": "tsv", "path": str(tsv)}},
        perceivers={
            "captioner": {"name": "captioner", "model": str(captioner)},
            "blank": {"name": "captioner", "model": str(captioner), "picture": "blank"},
            "written": {"name": "file", "path": str(described)},
            "reference": {"name": "reference"},
        },
        reasoners={"keyword": {"name": "keyword"}, "random": {"name": "random"}},
        cells=[{"reasoners": ["keyword"]}, {"perceivers": ["blind"]}],
        instructions={"short": {"text": "Describe the picture."}},
        decoding={"perceive": {"max_new_tokens": 6}},
        local={"batch_size": 4},
    )
    results = run_prism(config)
    assert results is not None
    rate = {(cell["perceiver"], cell["reasoner"]): cell["micro"]["rate"] for cell in results["cells"]}
    assert rate["written", "keyword"] == rate["reference", "keyword"] == 1.0
    assert rate["captioner", "keyword"] < 1.0 and rate["blind", "keyword"] == 0.0
    assert (run_dir_of(config) / "report.html").is_file()
    items = [row for row in lines(run_dir_of(config) / "items.jsonl") if row["perceiver"] == "blank"]
    assert len({row["description"] for row in items}) == 1
    again = run_prism(config, ["instruct", "perceive", "reason", "score"])
    assert again is not None and again["cells"] == results["cells"]


def test_a_thumbnail_is_the_picture(make_config: Make) -> None:
    from PIL import Image

    config = make_config(cells=[{"perceivers": ["blind"]}])
    run_prism(config, ["reason", "score"])
    benchmark = build_benchmark(config, "plain")
    row = lines(run_dir_of(config) / "items.jsonl")[0]
    image: ImageRef = benchmark[0].images[0]
    with Image.open(run_dir_of(config) / row["picture"]) as thumbnail:
        drawn = thumbnail.convert("RGB").getpixel((4, 4))
    assert isinstance(drawn, tuple)
    wanted = image.load().getpixel((4, 4))
    assert isinstance(wanted, tuple)
    assert max(abs(a - b) for a, b in zip(drawn, wanted, strict=True)) < 8


def test_a_question_with_its_own_row_shares_none_with_its_picture(make_config: Make, tmp_path: Path) -> None:
    """Two questions about one picture, and a file with a row of one of them and a row of the picture."""
    image = build_benchmark(make_config(), "plain")[0].images[0]
    path = tmp_path / "mixed.jsonl"
    rows = [
        {"benchmark": "plain", "id": "1", "text": "Of the question."},
        {"fingerprint": image.fingerprint(), "text": "Of the picture."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        benchmark={"num_pictures": 1},
        perceivers={"written": {"name": "file", "path": str(path)}},
        reasoners={"keyword": {"name": "keyword"}},
        cells=[{}],
    )
    run_prism(config, ["perceive", "reason", "score"])
    items = lines(run_dir_of(config) / "items.jsonl")
    assert [row["description"] for row in items] == ["Of the picture.", "Of the question."]
