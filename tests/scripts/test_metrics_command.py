"""`prismcap metrics` on the files that people have: joined, measured, compared, and mistakes named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from prismcap.configs.errors import ConfigError, DataError
from prismcap.evaluate.intervals import wilson
from prismcap.evaluate.statistics.paired import mcnemar
from prismcap.scripts.commands.metrics import metrics

WORDS = "counted_metrics.words"
NEEDY = "counted_metrics.needy"
FAKES = Path(__file__).parents[1] / "evaluate"
TEXTS = {"1": "a cat on a mat", "2": "a dog", "3": "", "4": "a red bus"}
RIGHT = {"1": ["a cat on a mat", "a cat"], "2": ["two dogs"], "3": ["a tree"], "4": ["a red bus", "bus"]}


@pytest.fixture(autouse=True)
def fakes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FAKES))
        yield


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def array(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def file_name(id: str) -> str:
    return f"COCO_val2014_{int(id):012d}.jpg"


def coco_captions(path: Path) -> Path:
    images = [{"id": int(id), "file_name": file_name(id)} for id in RIGHT]
    rows = [{"image_id": int(id), "id": 9, "caption": text} for id, of in RIGHT.items() for text in of]
    return array(path, {"info": {}, "images": images, "annotations": rows})


def reference_rows(path: Path) -> Path:
    return lines(path, [{"id": id, "references": of} for id, of in RIGHT.items()])


def call(*arguments: object) -> Result:
    return CliRunner().invoke(metrics, [str(argument) for argument in arguments])


def results(*arguments: object, out: Path) -> dict[str, Any]:
    done = call(*arguments, "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def refusal(*arguments: object) -> str:
    done = call(*arguments)
    assert isinstance(done.exception, ConfigError | DataError), (done.output, done.exception)
    return str(done.exception)


def forms(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Every form of texts with a file of references that names the pictures in its own way."""
    coco = coco_captions(folder / "coco.json")
    rows = reference_rows(folder / "references.jsonl")
    paths = [{"image": f"/photos/val/{file_name(id)}", "caption": text} for id, text in TEXTS.items()]
    results = [{"image_id": int(id), "caption": text} for id, text in TEXTS.items()]
    answers = [
        {"question_id": id, "prompt": "?", "text": text, "model_id": "m"} for id, text in TEXTS.items()
    ]
    named = [{"image": file_name(id), "references": of} for id, of in RIGHT.items()]
    return {
        "prismcap": (lines(folder / "a.jsonl", paths), coco),
        "prismcap by name": (folder / "a.jsonl", array(folder / "named.json", named)),
        "coco results": (array(folder / "b.json", results), coco),
        "coco results, rows": (folder / "b.json", rows),
        "llava": (lines(folder / "c.jsonl", answers), rows),
    }


def test_every_form_of_file_gives_the_same_figures(tmp_path: Path) -> None:
    expected = {
        "words.words": (sum(len(text.split()) for text in TEXTS.values()) / 4, "words", 4),
        "words.exact": (2 / 4, "share", 4),
        "words.precision": (8 / 10, "share", 3),
    }
    for name, (captions, references) in forms(tmp_path).items():
        found = results(captions, "--metric", WORDS, "--references", references, out=tmp_path / "out.json")
        for figure, (value, unit, n) in expected.items():
            of = found["figures"][figure]
            assert (of["value"], of["unit"], of["n"]) == (pytest.approx(value), unit, n), name
            assert of["low"] <= of["value"] <= of["high"] and of["few_items"] is True
        assert [item["values"]["words.words"] for item in found["items"]] == [5, 2, 0, 3]
        assert [item["values"]["words.precision"] for item in found["items"]][2] is None


