"""The report: self-contained, escaped, and drawn from whatever part of a run exists."""

from __future__ import annotations

import html.parser
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image, ImageDraw

from prismcap.evaluate.intervals import wilson
from prismcap.evaluate.report.gallery import gallery
from prismcap.evaluate.report.page import duration, metric_rows, percent, rejected, write_report
from prismcap.evaluate.report.plots import running_mean
from prismcap.evaluate.report.read import ReportError, read_run
from prismcap.evaluate.statistics.paired import paired_difference
from prismcap.scripts.commands.report import report

WORDS = ("tiger", "hammer", "tree", "boat", "apple", "house")
STEPS = {"align": 60, "instruct": 90}


def fake_run(
    folder: Path,
    stages: tuple[str, ...] = ("align", "instruct"),
    evaluated: bool = True,
    accuracy: bool = False,
) -> Path:
    """A small run folder with the files that train and evaluate write; `accuracy`: its log has that too."""
    folder.mkdir(parents=True)
    config = {"name": "fake", "seed": 1, "stages": {name: {"template": {"name": "plain"}} for name in STEPS}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [json.dumps(record) for stage in stages for record in _records(stage, accuracy)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for stage in stages:
        (folder / stage / "final").mkdir(parents=True)
    if evaluated:
        _evaluation(folder)
    return folder


def _records(stage: str, accuracy: bool) -> list[dict[str, Any]]:
    rng = random.Random(stage)
    groups = ("connector",) if stage == "align" else ("connector", "llm")
    total = STEPS[stage]
    records = []
    for step in range(1, total + 1):
        share = step / total
        start, end = (3.5, 1.4) if stage == "align" else (1.5, 0.004)
        records.append(
            {
                "stage": stage,
                "step": step,
                "loss": start * (end / start) ** share * math.exp(rng.gauss(0, 0.15)),
                "grad_norm": 1 + rng.random(),
                "samples_per_s": 12 + rng.gauss(0, 1),
                "supervised_tokens_per_s": 160 + rng.gauss(0, 14),
                "padding_share": 0.03,
                "data_wait_share": 0.01,
                "peak_memory_mb": 3100,
                "time_s": 2.5,
                "rejected": {"image_missing": 2, "no_supervised_token": 1} if step > 5 else {},
                **{f"lr/{name}": 1e-3 / (i + 1) * (1 - share) for i, name in enumerate(groups)},
                **({"accuracy/token": 0.9 * share} if accuracy else {}),
            }
        )
    return records


def _evaluation(folder: Path) -> None:
    rng = random.Random(0)
    (folder / "pictures").mkdir()
    captions = []
    for i in range(60):
        left, right = rng.sample(WORDS, 2)
        picture = Image.new("RGB", (128, 128), rng.choice(["#cfe8ff", "#f5e6c8", "#dff0d8"]))
        ImageDraw.Draw(picture).text((10, 50), f"{left}  {right}", fill="black")
        picture.save(folder / f"pictures/{i}.png")
        truth = f"A {left} on the left and a {right} on the right."
        good = i % 6 != 0
        common = {"split": "unseen_pairs", "num_objects": 2, "id": f"scene-{i}", "truth": truth}
        common["picture"] = f"pictures/{i}.png"
        if i % 2:
            common.update(kind="yes_no", prompt=f"Is there a {left}?", truth="Yes.")
        else:
            common.update(kind="short", prompt="Describe the picture.")
        said = common["truth"] if good else 'A <b>dragon</b> & a "cave"<script>alert(1)</script>'
        captions.append({**common, "control": "none", "generated": said, "right": good})
        captions.append({**common, "control": "shuffled", "generated": "A cat on the left.", "right": False})
    lines = "".join(json.dumps(record) + "\n" for record in captions)
    (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
    losses = [rng.gauss(1.5, 0.3) for _ in range(200)]
    others = [loss + rng.gauss(0.4, 0.2) for loss in losses]
    difference = paired_difference(losses, others).as_dict()
    metrics = {
        "about": {
            "quick": False,
            "total_s": 131.0,
            "versions": {"python": "3.11", "torch": "2.14.1"},
            "notes": {"unseen_pairs.all_right": "every object and every place right"},
        },
        "unseen_pairs": {
            "all_right": _figure(198, 200, 0, 1),
            "num_objects_4": _figure(180, 200, 0, 0),
            "yes_no": _figure(195, 200, 100, 98),
        },
        "unseen_stamps": {"object_right": _figure(30, 90, 1, 2, n_control=90)},
        "align": {
            "caption_loss": {"true": {"mean": 1.5}, "shuffled": {"mean": 1.9}, "difference": difference}
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def _figure(right: int, n: int, blank: int, shuffled: int, n_control: int = 200) -> dict[str, Any]:
    controls = {
        "blank": wilson(blank, n_control).as_dict(),
        "shuffled": wilson(shuffled, n_control).as_dict(),
    }
    return {**wilson(right, n).as_dict(), "controls": controls}


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, the text, and whether tags nest."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def outside(self) -> list[str]:
        """Addresses that a browser would fetch."""
        found = []
        for tag, attributes in self.tags:
            for key in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                value = attributes.get(key)
                if value is not None and not value.startswith(("#", "data:")):
                    found.append(f"<{tag} {key}={value[:60]}>")
            if tag in ("link", "script", "iframe", "object", "embed"):
                found.append(f"<{tag}>")
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "fake")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_page_is_one_self_contained_file(text: str) -> None:
    page = Page(text)
    assert page.outside() == []
    assert page.open == [], "every element is closed"
    assert "@import" not in text and "url(http" not in text
    assert "http://" not in text and "https://" not in text


def test_an_outside_resource_would_be_caught(text: str) -> None:
    for planted in ('<img src="https://x.org/a.png">', "<script>1</script>", '<link rel="x" href="a.css">'):
        assert Page(text.replace("</main>", f"{planted}</main>")).outside()


def test_ids_are_unique_across_plots(text: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert len(ids) > 20 and len(ids) == len(set(ids))
    targets = [a["xlink:href"] for _, a in Page(text).tags if "xlink:href" in a]
    assert targets and all(target and target[1:] in ids for target in targets), "markers find their shape"


def test_captions_are_escaped(text: str) -> None:
    page = Page(text)
    assert all(tag != "script" for tag, _ in page.tags)
    assert "<b>dragon</b>" not in text
    assert '<b>dragon</b> & a "cave"<script>alert(1)</script>' in page.text, "shown as text"


def test_page_says_what_a_run_holds(text: str) -> None:
    shown = Page(text).text
    for expected in ("unseen_pairs.all_right", "align: loss", "99.0 %", "every object and every place right"):
        assert expected in shown
    for expected in (
        "image_missing",
        "no_supervised_token",
        "2.14.1",
        "name: fake",
        "the picture helps",
    ):
        assert expected in shown
    assert "n < 200" in shown, "the split of 90 items is flagged"
    assert "quick run" not in shown and "Not measured yet" not in shown
    assert sum(tag == "svg" for tag, _ in Page(text).tags) == 4


def test_same_files_give_the_same_page(run: Path, text: str) -> None:
    assert write_report(run).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("about", "words", "absent"),
    [
        ({"quick": True}, ["quick run", "few scenes"], "limited"),
        ({"quick": True, "quick_in": ["a"], "limited_in": []}, ["quick run", "few scenes"], "limited"),
        (
            {"limited_in": ["unseen_pairs"], "quick_in": []},
            ["limited", "--limit", "unseen_pairs:"],
            "few scenes",
        ),
        # as it was written before the two were told apart
        ({"quick": True, "limited_in": ["x"], "quick_in": []}, ["--limit"], "quick run"),
    ],
)
def test_quick_and_limited_are_told_apart(
    run: Path, tmp_path: Path, about: dict[str, Any], words: list[str], absent: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["about"] |= about
    (copy / "metrics.json").write_text(json.dumps(metrics))
    shown = Page(write_report(copy).read_text(encoding="utf-8")).text
    assert all(word in shown for word in words) and absent not in shown


def test_half_finished_run_still_gives_a_report(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "half", stages=("align",), evaluated=False)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"stage": "instruct", "st')  # killed while writing
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.outside() == [] and page.open == []
    assert "Not measured yet" in page.text
    assert "Stage instruct is not finished" in page.text and "it has not begun" in page.text
    assert "Stage align is not finished" not in page.text


def test_training_accuracy_and_cut_tokens_of_the_log_are_shown(text: str, tmp_path: Path) -> None:
    assert "accuracy" not in text and "tokens were cut" not in text
    folder = fake_run(tmp_path / "accurate", evaluated=False)
    with (folder / "log.jsonl").open("a") as log:
        for step, cut in ((91, 1200), (92, 34)):
            record = {
                "stage": "instruct",
                "step": step,
                "loss": 0.1,
                "accuracy/token": 0.5,
                "cut_tokens": cut,
            }
            log.write(json.dumps({**record, "cut_tokens": cut}) + "\n")
    shown = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "instruct: accuracy on supervised training tokens" in shown and "held-out accuracy" not in shown
    assert "instruct: 1,234 tokens were cut" in shown and "align: accuracy" not in shown


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "resumed", evaluated=False)
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"stage": "instruct", "step": 90, "loss": 7.0}) + "\n")
    records = read_run(folder).records("instruct")
    assert len(records) == STEPS["instruct"] and records[-1]["loss"] == 7.0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, None, "no such run folder"),
        ("config.yaml", None, r"config\.yaml: missing"),
        ("config.yaml", "a: [", "not valid YAML"),
        ("config.yaml", "name: x", "a key 'stages'"),
        ("log.jsonl", None, r"log\.jsonl: missing"),
        ("log.jsonl", "", "no step was logged"),
        ("log.jsonl", '{"stage": "align", "step": 1, "loss": 1}\nrubbish\n{}\n', "line 2: not valid JSON"),
        ("log.jsonl", '{"step": 1, "loss": 1}\n', "'stage'"),
        ("metrics.json", '{"a": ', r"metrics\.json: not valid JSON"),
        ("metrics.json", "[]", "expected an object"),
        ("captions.jsonl", '{"split": "a"}\n', "line 1: key 'control'"),
        ("pictures/1.png", None, "missing, though captions.jsonl names it"),
    ],
)
def test_damage_is_named(
    run: Path, tmp_path: Path, file: str | None, content: str | None, message: str
) -> None:
    folder = tmp_path / "damaged"
    if file is not None:
        shutil.copytree(run, folder)
        if content is None:
            for path in folder.glob(file if "/" not in file else "pictures/*"):
                path.unlink()
        else:
            (folder / file).write_text(content)
    with pytest.raises(ReportError, match=message):
        write_report(folder)


