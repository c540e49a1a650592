"""`prismcap judge`: answers scored by a model that compares, or by people on a page."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from prismcap.scripts.groups import NamingGroup
from prismcap.scripts.places import check_folder_of, default_device

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=NamingGroup)
def judge() -> None:
    """Have models' answers judged, by an LLM or by people: LLaVA-Bench, OwlEval, MM-Vet, coverage."""


@judge.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--retry-failed", is_flag=True, help="Ask again, once, for what failed before.")
@click.option("--device", help="cpu, cuda, …, of a local judge  [default: cuda if there is one]")
def run(config: str, overrides: tuple[str, ...], retry_failed: bool, device: str | None) -> None:
    """Put every answer of CONFIG (a YAML file or a preset) to its judge, after OVERRIDES (key.sub=value).

    Replies are kept in the evaluation's folder as they come: what is known is not asked again. Writes
    results.json, results.csv and items.jsonl there.
    """
    from prismcap.configs.load import load_judged
    from prismcap.evaluate.judged.evaluation import run_dir_of
    from prismcap.evaluate.judged.run import run_judged
    from prismcap.evaluate.judged.table import judged_table

    loaded = load_judged(config, overrides)
    local = loaded.judge is not None and loaded.judge.name == "hf"
    results = run_judged(
        loaded,
        device=device or (default_device() if local else "cpu"),
        retry_failed=retry_failed,
        show_progress=sys.stderr.isatty(),
        is_first=os.environ.get("RANK", "0") == "0",
    )
    if results is not None:
        click.echo(judged_table(results))
        click.echo(f"Results: {run_dir_of(loaded)}")


@judge.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--out", type=FILE, required=True, help="HTML file to write.")
def page(config: str, overrides: tuple[str, ...], out: Path) -> None:
    """Draw the page on which people grade CONFIG's answers, A to D, without seeing whose they are.

    One file that needs no server: open it in a browser, grade, press Export, and hand the files to `prismcap
    judge ratings`.
    """
    from prismcap.configs.load import load_judged
    from prismcap.evaluate.judged.evaluation import load_evaluation
    from prismcap.evaluate.judged.page import rating_page
    from prismcap.evaluate.report.page import write_page

    check_folder_of(out)
    evaluation = load_evaluation(load_judged(config, overrides))
    click.echo(f"Page: {write_page(out, rating_page(evaluation))}")


@judge.command()
@click.argument("config")
@click.argument("ratings", nargs=-1, required=True, metavar="RATINGS...", type=FILE)
def ratings(config: str, ratings: tuple[Path, ...]) -> None:
    """Score what people graded: RATINGS are files that the page of CONFIG exported, one per rater.

    Prints the shares of answers graded A or B, and how far the raters agree, with each other and with the
    judge if it graded too. Writes ratings.json into the evaluation's folder.
    """
    from prismcap.configs.load import load_judged
    from prismcap.evaluate.judged.evaluation import load_evaluation, prepare_run_dir
    from prismcap.evaluate.judged.ratings import RATINGS, score_ratings
    from prismcap.evaluate.judged.table import ratings_table

    evaluation = load_evaluation(load_judged(config))
    run_dir = prepare_run_dir(evaluation)
    click.echo(ratings_table(score_ratings(evaluation, ratings)))
    click.echo(f"Results: {run_dir / RATINGS}")