def test_flags_have_wilsons_interval_and_everything_is_said(tmp_path: Path) -> None:
    captions, references = forms(tmp_path)["coco results"]
    done = call(
        captions, "lower=true", "--metric", WORDS, "--references", references, "--out", tmp_path / "o"
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "o").read_text())
    score = wilson(2, 4)
    exact = found["figures"]["words.exact"]
    assert (exact["low"], exact["high"]) == pytest.approx((score.low, score.high), abs=1e-6)
    about = found["about"]
    assert about["metrics"] == {
        "words": {"name": WORDS, "lower": True, "identity": "words lower=True"},
    }
    assert about["files"]["references"]["path"] == str(references) and about["num_items"] == 4
    assert "numpy" in about["versions"] and len(about["checksum"]) == 16
    assert exact["higher_is_better"] is True and exact["note"] == "word for word"
    assert [item["cluster"] for item in found["items"]] == [file_name(id) for id in TEXTS]
    for word in ("words.exact", "50.0 %", "15.0 % .. 85.0 %", "word for word", "[n < 200]", "2.500"):
        assert word in done.output
    again = call(captions, "lower=true", "--metric", WORDS, "--references", references)
    assert again.output == done.output.replace(f"Written to {tmp_path / 'o'}\n", "")


def questions(folder: Path, labels: bool = True) -> Path:
    rows = []
    for number, (id, _) in enumerate([("1", ""), ("1", ""), ("2", ""), ("3", "")]):
        row = {"question_id": f"q{number}", "image": file_name(id), "text": f"Is there a cat, {number}?"}
        label = {"label": "yes" if number % 2 else "NO", "category": "random" if number < 2 else "popular"}
        rows.append(row | (label if labels else {}))
    return lines(folder / "questions.jsonl", rows)


