"""What a report must show of a whole run: the curves of both stages, the controls beside every figure."""

from __future__ import annotations

import html.parser
import re
import statistics
from pathlib import Path

import pytest
from test_report import fake_run

from prismcap.evaluate.report.page import write_report
from prismcap.evaluate.report.read import read_run, series

STAGES = ("align", "instruct")


class Plots(html.parser.HTMLParser):
    """The texts of each plot of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag == "svg":
            self.inside = True
            self.texts.append([])

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "svg"

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.texts[-1].append(data.strip())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "fake", accuracy=True)


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def plot_with(text: str, title: str) -> list[str]:
    """The texts of the one plot that has a panel of this title."""
    (found,) = [texts for texts in Plots(text).texts if title in texts]
    return found


def table(text: str, part: str) -> list[list[str]]:
    """The first table below the heading of a part, as it is read: its head, then its rows."""
    html_text = text.partition(f'id="{part}"')[2].partition("<table>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", html_text, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][ >].*?</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<.*?>", " ", cell).split()) for cell in row] for row in cells]


def row_of(text: str, part: str, first: str) -> dict[str, str]:
    """The one row of that table that begins with a word, by the words of the head."""
    head, *rows = table(text, part)
    (found,) = [row for row in rows if row[0].split()[0] == first]
    return dict(zip(head, found, strict=True))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "title", ["loss per supervised token", "accuracy on supervised training tokens", "learning rate"]
)
def test_every_stage_has_its_panel(text: str, stage: str, title: str) -> None:
    texts = plot_with(text, f"{stage}: {title}")
    assert [one for one in texts if one.endswith(f": {title}")] == [f"{name}: {title}" for name in STAGES]
    assert "not trained yet" not in texts and "not logged" not in texts


def test_throughput_is_drawn_of_both_stages(text: str) -> None:
    texts = plot_with(text, "samples per second")
    assert "supervised tokens per second" in texts
    assert [texts.count(stage) for stage in STAGES] == [2, 2], "each panel's legend names each stage"


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_of_training_has_the_speed_of_each_stage(run: Path, text: str, stage: str) -> None:
    records = read_run(run).records(stage)
    samples, tokens = (
        statistics.median(series(records, key)[1]) for key in ("samples_per_s", "supervised_tokens_per_s")
    )
    row = row_of(text, "training", stage)
    assert row["steps"] == str(len(records))
    assert row["samples/s"] == f"{samples:.1f}" and row["supervised tokens/s"] == f"{tokens:.0f}"


# the right answers, blank and shuffled, are fake_run's; Wilson's 95% intervals of them by hand
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("all_right", ["99.0 % 96.4 % to 99.7 %", "200", "0 % 0 % to 1.9 %", "0.5 % 0.1 % to 2.8 %"]),
        ("yes_no", ["97.5 % 94.3 % to 98.9 %", "200", "50.0 % 43.1 % to 56.9 %", "49.0 % 42.2 % to 55.9 %"]),
        ("object_right", ["33.3 % 24.5 % to 43.6 %", "90", "1.1 % 0.2 % to 6.0 %", "2.2 % 0.6 % to 7.7 %"]),
    ],
)
def test_a_figure_stands_beside_its_controls_each_with_its_interval(
    text: str, key: str, expected: list[str]
) -> None:
    row = row_of(text, "figures", key)
    assert [row[name] for name in ("true picture", "n", "blank", "shuffled")] == expected


def test_the_plot_of_figures_tells_the_controls_apart(text: str) -> None:
    texts = plot_with(text, "unseen_pairs.all_right")
    assert {"true picture", "another item's picture", "blank picture"} <= set(texts)
    assert {"unseen_pairs.yes_no", "unseen_stamps.object_right"} <= set(texts)
