"""From a run folder to its figures: the wiring of items, pictures, controls, files."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import prismcap.evaluate.asking as asking
import prismcap.evaluate.run as module
from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_module
from prismcap.configs.schema.run import SplitConfig
from prismcap.data.scenes.text import answer_right, short_caption
from prismcap.data.schema import DataError
from prismcap.data.sources._contract import SourceContext
from prismcap.evaluate.inference import Request
from prismcap.evaluate.report.page import write_report
from prismcap.evaluate.results import save_thumbnail, write_results
from prismcap.evaluate.run import BLANK, evaluate_run
from prismcap.evaluate.scenes.figures import figures_of
from prismcap.evaluate.scenes.items import split_items
from prismcap.evaluate.scenes.scoring import RIGHT, score
from prismcap.scripts.commands.evaluate import evaluate


@pytest.fixture(scope="module")
def measured(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("measured") / "tiny")
    evaluate_run(run)
    return run


@pytest.fixture
def copy_run(measured: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run without what was measured; keyword arguments replace keys of `evaluation`."""

    def copy(name: str, **evaluation: Any) -> Path:
        folder = Path(shutil.copytree(measured, tmp_path / name))
        for written in ("metrics.json", "captions.jsonl", "outcomes.jsonl"):
            (folder / written).unlink()
        shutil.rmtree(folder / "pictures")
        values = yaml.safe_load((folder / "config.yaml").read_text())
        values["evaluation"].update(evaluation)
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return folder

    return copy


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (run / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((run / "metrics.json").read_text(encoding="utf-8")), [
        json.loads(line) for line in lines
    ]


def test_every_figure_is_there_with_interval_and_controls(measured: Path) -> None:
    metrics, _ = read(measured)
    assert list(metrics) == ["about", "align", "unseen_pairs", "unseen_stamps"]
    names = ["all_right", "objects_right", "places_right", "num_objects_1", "place", "count", "yes_no"]
    assert list(metrics["unseen_pairs"]) == names
    assert list(metrics["unseen_stamps"]) == ["object_right", "all_right", "objects_right", "places_right"]
    for split in ("unseen_pairs", "unseen_stamps"):
        for name, figure in metrics[split].items():
            assert set(figure["controls"]) == {"blank", "shuffled"}
            for rate in (figure, *figure["controls"].values()):
                assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
                assert rate["n"] == (12 if split == "unseen_pairs" else 10) and rate["few_items"] is True
            assert metrics["about"]["notes"][f"{split}.{name}"]
    loss = metrics["align"]["caption_loss"]
    assert loss["difference"]["n"] == 12 and loss["difference"]["low"] <= loss["difference"]["high"]
    assert loss["shuffled"]["mean"] - loss["true"]["mean"] == pytest.approx(
        loss["difference"]["mean"], abs=2e-6
    )
    assert (metrics["about"]["quick"], metrics["about"]["complete"]) == (False, True)
    assert metrics["about"]["total_s"] > 0


def test_captions_name_pictures_that_exist(measured: Path) -> None:
    _, captions = read(measured)
    assert len(captions) == 3 * (2 * 12 + 3 * 12 + 10)
    pictures = {record["picture"] for record in captions}
    assert {path.name for path in (measured / "pictures").iterdir()} == {Path(name).name for name in pictures}
    assert len({record["picture"] for record in captions if record["control"] == "blank"}) == 1
    own = {(r["split"], r["id"]): r["picture"] for r in captions if r["control"] == "none"}
    for record in captions:
        if record["control"] == "shuffled":
            assert record["picture"] != own[record["split"], record["id"]]


def test_measured_again_it_is_the_same(measured: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    again = make_run(tmp_path / "again")
    evaluate_run(again)
    first, second = read(measured), read(again)
    assert {**first[0], "about": None} == {**second[0], "about": None}
    assert first[1] == second[1]
    assert first[0]["about"]["weights"] == second[0]["about"]["weights"]


def oracle(seen: Callable[[Request], Any]) -> Callable[..., list[str]]:
    """A model that sees perfectly: it says what is true of the picture it is shown."""

    def texts(_captioner: Any, requests: Sequence[Request], _store: Any, **options: Any) -> list[str]:
        options["progress"](len(requests))
        return [seen(request) for request in requests]

    return texts


@pytest.mark.usefixtures("loaded_once")
def test_a_model_that_sees_is_right_and_fails_both_controls(
    copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(request: Request) -> str:
        (image,) = request.prompt.images
        return "" if image is BLANK else short_caption(image.graph)  # type: ignore[attr-defined]

    monkeypatch.setattr(asking, "generate_texts", oracle(seen))
    metrics = evaluate_run(copy_run("oracle"))
    for split, name in (("unseen_pairs", "all_right"), ("unseen_pairs", "num_objects_1")):
        figure = metrics[split][name]
        assert figure["rate"] == 1.0 and control_rates(figure) == {"blank": 0.0, "shuffled": 0.0}
    stamps = metrics["unseen_stamps"]["object_right"]
    assert stamps["rate"] == 1.0 and control_rates(stamps) == {"blank": 0.0, "shuffled": 0.0}


def control_rates(figure: dict[str, Any]) -> dict[str, float]:
    return {name: control["rate"] for name, control in figure["controls"].items()}


@pytest.mark.usefixtures("loaded_once")
def test_a_blank_control_that_shows_the_picture_would_be_caught(
    copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: the control named blank shows each item its own picture."""
    honest = module._shown
    planted = oracle(lambda request: short_caption(request.prompt.images[0].graph))  # type: ignore[attr-defined]
    monkeypatch.setattr(asking, "generate_texts", planted)
    monkeypatch.setattr(module, "_shown", lambda items, seed: {**honest(items, seed), "blank": list(items)})
    metrics = evaluate_run(copy_run("peeking"), splits=["unseen_stamps"])
    assert control_rates(metrics["unseen_stamps"]["all_right"])["blank"] == 1.0


@pytest.mark.usefixtures("loaded_once")
def test_a_model_that_ignores_the_picture_scores_as_its_controls(
    copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "generate_texts", oracle(lambda _: "Yes."))
    metrics = evaluate_run(copy_run("blind"))
    for figure in metrics["unseen_pairs"].values():
        assert figure["controls"]["blank"]["rate"] == figure["controls"]["shuffled"]["rate"] == figure["rate"]
    assert metrics["unseen_pairs"]["yes_no"]["rate"] == 0.5, "half of the answers are yes"


@pytest.mark.usefixtures("loaded_once")
def test_a_shuffle_that_keeps_the_picture_would_be_caught(
    copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: with its own picture as the control, a seeing model scores on the control too."""

    def seen(request: Request) -> str:
        (image,) = request.prompt.images
        return "" if image is BLANK else short_caption(image.graph)  # type: ignore[attr-defined]

    monkeypatch.setattr(asking, "generate_texts", oracle(seen))
    monkeypatch.setattr(module, "shuffled_partners", lambda keys, *_: list(range(len(keys))))
    metrics = evaluate_run(copy_run("planted"), splits=["unseen_stamps"])
    assert metrics["unseen_stamps"]["all_right"]["controls"]["shuffled"]["rate"] == 1.0


@pytest.mark.usefixtures("loaded_once")
def test_one_split_again_keeps_the_others_of_the_same_weights(copy_run: Callable[..., Path]) -> None:
    run = copy_run("partial")
    evaluate_run(run)
    full, captions = read(run)
    again = evaluate_run(run, splits=["unseen_stamps"], limit=4)
    assert again["unseen_pairs"] == full["unseen_pairs"] and again["align"] == full["align"]
    assert again["unseen_stamps"]["all_right"]["n"] == 4
    assert (again["about"]["quick"], again["about"]["limited"]) == (False, True)
    assert full["about"]["complete"] is True and again["about"]["complete"] is False
    assert again["about"]["notes"] == full["about"]["notes"]
    kept = read(run)[1]
    assert len(kept) == len(captions) - 3 * (10 - 4)
    write_report_needs_log(run)
    whole = evaluate_run(run, splits=["unseen_stamps"])
    assert {**whole, "about": None} == {**full, "about": None}
    assert (whole["about"]["quick"], whole["about"]["complete"]) == (False, True)
    # other weights: what was measured before says nothing about them
    about = {"weights": "other", "notes": {}}
    options: dict[str, Any] = {"expected": ("x", "unseen_pairs"), "quick": False, "limited": False}
    assert list(write_results(run, about, {"x": {}}, [], **options)) == ["about", "x"]
    assert list((run / "pictures").iterdir()) == []


def test_quick_limited_and_complete_speak_of_every_figure_in_the_file(tmp_path: Path) -> None:
    def marks(
        split: str, expected: Sequence[str] = ("a", "b"), quick: bool = False, limited: bool = False
    ) -> tuple[bool, bool, bool]:
        about = {"weights": "w", "notes": {}}
        figures = {split: {"all_right": {}}}
        options: dict[str, Any] = {"expected": expected, "quick": quick, "limited": limited}
        written = write_results(tmp_path, about, figures, [], **options)
        text = (tmp_path / "metrics.json").read_text()
        assert json.loads(text) == written
        # scripts/demo.sh looks for exactly this
        assert ('"complete": true' in text) is written["about"]["complete"]
        return written["about"]["quick"], written["about"]["limited"], written["about"]["complete"]

    assert marks("a") == (False, False, False), "b is not there"
    assert marks("b", limited=True) == (False, True, False)
    assert marks("a") == (False, True, False), "b, which is kept, was limited"
    assert marks("b") == (False, False, True)
    assert marks("b", quick=True) == (True, False, True), "all that a quick config asks for"
    assert marks("a") == (True, False, True), "b, which is kept, is of a quick config"
    assert marks("a", expected=("a",)) == (False, False, True), "the config has no b any more"
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["about", "a"]


@contextmanager
def no_room() -> Iterator[None]:
    """Every write to a file fails, as on a full disk; for root too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_takes_no_file_is_refused_before_any_work(
    copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run("full")
    monkeypatch.setattr(module, "split_items", lambda *_: pytest.fail("work began"))
    with no_room(), pytest.raises(DataError, match=f"{run}: the results cannot be written.*Make room"):
        evaluate_run(run)


def test_a_failed_write_is_named_and_leaves_the_old_files(tmp_path: Path) -> None:
    options: dict[str, Any] = {"expected": ("a",), "quick": False, "limited": False}
    about = {"weights": "w", "notes": {}}
    write_results(tmp_path, about, {"a": {"x": {"rate": 1}}}, [], **options)
    before = (tmp_path / "metrics.json").read_bytes()
    with no_room(), pytest.raises(DataError, match=r"metrics\.json: the results cannot be written"):
        write_results(tmp_path, about, {"a": {}}, [], **options)
    assert (tmp_path / "metrics.json").read_bytes() == before
    with no_room(), pytest.raises(DataError, match=r"abc\.jpg: the results cannot be written"):
        save_thumbnail(tmp_path, "abc", Image.new("RGB", (300, 300)))
    written = ["captions.jsonl", "metrics.json", "outcomes.jsonl", "pictures"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == written


def test_a_kill_leaves_no_half_thumbnail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (300, 300), "red")

    def killed(_picture: Image.Image, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", killed)
        save_thumbnail(tmp_path, "abc", picture)
    with Image.open(tmp_path / save_thumbnail(tmp_path, "abc", picture)) as whole:
        assert (whole.format, whole.size) == ("JPEG", (224, 224))


def write_report_needs_log(run: Path) -> None:
    records = [{"stage": name, "step": 1, "loss": 1.0, "time_s": 1.0} for name in ("align", "instruct")]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = write_report(run).read_text(encoding="utf-8")
    assert "--limit" in text and "quick run" not in text and "unseen_stamps.object_right" in text


@pytest.mark.parametrize(
    ("evaluation", "splits", "message"),
    [
        ({}, ["unseen_pair"], "no split 'unseen_pair'. Did you mean 'unseen_pairs'"),
        (
            {"caption_loss": {"aline": "unseen_pairs"}},
            [],
            "caption_loss.aline: no such stage. Did you mean 'align'",
        ),
        ({"caption_loss": {"align": "x"}}, [], "no split 'x'"),
        (
            {"splits": {"about": {"source": {"name": "SOURCE"}}}, "caption_loss": {}},
            [],
            "keeps this name for itself",
        ),
        ({"splits": {"align": {"source": {"name": "SOURCE"}}}, "caption_loss": {}}, [], "for the stage"),
    ],
)
def test_bad_names_are_refused_before_anything_runs(
    copy_run: Callable[..., Path],
    drawn_scenes: str,
    evaluation: dict[str, Any],
    splits: list[str],
    message: str,
) -> None:
    values = json.loads(json.dumps(evaluation).replace("SOURCE", drawn_scenes))
    run = copy_run("bad", **values)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        evaluate_run(run, splits=splits)
    assert not (run / "metrics.json").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        evaluate_run(tmp_path)


def test_items_are_the_first_of_each_group_and_yes_no_is_balanced(drawn_scenes: str) -> None:
    module = component_module("source", drawn_scenes)
    source = module.build(module.Options(), SourceContext(seed=0))
    split = SplitConfig.model_validate({"source": {"name": drawn_scenes}, "num_items": 10})
    items = split_items("s", split, SourceContext(seed=0))
    groups = {item.group for item in items}
    assert groups == {("short", 1), ("short", 2), ("place", 0), ("count", 0), ("yes_no", 0)}
    assert all(sum(item.group == group for item in items) == 10 for group in groups)
    first = [source.item(i).sample.id for i in range(len(source)) if source.item(i).kind == "place"][:10]
    assert [item.id for item in items if item.kind == "place"] == first
    answers = [item.truth for item in items if item.kind == "yes_no"]
    assert answers.count("Yes.") == answers.count("No.") == 5
    for item in items:
        assert answer_right(item.truth, source.item(_index(source, item.id)).answer)
    assert len(split_items("s", split, SourceContext(seed=0), limit=2)) == 5 * 2


def test_the_shipped_scenes_give_every_figure() -> None:
    scenes = {"name": "scenes", "num_scenes": 60, "num_objects": [1, 2, 3, 4]}
    tasks = {"short": 1, "long": 1, "place": 1, "count": 1, "yes_no": 1}
    names = {}
    for split in ("unseen_pairs", "unseen_stamps"):
        config = SplitConfig.model_validate(
            {"source": {**scenes, "split": split, "tasks": tasks}, "num_items": 10}
        )
        try:
            items = split_items(split, config, SourceContext(seed=0))
        except ConfigError as error:
            pytest.skip(f"the drawings are not fetched: {error}")
        names[split] = [figure.name for figure in figures_of(items)]
        assert all(score(item.kind, item.truth, item.truth, item.graph)[RIGHT] for item in items)
        assert [item.truth for item in items if item.kind == "yes_no"].count("Yes.") == 5
        assert all(item.image.load().size == (192, 192) for item in items[:3])
    captions = ["all_right", "objects_right", "places_right", *(f"num_objects_{n}" for n in (1, 3, 4))]
    expected = [*captions, "long_exact", "place", "count", "yes_no"]
    assert names == {"unseen_pairs": expected, "unseen_stamps": ["object_right", *expected]}


def _index(source: Any, id: str) -> int:
    return next(index for index in range(len(source)) if source.item(index).sample.id == id)


def test_a_source_without_graphs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    split = SplitConfig.model_validate(
        {"source": {"name": "llava_json", "path": str(tmp_path / "rows.json")}}
    )
    with pytest.raises((ConfigError, DataError)):
        split_items("s", split, SourceContext())


def test_command_prints_the_figures(copy_run: Callable[..., Path]) -> None:
    run = copy_run("cli")
    result = CliRunner().invoke(evaluate, [str(run), "--split", "unseen_stamps", "--limit", "3"])
    assert result.exit_code == 0, result.output
    for expected in ("unseen_stamps.object_right", "blank", "shuffled", "n < 200", "metrics.json", "seconds"):
        assert expected in result.output
    assert "caption_loss" not in result.output