def test_a_picture_outside_the_run_is_refused(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    record = {
        "split": "s",
        "control": "none",
        "kind": "short",
        "id": "1",
        "truth": "",
        "generated": "",
        "right": True,
    }
    with pytest.raises(ReportError, match="outside the run folder"):
        gallery(run, [{**record, "picture": f"../{tmp_path.name}/secret.png"}])
    with pytest.raises(ReportError, match="must be one of"):
        gallery(run, [{**record, "picture": "config.yaml"}])


def test_gallery_is_a_fixed_draw_that_other_groups_do_not_change(run: Path) -> None:
    captions = read_run(run).captions
    assert captions is not None
    groups = gallery(run, captions, most_each=3)
    assert [group.title for group in groups] == ["unseen_pairs · short", "unseen_pairs · yes_no"]
    assert groups == gallery(run, captions, most_each=3)
    alone = gallery(run, [record for record in captions if record["kind"] == "yes_no"], most_each=3)
    assert alone == groups[1:]
    assert [card.id for card in groups[0].right] != [f"scene-{i}" for i in (2, 4, 8)], (
        "not simply the first ones"
    )
    assert gallery(run, captions, most_each=3, seed=1) != groups
    short = groups[0]
    assert (len(short.right), len(short.wrong)) == (3, 3)
    assert short.num_right + short.num_wrong == 30 and all(card.prompt is None for card in short.right)


def test_mfu_is_shown_where_it_was_logged(text: str, tmp_path: Path) -> None:
    assert "MFU" not in text
    folder = fake_run(tmp_path / "mfu", evaluated=False)
    with (folder / "log.jsonl").open("a") as log:
        for step, mfu in ((91, 0.25), (92, None)):
            log.write(json.dumps({"stage": "instruct", "step": step, "loss": 0.1, "mfu": mfu}) + "\n")
    shown = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "matrix rate (MFU)" in shown and "25.0 %" in shown


def test_command_writes_where_it_is_told_and_names_what_is_wrong(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(report, [str(run), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0 and str(tmp_path / "page.html") in result.output
    assert Page((tmp_path / "page.html").read_text(encoding="utf-8")).outside() == []
    for arguments, words in (
        ([str(tmp_path / "none")], "no such run folder"),
        ([str(run), str(tmp_path / "none")], "no such run folder"),
        ([str(run), "--out", str(tmp_path / "no" / "page.html")], "cannot be written"),
    ):
        result = CliRunner().invoke(report, arguments)
        assert result.exit_code == 2 and words in result.stderr
    assert not list(run.parent.glob("compare-*"))


def test_small_parts() -> None:
    assert [percent(x) for x in (0, 1, 0.995, 0.99999, 0.00001, 0.5)] == [
        "0 %", "100 %", "99.5 %", "> 99.9 %", "< 0.1 %", "50.0 %"
    ]  # fmt: skip
    assert [duration(x) for x in (4.6, 75, 7325)] == ["5 s", "1 min 15 s", "2 h 2 min"]
    assert running_mean([2.0] * 30) == pytest.approx([2.0] * 30)
    assert running_mean([1.0, 3.0])[0] == pytest.approx(1.0)
    assert rejected([{"rejected": {"a": 1}}, {"rejected": {"a": 2, "b": 5}}, {"loss": 1}]) == [
        ("b", 5),
        ("a", 2),
    ]
    assert metric_rows({"about": {}, "s": {"x": {"mean": 1}}}) == []