def test_answers_find_their_questions_and_pictures(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    llava = [
        {"question_id": f"q{number}", "text": "yes" if number else "no"} for number in reversed(range(4))
    ]
    pope = [
        {"question": f"Is there a cat, {number}?", "answer": row["text"]}
        for number, row in enumerate(reversed(llava))
    ]
    options = ("--metric", NEEDY, "needs=[answer, references]", "--questions", asked)
    options += ("--references", coco_captions(tmp_path / "coco.json"))
    for captions in (lines(tmp_path / "llava.jsonl", llava), lines(tmp_path / "pope.json", pope)):
        found = results(captions, *options, out=tmp_path / "out.json")
        of = {item["id"]: item for item in found["items"]}
        # no, yes, yes, yes against NO, yes, NO, yes
        assert [of[f"q{number}"]["values"]["needy.seen"] for number in range(4)] == [1, 1, 0, 1]
        assert [of[f"q{number}"]["cluster"] for number in range(4)] == [
            file_name(id) for id in ("1", "1", "2", "3")
        ], "questions about one picture are one cluster"


def test_a_questions_id_is_none_of_a_picture(tmp_path: Path) -> None:
    """Question 1 asks about picture 4: what is known of picture 1 says nothing about it."""
    asked = lines(tmp_path / "q.jsonl", [{"question_id": 1, "image": file_name("4"), "text": "What is it?"}])
    answer = lines(tmp_path / "a.jsonl", [{"question_id": 1, "text": "a red bus"}])
    options = ("--metric", WORDS, "--questions", asked)
    found = results(answer, *options, "--references", coco_captions(tmp_path / "c"), out=tmp_path / "o")
    assert found["figures"]["words.exact"]["value"] == 1.0


def test_objects_of_coco_are_those_of_the_picture(tmp_path: Path) -> None:
    instances = {
        "images": [{"id": int(id), "file_name": file_name(id)} for id in TEXTS],
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dining table"}],
        "annotations": [{"image_id": 1, "category_id": 7}] * 2 + [{"image_id": 1, "category_id": 8}],
    }
    from prismcap.evaluate.offline.items import read_items, read_known

    captions = forms(tmp_path)["prismcap"][0]
    known = read_known(None, array(tmp_path / "instances.json", instances), None, None)
    _, items = read_items(captions, known)
    assert [item.objects for item in items] == [("cat", "dining table"), (), (), ()]
    done = call(captions, "needs=[objects]", "--metric", NEEDY, "--objects", tmp_path / "instances.json")
    assert done.exit_code == 0, "a picture of nothing is known to hold nothing"
    rows = [{"image": file_name(id), "objects": ["cat"], "statements": ["There is a cat."]} for id in TEXTS]
    known = read_known(None, lines(tmp_path / "rows.jsonl", rows), None, None)
    _, items = read_items(captions, known)
    assert {(item.objects, item.statements) for item in items} == {(("cat",), ("There is a cat.",))}


def test_pictures_are_found_below_the_folder_alone(tmp_path: Path) -> None:
    captions, _ = forms(tmp_path)["prismcap"]
    folder = tmp_path / "pictures"
    folder.mkdir()
    options = ("--metric", NEEDY, "needs=[image]", "broken=pictures", "--images", folder)
    for number, id in enumerate(TEXTS):
        said = refusal(captions, *options)
        assert f"{4 - number} of 4 texts have no picture in {folder}" in said
        assert f"the first: '/photos/val/{file_name(id)}' ({captions}, line {number + 1})" in said
        Image.new("RGB", (10 + number, 5)).save(folder / file_name(id))
    found = results(captions, *options, out=tmp_path / "out.json")
    assert [item["values"]["needy.wide"] for item in found["items"]] == [10, 11, 12, 13]
    outside = lines(
        tmp_path / "outside.jsonl", [{"image": f"../pictures/../{captions.name}", "caption": "x"}]
    )
    assert "1 of 1 texts have no picture" in refusal(outside, *options)


def test_a_comparison_is_paired_and_corrected(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    rows = [{"id": number, "references": ["a b c d"]} for number in range(40)]
    references = lines(tmp_path / "r.jsonl", rows)
    one = [{"id": number, "caption": "a b c d" if number % 2 else "a x"} for number in range(40)]
    other = [
        {"id": number, "caption": "a b c d" if number % 2 or number < 20 else "a x"} for number in range(40)
    ]
    a, b = lines(tmp_path / "a.jsonl", one), lines(tmp_path / "b.jsonl", list(reversed(other)))
    done = call(
        *(a, "--metric", WORDS, "--references", references),
        *("--compare", b, "--out", tmp_path / "out.json"),
    )
    assert done.exit_code == 0, done.output
    compared = json.loads((tmp_path / "out.json").read_text())["compare"]
    exact = compared["differences"]["words.exact"]
    assert (exact["mean"], exact["n"]) == (10 / 40, 40) and 0 < exact["low"] < exact["high"]
    right = [[float(row["caption"] == "a b c d") for row in rows] for rows in (one, other)]
    assert exact["p"] == mcnemar(*right) and exact["p_holm"] >= exact["p"]
    precision = compared["differences"]["words.precision"]
    # 20 x 4 of 4 and 20 x 1 of 2, then 30 and 10
    assert precision["mean"] == pytest.approx(130 / 140 - 100 / 120, abs=1e-6)
    assert compared["figures"]["words.exact"]["value"] == 30 / 40
    assert [item["id"] for item in compared["items"]] == [str(number) for number in range(40)], "in one order"
    assert f"{b} - {a}, paired on 40 items" in done.output and "+25.0 pt" in done.output
    same = call(a, "--metric", WORDS, "--references", references, "--compare", a)
    assert same.output.count("no difference shown") == 3
    for rows_of, said in (
        (other[1:], "lacks 1 of the items, the first '0'"),
        ([*other, {"id": 99, "caption": "x"}], "has besides 1 of the items, the first '99'"),
    ):
        b = lines(tmp_path / "b.jsonl", rows_of)
        more = lines(tmp_path / "r2.jsonl", [*rows, {"id": 99, "references": ["x"]}])
        assert said in refusal(a, "--metric", WORDS, "--references", more, "--compare", b)


def test_a_file_of_texts_that_was_cut_short_shows(tmp_path: Path) -> None:
    captions, references = forms(tmp_path)["coco results"]
    array(captions, json.loads(captions.read_text())[:3])
    done = call(captions, "--metric", WORDS, "--references", references)
    assert f"The texts are of 3 pictures; {references} has 4." in done.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "captions.jsonl: the file is empty; expected rows of {image, caption}"),
        ("[]", "captions.jsonl: [] has no rows"),
        ('"x"', "captions.jsonl: 'x' has no rows"),
        (None, "captions.jsonl: cannot be read: No such file"),
        ('{"id": 1, "caption": "x"}\nrubbish', "captions.jsonl, line 2: not valid JSON"),
        ("[1]", "captions.jsonl, row 0: expected an object, found 1"),
        (
            '{"id": 1, "capton": "x"}',
            "captions.jsonl, line 1: none of the keys caption, text, answer; it has",
        ),
        ('{"caption": "x"}', "line 1: none of the keys id, question_id, image_id, image"),
        ('{"id": 1, "caption": 5}', "line 1, key 'caption': expected a text, found 5"),
        ('{"id": true, "caption": "x"}', "line 1, key 'id': expected a number or a text, found True"),
        (
            '{"id": 1, "caption": "x"}\n\n{"id": "1", "caption": "y"}',
            "captions.jsonl, line 3, key 'id': '1' is that of",
        ),
        ('{"annotations": []}', "COCO annotations, not captions of a model; give it to --references"),
        ('{"id": 5, "caption": "x"}', "1 of 1 texts have no references in"),
        ('{"question": "?", "answer": "no"}', "its rows have no ids (POPE's form"),
        (
            '{"id": 1, "caption": "x"}\n{"question": "?", "answer": "no"}',
            "line 2: has no id, and the first row has the id '1'",
        ),
    ],
)
def test_wrong_texts_are_named(tmp_path: Path, content: str | None, said: str) -> None:
    captions = tmp_path / "captions.jsonl"
    if content is not None:
        captions.write_text(content)
    found = refusal(captions, "--metric", WORDS, "--references", reference_rows(tmp_path / "r.jsonl"))
    assert said in found and str(captions) in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty; expected COCO captions"),
        ('{"id": 1, "reference": "x"}', "line 1: no key 'references'; it has ['id', 'reference']"),
        ('{"id": 1, "references": "x"}', "line 1, key 'references': expected a list of texts, found 'x'"),
        ('{"references": ["x"]}', "line 1: none of the keys id, question_id, image_id, image"),
        ('{"id": 1, "references": ["x"]}\n{"id": 1, "references": ["y"]}', "'1' is there already"),
        ('{"id": 1, "references": []}', "4 of 4 texts have no references in"),
        ('{"id": "1", "references": ["x"]}', "3 of 4 texts have no references in"),
        ('{"annotations": [{"image_id": 1, "category_id": 2}]}', "COCO's file of objects"),
        ('{"annotations": [{"image_id": 1, "caption": 2}]}', "annotations 0, key 'caption': expected a text"),
        ('{"annotations": 3}', "key 'annotations': expected a list of objects"),
    ],
)
def test_wrong_references_are_named(tmp_path: Path, content: str, said: str) -> None:
    references = tmp_path / "references.json"
    references.write_text(content)
    captions = forms(tmp_path)["coco results"][0]
    found = refusal(captions, "--metric", WORDS, "--references", references)
    assert said in found and str(references) in found


