"""An evaluation that is stopped keeps what it measured, and `missing` measures the rest alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import prismcap.evaluate.run as module
from prismcap.evaluate.results import weights_id
from prismcap.evaluate.run import evaluate_run
from prismcap.scripts.commands.evaluate import evaluate

WRITTEN = ("metrics.json", "captions.jsonl", "outcomes.jsonl")


class Watch:
    """Which parts are measured, in order; the part called `stop_at` ends with the error of a stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured: list[str] = []
        self.stop_at: str | None = None
        loss, split = module.stage_caption_loss, module.measure_split

        def watched_loss(run_dir: Path, config: Any, stage: str, *rest: Any) -> Any:
            self._begin(stage)
            return loss(run_dir, config, stage, *rest)

        def watched_split(captioner: Any, config: Any, items: Any, *rest: Any) -> Any:
            self._begin(items[0].split)
            return split(captioner, config, items, *rest)

        monkeypatch.setattr(module, "stage_caption_loss", watched_loss)
        monkeypatch.setattr(module, "measure_split", watched_split)

    def _begin(self, part: str) -> None:
        if part == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(part)

    def take(self) -> list[str]:
        taken, self.measured = self.measured, []
        return taken


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("undisturbed") / "tiny")
    evaluate_run(run)
    return run


@pytest.fixture
def unmeasured(undisturbed: Path, tmp_path: Path) -> Path:
    """The same run, never measured."""
    run = Path(shutil.copytree(undisturbed, tmp_path / "tiny"))
    for name in WRITTEN:
        (run / name).unlink()
    shutil.rmtree(run / "pictures")
    return run


def read(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    times = ("measured_at", "total_s", "parts_s")
    about = {key: value for key, value in metrics["about"].items() if key not in times}
    return {**metrics, "about": about}


@pytest.mark.parametrize(
    ("stop_at", "finished"),
    [("unseen_pairs", ["align"]), ("unseen_stamps", ["align", "unseen_pairs"])],
)
def test_a_stop_loses_no_part_and_the_rest_makes_the_figures_of_an_undisturbed_run(
    undisturbed: Path, unmeasured: Path, watch: Watch, stop_at: str, finished: list[str]
) -> None:
    whole = read(undisturbed)
    watch.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(unmeasured)
    assert watch.take() == finished
    stopped = read(unmeasured)
    assert list(stopped) == ["about", *finished] and stopped["about"]["complete"] is False
    assert all(stopped[part] == whole[part] for part in finished)

    watch.stop_at = None
    returned = evaluate_run(unmeasured, missing=True)
    assert watch.take() == [part for part in whole if part not in ("about", *finished)]
    again = read(unmeasured)
    assert returned == again and list(again) == list(whole)
    assert without_times(again) == without_times(whole) and again["about"]["complete"] is True
    assert again["about"]["parts_s"].keys() == whole["about"]["parts_s"].keys()
    assert again["about"]["total_s"] >= stopped["about"]["total_s"], "the time of both calls"
    for name in ("captions.jsonl", "outcomes.jsonl"):
        assert (unmeasured / name).read_bytes() == (undisturbed / name).read_bytes()
    pictures = [{path.name for path in (run / "pictures").iterdir()} for run in (unmeasured, undisturbed)]
    assert pictures[0] == pictures[1]


def test_nothing_is_measured_where_nothing_is_missing(
    undisturbed: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "tiny"))
    before = [(run / name).read_bytes() for name in WRITTEN]
    monkeypatch.setattr(module, "split_items", lambda *_: pytest.fail("no item is needed"))
    monkeypatch.setattr(module, "load_trained", lambda *_, **__: pytest.fail("no model is needed"))
    result = CliRunner().invoke(evaluate, [str(run), "--missing"])
    assert result.exit_code == 0, result.output
    assert "unseen_stamps.object_right" in result.output
    assert watch.take() == [] and [(run / name).read_bytes() for name in WRITTEN] == before


def test_what_was_limited_or_of_other_weights_is_measured_again(unmeasured: Path, watch: Watch) -> None:
    evaluate_run(unmeasured, splits=["unseen_stamps"])
    evaluate_run(unmeasured, splits=["unseen_pairs"], limit=4)
    assert watch.take() == ["unseen_stamps", "align", "unseen_pairs"]
    looked = evaluate_run(unmeasured, splits=["unseen_stamps"], missing=True)
    assert watch.take() == [] and looked["about"]["limited_in"] == ["align", "unseen_pairs"]
    assert list(looked) == ["about", "unseen_stamps", "align", "unseen_pairs"], "the whole file"
    whole = evaluate_run(unmeasured, missing=True)
    assert watch.take() == ["align", "unseen_pairs"] and whole["about"]["complete"] is True
    (unmeasured / "instruct" / "final" / "manifest.json").write_text("{}")  # makes another id of the weights
    assert whole["about"]["weights"] != weights_id(unmeasured, "instruct")
    evaluate_run(unmeasured, missing=True)
    assert watch.take() == ["align", "unseen_pairs", "unseen_stamps"]


def test_figures_of_a_quick_config_are_not_taken_for_those_of_a_full_one(
    unmeasured: Path, watch: Watch
) -> None:
    path = unmeasured / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["evaluation"]["quick"] = True
    path.write_text(yaml.safe_dump(values))
    assert evaluate_run(unmeasured)["about"]["quick"] is True
    evaluate_run(unmeasured, missing=True)
    assert watch.take() == ["align", "unseen_pairs", "unseen_stamps"], "once, and the quick ones will do"
    values["evaluation"]["quick"] = False
    path.write_text(yaml.safe_dump(values))
    assert evaluate_run(unmeasured, missing=True)["about"]["quick"] is False
    assert watch.take() == ["align", "unseen_pairs", "unseen_stamps"]
