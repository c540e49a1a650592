"""The rating page: blinded, whole in one file, and driven once in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import webdriver
from judged_files import owl_files, write_answers, write_pictures

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.judged import JudgedConfig
from prismcap.evaluate.judged.blinding import blinded, page_id
from prismcap.evaluate.judged.evaluation import Evaluation, load_evaluation, prepare_run_dir
from prismcap.evaluate.judged.page import rating_page
from prismcap.evaluate.judged.ratings import score_ratings

Make = Callable[..., JudgedConfig]
LEFT, RIGHT, UP, DOWN = "\ue012", "\ue014", "\ue013", "\ue015"
CATCH = """
const make = URL.createObjectURL;
URL.createObjectURL = (blob) => {
    blob.text().then((text) => { window.exported = text; });
    return make(blob);
};
HTMLAnchorElement.prototype.click = () => {};  // the test leaves no file in a folder for downloads
"""
SHOWN = "return document.getElementById('question').textContent"
SAID = "return document.getElementById('said').textContent"
CARDS = "return [...document.querySelectorAll('.answer .said')].map((card) => card.textContent)"
PRESSED = "return [...document.querySelectorAll('[aria-pressed=true]')].map((b) => b.textContent).join('')"
MARKED = "return [...document.querySelectorAll('.answer')].map((one) => one.classList.contains('here'))"


@pytest.fixture
def config(make_config: Make, tmp_path: Path) -> JudgedConfig:
    answers = {
        "ours_v1": write_answers(tmp_path / "ours.jsonl", {1: 0, 2: 1, 3: 2}),
        "theirs_v2": write_answers(tmp_path / "theirs.jsonl", {1: 0, 2: 3, 3: 3}),
    }
    files = owl_files(tmp_path, contexts=False)
    images = write_pictures(tmp_path / "images", ["1.jpg", "2.jpg"], (1200, 800))
    return make_config(files, answers, images=images)


@pytest.fixture
def evaluation(config: JudgedConfig) -> Evaluation:
    return load_evaluation(config)


def test_the_page_is_whole_and_blind(evaluation: Evaluation) -> None:
    page = rating_page(evaluation)
    assert "ours_v1" not in page and "theirs_v2" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)\w+:""", page) and "http:" not in page
    assert "default-src 'none'" in page
    found = re.search(r'<script type="application/json" id="rating-data">(.*?)</script>', page, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["page"] == page_id(evaluation) and len(data["pictures"]) == 2
    assert [len(question["answers"]) for question in data["questions"]] == [1, 2, 2]
    assert data["questions"][2]["earlier"] == ["Is there text?"]
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in data["pictures"])
    assert page == rating_page(evaluation)


def test_what_models_say_cannot_leave_the_data(make_config: Make, tmp_path: Path) -> None:
    rows = [{"question_id": n, "text": f"</script><script>alert({n})</script><!--"} for n in (1, 2, 3)]
    (tmp_path / "mean.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = write_pictures(tmp_path / "images", ["1.jpg", "2.jpg"])
    answers = {"mean": str(tmp_path / "mean.jsonl")}
    page = rating_page(
        load_evaluation(make_config(owl_files(tmp_path, contexts=False), answers, images=images))
    )
    assert page.count("<script") == 2 and page.count("</script") == 2 and "<!--" not in page


def test_pictures_that_cannot_be_shown_are_told(config: JudgedConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images: name the folder"):
        rating_page(load_evaluation(config.model_copy(update={"images": None})))
    with pytest.raises(ConfigError, match="images: nowhere: no such folder"):
        rating_page(load_evaluation(config.model_copy(update={"images": "nowhere"})))
    path = tmp_path / "images" / "2.jpg"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"owl\.jsonl, line 2: image '2\.jpg': .*Mend the file"):
        rating_page(load_evaluation(config))
    path.unlink()
    with pytest.raises(DataError, match=r"owl\.jsonl, line 2: image '2\.jpg': .*no such picture file"):
        rating_page(load_evaluation(config))
    text = (tmp_path / "owl.jsonl").read_text().replace('"1.jpg"', '"../1.jpg"')
    (tmp_path / "owl.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"line 1: image '\.\./1\.jpg': .*outside of the data root"):
        rating_page(load_evaluation(config))


@pytest.mark.skipif(webdriver.why_no_browser() is not None, reason=webdriver.why_no_browser() or "")
def test_a_person_grades_by_keys_leaves_comes_back_and_exports(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(rating_page(evaluation))
    shown = {item.id: [answer.text for answer in answers] for item, answers in blinded(evaluation)}
    with webdriver.browser(tmp_path) as window:
        window.open(path.as_uri())
        window.find(".answer")
        assert window.run(CARDS) == shown["1"]
        window.click("#export")
        assert window.run(SAID) == "Enter your name first."
        window.type("#rater", "Abd")  # the letters are no grades here
        assert window.run(PRESSED) == ""
        window.type("body", "a")  # the only answer: on to the next question
        assert window.run(SHOWN) == "Is there text?" and window.run(CARDS) == shown["2"]
        window.type("body", "b")
        assert window.run(MARKED) == [False, True] and window.run(PRESSED) == "B"
        window.type("body", UP)
        window.type("body", "c")  # another mind about the first
        assert window.run(PRESSED) == "C"
        window.open(path.as_uri())  # as after a closed browser
        window.find(".answer")
        assert window.run(SHOWN) == "Is there text?" and window.run(PRESSED) == "C"
        assert window.run(SAID) == "2 of 5 answers graded, 1 of 3 questions done."
        window.type("body", "D")  # the marked one is the first that is open
        assert window.run(SHOWN) == "And?"
        assert window.run("return document.getElementById('earlier').textContent") == "Is there text?"
        window.type("body", LEFT)
        assert window.run(PRESSED) == "CD"
        window.type("body", RIGHT)
        window.click(".answer:nth-child(2) .grades button:nth-child(1)")
        window.run(CATCH)
        window.click("#export")
        exported = webdriver.until(lambda: window.run("return window.exported || null"), "the export")
        assert "4 grades exported to ratings-judged-Abd.json" in window.run(SAID)
        errors = [entry for entry in window.log("browser") if entry["level"] == "SEVERE"]
        assert not errors
        asked = [json.loads(entry["message"])["message"] for entry in window.log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    assert path.as_uri() in urls
    assert not [url for url in urls if url.startswith(("http", "ws"))]
    (tmp_path / "ratings.json").write_text(exported)
    prepare_run_dir(evaluation)
    results = score_ratings(evaluation, [tmp_path / "ratings.json"])
    assert results["raters"]["names"] == {"Abd": 4}
    grades = {(one["question_id"], one["answer"]): one["grade"] for one in json.loads(exported)["ratings"]}
    tokens = {item.id: [answer.token for answer in answers] for item, answers in blinded(evaluation)}
    assert grades == {
        ("1", tokens["1"][0]): "A",
        ("2", tokens["2"][0]): "C",
        ("2", tokens["2"][1]): "D",
        ("3", tokens["3"][1]): "A",
    }
