"""The Prism page in a real browser: its filters, its pages, and that nothing comes from outside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdriver
from prism_runs import prism_run

from prismcap.evaluate.report.prism_page import draw_prism

pytestmark = pytest.mark.skipif(
    webdriver.why_no_browser() is not None, reason=webdriver.why_no_browser() or ""
)
PAGE = 20  # items on one page
CHOOSE = """
const select = document.getElementById("by-%s");
select.value = [...select.options].find((option) => option.textContent === %s).value;
select.dispatchEvent(new Event("change", {bubbles: true}));
"""
CARDS = "return [...document.querySelectorAll('#items .item')].map((card) => card.innerText)"
Item = dict[str, Any]


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Browser]:
    with webdriver.browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(window: webdriver.Browser, run: Path) -> webdriver.Browser:
    """The page of the fixture's run, just opened."""
    window.log("performance")
    window.open((run / "report.html").as_uri())
    window.find("#items .item")
    return window


@pytest.fixture(scope="module")
def items(run: Path) -> list[Item]:
    """The rows of items.jsonl with their causes."""
    rows = [json.loads(line) for line in (run / "items.jsonl").read_text().split("\n")[:-1]]
    causes = [json.loads(line) for line in (run / "attribution.jsonl").read_text().split("\n")[:-1]]
    keys = ("id", "perceiver", "instruction", "reasoner")
    by_item = {tuple(row[key] for key in keys): row["cause"] for row in causes}
    return [row | {"cause": by_item.get(tuple(row[key] for key in keys))} for row in rows]


def choose(page: webdriver.Browser, kind: str, text: str) -> None:
    page.run(CHOOSE % (kind, json.dumps(text)))


def said(page: webdriver.Browser) -> str:
    return str(page.run("return document.getElementById('said').textContent"))


