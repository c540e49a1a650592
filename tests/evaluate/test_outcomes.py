"""outcomes.jsonl and caption metrics of a run: each item's part of each figure, in step with the figures."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from test_evaluate_run import oracle

import prismcap.evaluate.asking as asking
import prismcap.evaluate.run as module
from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.load import load_config
from prismcap.data.scenes.text import short_caption
from prismcap.evaluate.inference import Request
from prismcap.evaluate.results import write_results
from prismcap.evaluate.run import BLANK, evaluate_run
from prismcap.evaluate.table import metrics_table
from prismcap.scripts.commands.evaluate import evaluate

WORDS = {"name": "counted_metrics.words"}


@pytest.fixture(scope="module", autouse=True)
def counted(drawn_scenes: str) -> str:
    """Beside the source of the tests' own, and so found with it."""
    return drawn_scenes


@pytest.fixture(scope="module")
def measured(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("outcomes") / "tiny", metrics=[WORDS])
    evaluate_run(run)
    return run


@pytest.fixture
def copy(measured: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(measured, tmp_path / "copy"))


def configure(run: Path, **evaluation: Any) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["evaluation"].update(evaluation)
    (run / "config.yaml").write_text(yaml.safe_dump(values))


def figures(run: Path) -> dict[str, dict[str, Any]]:
    """Of the splits, by <split>.<figure>."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    splits = [key for key in metrics if key not in ("about", "align")]
    return {f"{split}.{name}": value for split in splits for name, value in metrics[split].items()}


def outcomes(run: Path) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for line in (run / "outcomes.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record["figure"]].append(record)
    return dict(found)


def captions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "captions.jsonl").read_text().splitlines()]


def check_in_step(run: Path) -> None:
    """Every figure has the items that it counts, each once, and what they are worth makes the figure."""
    values, found = figures(run), outcomes(run)
    assert list(found) == list(values)
    pictures = {
        (row["split"], row["id"]): row["picture"] for row in captions(run) if row["control"] == "none"
    }
    for name, records in found.items():
        assert all(set(record) == {"figure", "id", "cluster", "value"} for record in records)
        assert len({record["id"] for record in records}) == len(records) == values[name]["n"]
        for record in records:
            split = name.split(".")[0]
            assert Path(pictures[split, record["id"]]).stem == record["cluster"], "the item's own picture"
        if not name.endswith(".precision"):
            value = values[name].get("rate", values[name].get("mean"))
            assert sum(record["value"] for record in records) / len(records) == pytest.approx(value, abs=1e-6)


def test_outcomes_are_what_the_figures_are_made_of(measured: Path) -> None:
    check_in_step(measured)
    found = outcomes(measured)
    own = [row for row in captions(measured) if (row["control"], row["split"]) == ("none", "unseen_pairs")]
    rows = {row["id"]: row for row in own}
    for record in found["unseen_pairs.places_right"]:
        assert record["value"] == float(rows[record["id"]]["flags"]["places_right"])
    for record in found["unseen_pairs.words.words"]:
        assert record["value"] == len(rows[record["id"]]["generated"].split())


def test_caption_metrics_stand_beside_the_other_figures(measured: Path) -> None:
    metrics = json.loads((measured / "metrics.json").read_text())
    assert metrics["about"]["metrics"] == {"words": "words lower=False"}
    for split, kinds in (("unseen_pairs", 2), ("unseen_stamps", 1)):
        for name, key, unit in (("words", "mean", "words"), ("exact", "rate", "share")):
            figure = metrics[split][f"words.{name}"]
            assert figure["unit"] == unit and figure["n"] == kinds * (12 if kinds == 2 else 10)
            assert set(figure["controls"]) == {"blank", "shuffled"}
            for of in (figure, *figure["controls"].values()):
                assert of["low"] <= of[key] <= of["high"]
            assert metrics["about"]["notes"][f"{split}.words.{name}"]
    assert metrics["about"]["parts_s"]["metrics"] >= 0
    table = metrics_table(metrics)
    assert "unseen_pairs.words.exact" in table and "unseen_pairs.words.words: " in table
    assert " words (" in table and "; blank " in table


@pytest.mark.usefixtures("loaded_once")
def test_metrics_of_a_model_that_sees_fall_with_the_picture(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(request: Request) -> str:
        (image,) = request.prompt.images
        return "nothing" if image is BLANK else short_caption(image.graph)  # type: ignore[attr-defined]

    monkeypatch.setattr(asking, "generate_texts", oracle(seen))
    found = evaluate_run(copy)["unseen_pairs"]
    exact = found["words.exact"]
    assert (exact["rate"], exact["higher_is_better"]) == (1.0, True)
    assert {name: control["rate"] for name, control in exact["controls"].items()} == {
        "blank": 0.0,
        "shuffled": 0.0,
    }
    assert found["words.precision"]["controls"]["shuffled"]["rate"] < found["words.precision"]["rate"] == 1.0
    assert found["words.words"]["controls"]["blank"]["mean"] == 1.0
    check_in_step(copy)


def test_equal_items_have_equal_ids_and_pictures(
    measured: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    again = make_run(tmp_path / "again", metrics=[WORDS])
    evaluate_run(again, splits=["unseen_stamps"])
    first, second = outcomes(measured), outcomes(again)
    assert second == {name: of for name, of in first.items() if name.startswith("unseen_stamps.")}


@pytest.mark.usefixtures("loaded_once")
def test_a_split_measured_again_takes_its_outcomes_along(copy: Path) -> None:
    whole = (copy / "outcomes.jsonl").read_bytes()
    evaluate_run(copy, splits=["unseen_stamps"], limit=4)
    check_in_step(copy)
    assert len(outcomes(copy)["unseen_stamps.all_right"]) == 4
    evaluate_run(copy, missing=True)  # what was limited
    check_in_step(copy)
    assert (copy / "outcomes.jsonl").read_bytes() == whole
    assert evaluate_run(copy, missing=True)["about"]["metrics"] == {"words": "words lower=False"}
    assert (copy / "outcomes.jsonl").read_bytes() == whole


@pytest.mark.usefixtures("loaded_once")
def test_figures_of_before_there_were_outcomes_are_measured_again(copy: Path) -> None:
    (copy / "outcomes.jsonl").unlink()
    watched: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        measure = module.measure_split
        patch.setattr(
            module, "measure_split", lambda *args: watched.append(args[2][0].split) or measure(*args)
        )
        patch.setattr(module, "stage_caption_loss", lambda *_: pytest.fail("it has no outcomes"))
        evaluate_run(copy, missing=True)
    assert watched == ["unseen_pairs", "unseen_stamps"]
    check_in_step(copy)


@pytest.mark.usefixtures("loaded_once")
def test_figures_of_another_metric_than_today_s_are_measured_again_or_go(copy: Path) -> None:
    lower = [{**WORDS, "lower": True}]
    configure(copy, metrics=lower)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "stage_caption_loss", lambda *_: pytest.fail("it has no metrics"))
        again = evaluate_run(copy, missing=True)
    assert again["about"]["metrics"] == {"words": "words lower=True"}
    assert "words.exact" in again["unseen_pairs"] and "words.exact" in again["unseen_stamps"]
    check_in_step(copy)
    configure(copy, metrics=[WORDS])
    one = evaluate_run(copy, splits=["unseen_stamps"])
    assert "words.exact" in one["unseen_stamps"] and "place" in one["unseen_pairs"]
    assert not [name for name in one["unseen_pairs"] if "." in name], "figures of another identity"
    assert not [name for name in one["about"]["notes"] if name.startswith("unseen_pairs.words.")]
    check_in_step(copy)


def test_outcomes_of_other_weights_and_splits_go(tmp_path: Path) -> None:
    def write(weights: str, split: str, expected: tuple[str, ...] = ("a", "b")) -> list[str]:
        record = {"figure": f"{split}.x", "id": "1\u2028", "cluster": "p", "value": 1.0}
        about = {"weights": weights, "notes": {}}
        options: dict[str, Any] = {"expected": expected, "quick": False, "limited": False}
        write_results(tmp_path, about, {split: {"x": {}}}, [], outcomes=[record], **options)
        return list(outcomes_by_newline(tmp_path))

    assert write("w", "a") == ["a.x"]
    assert write("w", "b") == ["a.x", "b.x"]
    assert write("w", "a") == ["b.x", "a.x"], "once, not twice"
    assert write("w", "a", expected=("a",)) == ["a.x"], "the config has no b any more"
    assert write("w", "b") == ["a.x", "b.x"]
    assert write("other", "b") == ["b.x"]


def outcomes_by_newline(run: Path) -> list[str]:
    """A line separator inside of a text ends no line."""
    lines = (run / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["figure"] for line in lines if line]


@pytest.mark.usefixtures("loaded_once")
def test_a_metric_that_cannot_run_is_named_before_any_work(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_split", lambda *_: pytest.fail("work began"))
    monkeypatch.setattr(module, "stage_caption_loss", lambda *_: pytest.fail("work began"))
    configure(copy, metrics=[{"name": "counted_metrics.needy", "broken": "no program"}])
    with pytest.raises(DataError, match=r"evaluation\.metrics\.0: the program is not there"):
        evaluate_run(copy)
    configure(copy, metrics=[WORDS, {"name": "counted_metrics.needy", "needs": ["answer"]}])
    with pytest.raises(
        ConfigError, match=r"metrics\.1: counted_metrics\.needy needs answer, and .*references"
    ):
        evaluate_run(copy)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([{"name": "blu"}], r"evaluation\.metrics\.0: no metric is called 'blu'"),
        ([{**WORDS, "lowr": 1}], r"evaluation\.metrics\.0\.lowr: unknown key .*Did you mean 'lower'"),
        ([WORDS, {"name": "other.words"}], r"evaluation\.metrics: .*1: 'words' is there already"),
    ],
)
def test_wrong_metrics_are_named_when_the_config_is_read(
    copy: Path, metrics: list[dict[str, Any]], message: str
) -> None:
    configure(copy, metrics=metrics)
    with pytest.raises(ConfigError, match=message):
        load_config(copy / "config.yaml")


def test_a_split_with_a_dot_is_refused(copy: Path, drawn_scenes: str) -> None:
    configure(copy, splits={"a.b": {"source": {"name": drawn_scenes}}}, caption_loss={})
    with pytest.raises(ConfigError, match=r"'a\.b' has a dot: figures are called <split>\.<figure>"):
        load_config(copy / "config.yaml")


@pytest.mark.usefixtures("loaded_once")
def test_the_command_prints_caption_metrics(copy: Path) -> None:
    result = CliRunner().invoke(evaluate, [str(copy), "--split", "unseen_stamps", "--limit", "3"])
    assert result.exit_code == 0, result.output
    assert "unseen_stamps.words.exact" in result.output and "unseen_stamps.words.words: " in result.output
