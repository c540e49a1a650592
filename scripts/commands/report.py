"""`prismcap report RUN…`: one self-contained HTML page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write.  [default: RUN/report.html; of several runs, compare-….html beside the first]",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Draw a page of RUN: curves, figures, a gallery, config and versions.

    With several RUNs, one page compares them: their curves overlaid, their figures side by side with
    intervals, and the keys in which their configs differ. Pages are drawn from the files of the folders
    alone; what is not there yet is said on the page.
    """
    from prismcap.evaluate.report.compare import write_comparison
    from prismcap.evaluate.report.page import write_report
    from prismcap.evaluate.report.read import ReportError

    try:
        path = write_report(runs[0], out=out) if len(runs) == 1 else write_comparison(runs, out)
    except ReportError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from error
    click.echo(f"Report: {path}")