def test_wrong_questions_are_named(tmp_path: Path) -> None:
    answers = [{"question_id": f"q{number}", "text": "yes"} for number in range(4)]
    captions = lines(tmp_path / "answers.jsonl", answers)
    asked = questions(tmp_path)
    options = ("--metric", NEEDY, "needs=[answer]", "--questions", asked)
    whole = asked.read_text()
    for edited, said in (
        (whole.replace('"NO"', '"maybe"'), "line 1, key 'label': expected yes or no, found 'maybe'"),
        (whole.replace('"q3"', '"q2"'), "'q2' is that of"),
        (whole.replace('"q3"', '"q9"'), "1 of 4 texts are no questions of"),
    ):
        asked.write_text(edited)
        assert said in refusal(captions, *options)
    asked.write_text(whole)
    lines(captions, answers[:2])
    assert "2 of 4 questions of" in (said := refusal(captions, *options)) and "the first: 'q2'" in said
    pope = [{"question": f"Is there a cat, {number}?", "answer": "yes"} for number in range(4)]
    lines(captions, pope[:3])
    assert "3 answers without ids, and" in refusal(captions, *options)
    lines(captions, [pope[1], pope[0], *pope[2:]])
    assert "the files are not in the same order" in refusal(captions, *options)
    lines(captions, answers)
    questions(tmp_path, labels=False)
    assert "it needs answer, and the items have none. Give the questions with their `label`" in refusal(
        captions, *options
    )


