"""`prismcap report RUN…`: one self-contained HTML page per run folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
def report(runs: tuple[Path, ...]) -> None:
    """Draw RUN/report.html for each run folder: curves, figures, a gallery, config and versions.

    It is drawn from the files of the folder alone; what is not there yet is said on the page.
    """
    from prismcap.evaluate.report.page import write_report
    from prismcap.evaluate.report.read import ReportError

    failed = 0
    for run in runs:
        try:
            click.echo(f"Report: {write_report(run)}")
        except ReportError as error:
            click.echo(f"Error: {error}", err=True)
            failed += 1
    if failed:
        raise SystemExit(2)
