"""One run folder in, one self-contained HTML file out."""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from prismcap.configs.files import replace_text
from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.report import plots
from prismcap.evaluate.report.gallery import gallery
from prismcap.evaluate.report.read import ReportError, RunFiles, read_run, series
from prismcap.evaluate.results import ABOUT
from prismcap.evaluate.versions import versions


def write_report(folder: Path, seed: int = 0, out: Path | None = None) -> Path:
    """Draw `out`, or `folder`/report.html. Returns its path.

    Raises ReportError when the folder is no run or cannot be written, MissingExtraError without matplotlib.
    """
    run = read_run(folder)
    return write_page(out or folder / "report.html", render(run, seed))


def write_page(path: Path, text: str) -> Path:
    """Put a page in its place. Raises ReportError when it cannot be written."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error}") from error
    return path


def address(path: Path, page: Path) -> str:
    """From a page to a file, so that a folder can be moved with both in it."""
    return quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())


def render(run: RunFiles, seed: int = 0) -> str:
    """The page as text. The same files and seed give the same page."""
    metrics = run.metrics or {}
    about = metrics.get(ABOUT, {})
    rows = metric_rows(metrics)
    groups = gallery(run.folder, run.captions, seed=seed) if run.captions else []
    controls = _control_groups(run, seed)
    stages = [stage_summary(run, stage) for stage in run.stages]
    return template("report.html.j2").render(
        name=run.config.get("name", run.folder.name),
        about=about,
        quick=bool(about.get("quick_in", about.get("quick", False))),
        limited=about.get("limited_in", []),
        min_items=MIN_ITEMS,
        few=any(row["few"] for row in rows),
        stages=stages,
        mfu=any(stage["mfu"] is not None for stage in stages),
        evaluated=run.metrics is not None,
        tables=_by_split(rows),
        rates_svg=markup(plots.rates_plot(rows)),
        caption_tables=_by_split(caption_metric_rows(metrics)),
        caption_metrics=about.get("metrics", {}),
        differences=difference_rows(metrics),
        loss_svg=markup(plots.loss_plot(run)),
        accuracy_svg=markup(plots.accuracy_plot(run)),
        evaluations_svg=markup(plots.evaluations_plot(run)),
        rate_svg=markup(plots.learning_rate_plot(run)),
        throughput_svg=markup(plots.throughput_plot(run)),
        gallery=groups,
        controls=controls,
        config_text=run.config_text,
        versions=about.get("versions") or versions(),
        versions_of="the evaluation" if about.get("versions") else "the drawing of this page",
    )


def template(name: str) -> Template:
    """A template of this folder, with the filters that they use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        bare=lambda value: percent(value).removesuffix(" %"),
        duration=duration,
        measured=measured,
        count=lambda value: f"{value:,}",
        json_text=json.dumps,
    )
    return environment.get_template(name)


def metric_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per rate: figure, split, key, value, blank, shuffled, note, few (n below MIN_ITEMS)."""
    return [row for row in _rows(metrics) if "unit" not in row["value"]]


def caption_metric_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """As metric_rows, of the caption metrics; a value (of a control as well) is {value, low, high, n} with
    its `unit`, and the row says which way is better."""
    rows = [row for row in _rows(metrics) if "unit" in row["value"]]
    for row in rows:
        of = row["value"]
        for key in ("value", "blank", "shuffled"):
            row[key] = row[key] and {**row[key], "value": _value(row[key]), "unit": of["unit"]}
        row["better"] = {True: "higher", False: "lower", None: ""}[of["higher_is_better"]]
    return rows


def _value(figure: dict[str, Any]) -> float:
    value: float = figure["rate"] if "rate" in figure else figure["mean"]
    return value


def _rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    notes = metrics.get(ABOUT, {}).get("notes", {})
    rows = []
    for split, figures in metrics.items():
        if split == ABOUT:
            continue
        for key, value in figures.items():
            if "rate" not in value and "unit" not in value:
                continue
            controls = value.get("controls", {})
            rows.append(
                {
                    "figure": f"{split}.{key}",
                    "split": split,
                    "key": key,
                    "value": value,
                    "blank": controls.get("blank"),
                    "shuffled": controls.get("shuffled"),
                    "note": notes.get(f"{split}.{key}", ""),
                    "few": value["n"] < MIN_ITEMS,
                }
            )
    return rows


def difference_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per caption loss: figure, true, shuffled, difference {mean, low, high, n}, few."""
    return [
        {"figure": f"{stage}.{key}", "few": value["difference"]["n"] < MIN_ITEMS, **value}
        for stage, figures in metrics.items()
        if stage != ABOUT
        for key, value in figures.items()
        if "difference" in value
    ]


def stage_summary(run: RunFiles, stage: str) -> dict[str, Any]:
    """What the log says of one stage; `steps` is 0 and the rest None before it begins."""
    records = run.records(stage)
    finished = (run.folder / stage / "final").is_dir()
    losses = series(records, "loss")[1]

    def median(key: str) -> float | None:
        values = series(records, key)[1]
        return statistics.median(values) if values else None

    peaks = series(records, "peak_memory_mb")[1]
    return {
        "name": stage,
        "finished": finished,
        "steps": records[-1]["step"] if records else 0,
        "last_loss": statistics.fmean(losses[-10:]) if losses else None,
        "time_s": _stage_time(records),
        "samples_per_s": median("samples_per_s"),
        "supervised_tokens_per_s": median("supervised_tokens_per_s"),
        "mfu": median("mfu"),
        "padding_share": median("padding_share"),
        "data_wait_share": median("data_wait_share"),
        "peak_memory_mb": max(peaks) if peaks else None,
        "rejected": rejected(records),
        "cut_tokens": int(sum(series(records, "cut_tokens")[1])),
    }


def _stage_time(records: list[dict[str, Any]]) -> float | None:
    """Seconds of training; `time_s` of a record is the time of that step."""
    values = series(records, "time_s")[1]
    return sum(values) if values else None


def rejected(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Reason -> samples left out so far, from the last record that counts them."""
    for record in reversed(records):
        if isinstance(record.get("rejected"), dict):
            return Counter(record["rejected"]).most_common()
    return []


def _control_groups(run: RunFiles, seed: int) -> list[Any]:
    """A few items of the shuffled control: the caption follows the picture, not the item."""
    return gallery(run.folder, run.captions, "shuffled", seed, most_each=5)[:1] if run.captions else []


def _by_split(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    splits = list(dict.fromkeys(row["split"] for row in rows))
    return [(split, [row for row in rows if row["split"] == split]) for split in splits]


def markup(svg: str | None) -> Markup | None:
    """SVG of our own plots goes in as it is; matplotlib escapes the text in it."""
    return None if svg is None else Markup(svg)


def percent(value: float) -> str:
    """0.9954 -> '99.5 %'. A share below 1 is never shown as 100 %, nor one above 0 as 0 %."""
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        text = "> 99.9"
    if text == "0.0" and value > 0:
        text = "< 0.1"
    return f"{text.removesuffix('.0') if text in ('100.0', '0.0') else text} %"


def measured(value: float, unit: str) -> str:
    """A figure of a caption metric in its unit: a share in percent."""
    if unit == "share":
        return percent(value)
    return f"{value:.2f} words" if unit == "words" else f"{value:.3f}"


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
