"""The page of a Prism run: every figure of results.json is on it, and it asks for nothing from outside."""

from __future__ import annotations

import html.parser
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prism_runs import ABILITIES, HOSTILE, prism_run
from test_report import Page

from prismcap.evaluate.intervals import difference_of_rates
from prismcap.evaluate.report import prism_items
from prismcap.evaluate.report.prism_items import embeddable
from prismcap.evaluate.report.prism_page import draw_prism


class Tables(html.parser.HTMLParser):
    """The rows of all tables by their first cell, under the heading before; <br> is a line break."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.heading = ""
        self.rows: dict[tuple[str, str], list[list[str]]] = {}
        self.row: list[str] | None = None
        self.into: str | None = None
        self.svg_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag == "tr":
            self.row = []
        elif tag in ("td", "th") and self.row is not None:
            self.row.append("")
        elif tag == "br" and self.row:
            self.row[-1] += "\n"
        elif tag in ("h2", "h3", "summary", "text"):
            self.into = tag
            if tag == "text":
                self.svg_text.append("")
            else:
                self.heading = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self.row:
            cells = [cell.strip() for cell in self.row]
            self.rows.setdefault((self.heading.strip(), cells[0]), []).append(cells[1:])
            self.row = None
        elif tag == self.into:
            self.into = None

    def handle_data(self, data: str) -> None:
        if self.into == "text":
            self.svg_text[-1] += data.strip()
        elif self.into is not None:
            self.heading += data
        elif self.row:
            self.row[-1] += data

    def under(self, heading: str) -> dict[str, list[str]]:
        """First cell -> the others, of the tables under a heading; its head rows too."""
        return {first: rows[0] for (under, first), rows in self.rows.items() if under == heading}


def bare(share: float) -> str:
    """As the page writes a share, without its sign."""
    return {0: "0", 1: "100"}.get(share, f"{100 * share:.1f}")


def shown(rate: dict[str, Any] | None, n: int | None = None) -> str:
    if rate is None:
        return "–"
    count = f", n = {rate['n']}" if n not in (None, rate["n"]) else ""
    return f"{bare(rate['rate'])} %\n{bare(rate['low'])} to {bare(rate['high'])}{count}"


def name_of(row: dict[str, Any]) -> str:
    return f"{row['perceiver']} + {row['reasoner']}"


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


def edited(folder: Path, **changes: Any) -> Path:
    """The run, with keys of its results replaced."""
    (folder / "results.json").write_text(json.dumps(results_of(folder) | changes))
    return folder


def drawn(*folders: Path) -> str:
    return draw_prism(folders, folders[0] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables(text: str) -> Tables:
    return Tables(text)


def small(folder: Path, **options: Any) -> Path:
    return prism_run(
        folder, **{"num_questions": 12, "perceivers": ["captioner"], "reasoners": ["keyword"]} | options
    )


def test_the_page_is_one_file_that_asks_for_nothing(text: str, tmp_path: Path) -> None:
    page = Page(text)
    assert page.outside() == ["<a href=results.json>", "<a href=results.csv>", "<script>", "<script>"]
    assert page.open == []
    assert "http://" not in text and "https://" not in text and "@import" not in text
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    run = small(tmp_path / "run with a space")
    elsewhere = draw_prism([run], tmp_path / "page.html").read_text(encoding="utf-8")
    (link,) = [a["href"] for _, a in Page(elsewhere).tags if (a.get("href") or "").endswith("results.json")]
    assert link == "run%20with%20a%20space/results.json"
    assert drawn(run) == drawn(run), "the same files, the same page"


def test_every_cell_stands_with_all_its_figures(tables: Tables, run: Path) -> None:
    rows = tables.under("All cells")
    cells = results_of(run)["cells"]
    assert len(cells) == 3 * 3 + 3 + 1
    for cell in cells:
        n = cell["n"]
        length = cell["description_tokens"]
        assert rows[name_of(cell)] == [
            str(n),
            shown(cell["micro"]),
            shown(cell["macro"]["category"]),
            shown(cell["macro"]["l2-category"]),
            *(shown(cell["refusals"][way], n) for way in ("wrong", "expected", "excluded")),
            *(f"{bare(cell[key])} %" for key in ("refused", "unmatched", "failed", "cut_off")),
            f"{length['mean']:.1f} / {length['median']:.1f} words" if length else "–",
        ]
    assert [head.replace("\n", " ") for head in rows["cell"]][:2] == ["n", "micro"]
    for column in ("category", "l2-category"):
        table = tables.under(f"The figures by {column}")
        for cell in cells:
            by = cell["by"][column]
            assert dict(zip(table["cell"], table[name_of(cell)], strict=True)) == {
                value: f"{shown(rate)}, n = {rate['n']}" for value, rate in by.items()
            }
    assert tuple(tables.under("The figures by category")["cell"]) == ABILITIES


def test_the_heat_map_says_rate_interval_and_n_of_every_cell(tables: Tables, run: Path) -> None:
    for cell in results_of(run)["cells"]:
        rate = cell["micro"]
        between = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}, n = {rate['n']}"
        assert f"{100 * rate['rate']:.1f} %" in tables.svg_text and between in tables.svg_text
    for name in ("captioner", "blank", "reference", "blind", "keyword", "smollm2_http", "end_to_end"):
        assert name in tables.svg_text


def test_causes_add_up_to_the_items(tables: Tables, run: Path) -> None:
    causes = [json.loads(line) for line in (run / "attribution.jsonl").read_text().splitlines()]
    rows = tables.under("Why answers are right or wrong")
    heads = rows["cell"]
    assert heads[-1] == "n" and len(heads) == 10
    for name in {name_of(row) for row in causes}:
        counts = [int(count) for count in rows[name]]
        assert sum(counts[:-1]) == counts[-1] == 120
        found = Counter(row["cause"].replace("_", " ") for row in causes if name_of(row) == name)
        assert {head: count for head, count in zip(heads[:-1], counts, strict=False) if count} == found
        for cause, count in found.items():
            if count >= 6:
                assert str(count) in tables.svg_text, f"{cause} stands in the bar"


def test_comparisons_lengths_and_costs_are_complete(tables: Tables, run: Path) -> None:
    results = results_of(run)
    (rows,) = [tables.rows[key] for key in tables.rows if key[0].startswith("12 comparisons")][1:2]
    assert len(rows) == len(results["comparisons"]) == 12
    for row, value in zip(rows, results["comparisons"], strict=True):
        difference = value["difference"]
        low, high = f"{100 * difference['low']:+.1f}", f"{100 * difference['high']:+.1f}"
        assert row[:3] == [name_of(value["b"]), f"{100 * difference['mean']:+.1f}\n{low} to {high}", "120"]
        assert row[3] == f"11, {value['only_b']}"
        p_values = [value["mcnemar_p"], value["p_holm"]]
        assert row[4:6] == ["< 0.0001" if p < 0.0001 else f"{p:.4f}" for p in p_values]
        assert row[6] == "12.8"
    lengths = tables.under("The figures by length")
    for row in results["length_curve"]:
        assert name_of(row) in lengths
    by_length = [
        cells
        for (under, _), rows in tables.rows.items()
        if under == "The figures by length"
        for cells in rows
    ]
    assert len(by_length) == len(results["length_curve"]) + 1
    for row in results["length_curve"]:
        tokens = row["tokens"]
        expected = [f"{tokens['low']} to {tokens['high']} words", f"{tokens['mean']:.1f}", shown(row["rate"])]
        assert [*expected, str(row["rate"]["n"])] in by_length
    totals = tables.under("Cost")
    # 3 perceivers described 120 pictures once each, for three reasoners; the captioner answered 120 itself
    assert totals["perceive"] == ["480", "8", "12", "29,280", "19,680", "0", "1 min 6 s", "–"]
    assert (
        totals["reason"][:5] == ["1,560", "26", "39", "95,160", "10,920"] and totals["reason"][-1] == "0.1599"
    )
    assert tables.under("Cost of each cell")["captioner + keyword"] == [
        "perceive", "120", "2", "3", "7,320", "4,920", "0", "16 s", "–"
    ]  # fmt: skip


def test_what_models_wrote_stays_text(text: str, run: Path) -> None:
    page = Page(text)
    assert [a for tag, a in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "prism-data"},
        {},
    ]
    start = text.index('id="prism-data">') + len('id="prism-data">')
    data = json.loads(text[start : text.index("</script>", start)])
    items = [json.loads(line) for line in (run / "items.jsonl").read_text().split("\n")[:-1]]
    assert len(items) == len(data["items"]) == 13 * 120
    assert any(HOSTILE in item["reply"] for item in items)
    for item, row in zip(items, data["items"], strict=True):
        asked = data["questions"][row[0]]
        assert asked[2:6] == [item["id"], item["question"], item["options"], item["answer"]]
        assert data["pictures"][asked[6]].startswith("data:image/png;base64,")
        assert [data["names"][number] for number in row[1:4]] == [
            item["perceiver"], item["instruction"], item["reasoner"]
        ]  # fmt: skip
        assert (data["texts"][row[4]] if row[4] >= 0 else None) == item["description"]
        assert data["texts"][row[5]] == item["reply"]
    assert len(data["pictures"]) < 120 and len(data["questions"]) == 120, "each picture and question once"


def test_embedded_json_cannot_end_its_element() -> None:
    value = {"a": "</script><!--<script> & \u2028\u2029"}
    text = str(embeddable(value))
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_names_from_files_are_escaped_everywhere(tmp_path: Path) -> None:
    folder = small(tmp_path / "run")
    hostile = "$\\frac{$<img src=x onerror=alert(1)>"  # a formula that does not parse, then markup
    for name in ("results.json", "items.jsonl", "attribution.jsonl"):
        written = (folder / name).read_text()
        for known in ("captioner", "recognition"):
            written = written.replace(f'"{known}"', json.dumps(known + hostile))
        (folder / name).write_text(written)
    page = Page(drawn(folder))
    assert page.open == [] and not any(attributes.get("src") for _, attributes in page.tags)
    assert f"captioner{hostile}" in page.text and f"recognition{hostile}" in page.text


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    run = small(tmp_path / "first")
    other = small(tmp_path / "other", seed=3, instructions=("generic", "query"))
    tables = Tables(draw_prism([run, other], tmp_path / "page.html").read_text(encoding="utf-8"))
    rows = tables.under("Runs side by side")
    assert rows["cell"] == ["first", "other"]
    first, second = (results_of(folder)["cells"] for folder in (run, other))
    a, b = first[0]["micro"], second[0]["micro"]
    difference = difference_of_rates(a, b)
    ends = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    assert rows["captioner (generic) + keyword"] == [
        shown(a),
        f"{shown(b)}\n{100 * difference.mean:+.1f} ({ends})",
    ]
    assert rows["captioner (query) + keyword"][0] == "–", "the first run has no such cell"
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and page.open == []
    edited(other, benchmarks={"scenes": {"num_questions": 120, "checksum": "else", "categories": []}})
    assert "different questions" in Page(draw_prism([run, other], tmp_path / "b.html").read_text()).text


def test_comparisons_between_runs_name_their_runs(tmp_path: Path) -> None:
    runs = [small(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second"))]
    compared = results_of(runs[0])["comparisons"][:1]
    compared[0]["a"]["run"], compared[0]["b"]["run"] = "first", "second"
    compared[0] |= {"difference": {"mean": -0.25, "low": -0.4, "high": -0.1, "n": 12}, "p_holm": 0.01}
    before = json.dumps(compared)
    page = draw_prism(runs, tmp_path / "page.html", compared).read_text(encoding="utf-8")
    assert json.dumps(compared) == before
    row = Tables(page).under("Runs against each other")["first: captioner + keyword"]
    assert row[:2] == ["second: blind + keyword", "-25.0\n-40.0 to -10.0"]
    assert row[-1] == "first: captioner + keyword is better than second: blind + keyword by 25.0 points"
    assert "Runs against each other" not in draw_prism(runs, tmp_path / "page.html").read_text()


def test_pictures_end_where_the_page_would_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small(tmp_path / "run")
    (folder / "pictures/scenes-3.png").unlink()
    page = drawn(folder)
    assert "1 question has no picture here" in page
    num_pictures = page.count("data:image/png")  # drawn with the same word they are equal, and there once
    monkeypatch.setattr(prism_items, "MOST_PICTURE_BYTES", 1500)
    page = drawn(folder)
    assert 0 < page.count("data:image/png") < num_pictures
    assert "questions have no picture here" in page


def test_very_long_texts_are_shortened_in_the_middle() -> None:
    text = "a" * 5000 + "b" * 5000
    short = prism_items.shortened(text)
    assert (
        short.startswith("a" * 3000) and short.endswith("b" * 3000) and "4,000 characters left out" in short
    )
    assert prism_items.shortened("x" * 6000) == "x" * 6000