@pytest.mark.parametrize(
    ("needs", "option"),
    [
        ("references", "--references FILE"),
        ("image", "--images DIR"),
        ("objects", "--objects FILE"),
        ("answer", "--questions FILE"),
        ("statements", "`statements: ["),
        ("graph", "`evaluation.metrics`"),
    ],
)
def test_what_a_metric_needs_names_the_option_that_gives_it(tmp_path: Path, needs: str, option: str) -> None:
    captions = lines(tmp_path / "a.jsonl", [{"id": 1, "caption": "x"}])
    said = refusal(captions, "--metric", NEEDY, f"needs=[{needs}]")
    assert f"--metric {NEEDY}: it needs {needs}, and the items have none." in said and option in said


def test_options_are_those_of_the_metric_that_they_name(tmp_path: Path) -> None:
    captions, references = forms(tmp_path)["coco results"]
    two = ("--metric", WORDS, "--metric", NEEDY, "--references", references)
    found = results(captions, "words.lower=true", f"{NEEDY}.needs=[references]", *two, out=tmp_path / "o")
    assert found["about"]["metrics"]["words"]["lower"] is True
    assert found["about"]["metrics"]["needy"]["needs"] == ["references"]
    assert list(found["figures"]) == ["words.words", "words.exact", "words.precision", "needy.seen"]
    said = refusal(captions, "lower=true", *two)
    assert "option 'lower=true': of which metric? Write METRIC.lower=true, with one of words, needy" in said
    assert "key.sub=value" in refusal(captions, "lower", "--metric", WORDS)
    assert "--metric counted_metrics.words.lowr: unknown key" in (
        said := refusal(captions, "lowr=1", "--metric", WORDS)
    )
    assert "Did you mean 'lower'?" in said
    assert "one is given twice" in refusal(captions, "--metric", WORDS, "--metric", WORDS)
    assert "no metric is called 'wordz'" in refusal(captions, "--metric", "wordz")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("few", "figure 'seen' has 3 values for 4 items"),
        ("nan", "figure 'seen' is nan for item '4'"),
        ("twice", "two figures called 'seen'"),
    ],
)
def test_a_metric_that_breaks_the_contract_is_named(tmp_path: Path, broken: str, said: str) -> None:
    captions = forms(tmp_path)["coco results"][0]
    assert f"--metric {NEEDY}: " in (found := refusal(captions, "--metric", NEEDY, f"broken={broken}"))
    assert said in found


def test_a_figure_without_a_value_is_null(tmp_path: Path) -> None:
    captions = forms(tmp_path)["coco results"][0]
    found = results(captions, "--metric", NEEDY, "broken=none", out=tmp_path / "out.json")
    figure = found["figures"]["needy.seen"]
    assert [figure[key] for key in ("value", "low", "high", "n")] == [None, None, None, 0]


def test_a_judge_is_an_endpoint_and_a_model(tmp_path: Path) -> None:
    captions = lines(tmp_path / "a.jsonl", [{"id": 1, "caption": "x"}])
    metric = ("--metric", NEEDY)
    assert "both --judge-url URL and --judge-model NAME" in refusal(captions, *metric, "--judge-model", "m")
    url = ("--judge-url", "http://user:pass@host/v1", "--judge-model", "m")
    said = refusal(captions, *metric, *url)
    assert "user:pass" not in said and "url: must hold no user" in said
    whole = ("--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "m", "--judge-key-env", "KEY")
    assert call(captions, *metric, *whole).exit_code == 0, "nothing is sent before a metric asks"


def test_no_folder_to_write_to_is_told_at_once(tmp_path: Path) -> None:
    done = call(tmp_path / "none.jsonl", "--metric", WORDS, "--out", tmp_path / "no" / "out.json")
    assert done.exit_code == 2 and "make it first" in done.output


def test_texts_alone_need_no_torch(tmp_path: Path) -> None:
    captions, references = forms(tmp_path)["prismcap"]
    code = (
        "import sys; from prismcap.scripts.cli import cli\n"
        f"sys.path.insert(0, {str(FAKES)!r})\n"
        f"cli(['metrics', {str(captions)!r}, '--metric', {WORDS!r}, '--references', {str(references)!r}], "
        "standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "words.exact" in done.stdout
