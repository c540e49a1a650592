"""`prismcap report RUN…`: one self-contained HTML page of a run, of several, or of an ablation."""

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
    intervals, and the keys in which their configs differ. Where RUN is the folder of an ablation, its cells
    are read again (results.json, table.csv) and its effects drawn. Pages are drawn from the files of the
    folders alone; what is not there yet is said on the page.
    """
    from prismcap.configs.errors import DataError
    from prismcap.evaluate.ablation.collect import collect
    from prismcap.evaluate.report.ablation_page import draw_ablation, is_ablation
    from prismcap.evaluate.report.compare import write_comparison
    from prismcap.evaluate.report.page import write_report

    ablation = next((run for run in runs if is_ablation(run)), None)
    try:
        if ablation is not None and len(runs) > 1:
            raise DataError(f"{ablation}: the folder of an ablation is drawn by itself; name it alone")
        if ablation is not None:
            collect(ablation)
            path = draw_ablation(ablation, out)
        else:
            path = write_report(runs[0], out=out) if len(runs) == 1 else write_comparison(runs, out)
    except DataError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from error
    click.echo(f"Report: {path}")