def expect(page: webdriver.Browser, found: list[Item], total: int) -> None:
    """The count, the number of pages, and the first page's cards."""
    pages = max(1, -(-len(found) // PAGE))
    assert said(page) == f"{len(found):,} of {total:,} items · page 1 of {pages:,}"
    cards = page.run(CARDS)
    assert len(cards) == min(PAGE, len(found))
    for card, item in zip(cards, found, strict=False):
        assert item["question"] in card and f"{item['perceiver']} + {item['reasoner']}" in card
        assert f"read as, by rule {item['how']}" in card
        assert ("what failed" in card) == (item["status"] == "failed")
        for text in (item["reply"], item["description"] or "(none was given)", item["error"] or ""):
            assert " ".join(text.split()) in " ".join(card.split())


def test_each_filter_shows_what_it_says(page: webdriver.Browser, items: list[Item]) -> None:
    wrong = [item for item in items if not item["right"]]
    expect(page, wrong, len(items))  # errors first
    choose(page, "verdict", "all")
    expect(page, items, len(items))
    filters: list[tuple[str, str, Callable[[Item], bool]]] = [
        ("verdict", "right", lambda item: item["right"]),
        ("perceiver", "captioner", lambda item: item["perceiver"] == "captioner"),
        ("reasoner", "smollm2", lambda item: item["reasoner"] == "smollm2"),
        ("cause", "perception lost", lambda item: item["cause"] == "perception_lost"),
        ("cause", "not attributed", lambda item: item["cause"] is None),
        ("ability", "category: left/right", lambda item: item["categories"]["category"] == "left/right"),
        ("how", "failed", lambda item: item["status"] == "failed"),
        ("how", "refusal", lambda item: item["how"] == "refusal"),
        ("instruction", "generic", lambda item: item["instruction"] == "generic"),
    ]
    for kind, text, holds in filters:
        choose(page, kind, text)
        expect(page, [item for item in items if holds(item)], len(items))
        choose(page, kind, "all")
    choose(page, "perceiver", "blank")
    choose(page, "ability", "category: size")
    choose(page, "verdict", "wrong")
    some = [
        item for item in wrong if item["perceiver"] == "blank" and item["categories"]["category"] == "size"
    ]
    expect(page, some, len(items))
    page.type("#by-text", "QUESTION 11)")
    expect(page, [item for item in some if "question 11)" in item["question"]], len(items))


def test_pages_turn_and_end(page: webdriver.Browser, items: list[Item]) -> None:
    choose(page, "verdict", "all")
    choose(page, "perceiver", "reference")
    choose(page, "reasoner", "keyword")
    found = [item for item in items if (item["perceiver"], item["reasoner"]) == ("reference", "keyword")]
    disabled = (
        "return [...document.querySelectorAll('#browser [data-turn]')].map((b) => b.disabled).slice(0, 2)"
    )
    assert page.run(disabled) == [True, False]
    for number in range(2, 7):
        page.run("document.querySelector('[data-turn=\"1\"]').click()")
        assert said(page) == f"120 of 1,560 items · page {number} of 6"
        assert found[(number - 1) * PAGE]["question"] in page.run(CARDS)[0]
    assert page.run(disabled) == [False, True]
    page.run("document.querySelector('[data-turn=\"-1\"]').click()")
    assert "page 5 of 6" in said(page)


def test_a_count_opens_its_items(page: webdriver.Browser, items: list[Item]) -> None:
    choose(page, "ability", "category: size")
    cell = '{"run": 0, "benchmark": "scenes", "perceiver": "blank", "instruction": "generic", '
    cell += '"reasoner": "smollm2_http", "cause": "reasoning_lost"}'
    link = f"[...document.querySelectorAll('[data-show]')].find((a) => a.dataset.show === '{cell}')"
    wanted = json.loads(page.run(f"const link = {link}; link.click(); return link.dataset.show"))
    count = page.run(f"return {link}.textContent")
    found = [item for item in items if all(item[key] == wanted[key] for key in wanted if key != "run")]
    assert len(found) == int(count) > 0
    expect(page, found, len(items))


def test_nothing_is_loaded_from_outside_and_nothing_complains(page: webdriver.Browser) -> None:
    choose(page, "verdict", "all")
    # no text of a model became an element or ran
    assert page.run("return document.querySelectorAll('#items script, #items [onerror]').length") == 0
    assert page.run("return document.querySelectorAll('#items img').length") == PAGE
    loaded = (
        "return [...document.querySelectorAll('#items img')].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert webdriver.until(lambda: page.run(loaded), "the pictures")
    sent = [json.loads(entry["message"])["message"] for entry in page.log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)
    assert {url for url in urls if url.startswith("file:")} == {
        page.run("return location.href.split('#')[0]")
    }
    assert page.log("browser") == []


def test_a_console_error_would_be_seen(page: webdriver.Browser) -> None:
    page.run("const s = document.createElement('script'); s.textContent = '1'; document.body.append(s)")
    assert any("Content Security Policy" in entry["message"] for entry in page.log("browser"))


def test_ten_thousand_items_are_one_page_of_cards(window: webdriver.Browser, tmp_path: Path) -> None:
    folder = prism_run(
        tmp_path / "large",
        num_questions=2000,
        perceivers=["captioner"],
        reasoners=["keyword", "smollm2"],
        pictures=False,
    )
    window.open(draw_prism([folder], folder / "report.html").as_uri())
    window.find("#items .item")
    choose(window, "verdict", "all")
    assert said(window) == "10,000 of 10,000 items · page 1 of 500"
    assert len(window.run(CARDS)) == PAGE
    assert window.run("return document.querySelectorAll('*').length") < 8000
    assert window.log("browser") == []


def test_the_page_does_not_scroll_sideways_on_a_phone(page: webdriver.Browser) -> None:
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    override = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
    page.call("POST", "/goog/cdp/execute", override)
    try:
        widths = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert widths[1] == 400 and widths[0] <= 400
    finally:
        clear = {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}}
        page.call("POST", "/goog/cdp/execute", clear)
