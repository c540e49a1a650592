"""`prismcap evaluate RUN`: the figures of a run on its held-out splits."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", "splits", multiple=True, metavar="NAME", help="Only this split; can be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many items of each kind, for a look.")
@click.option("--missing", is_flag=True, help="Only what metrics.json does not hold of these weights yet.")
@click.option("--device", help="cpu, cuda, …  [default: cuda if there is one]")
def evaluate(
    run: Path, splits: tuple[str, ...], limit: int | None, missing: bool, device: str | None
) -> None:
    """Measure RUN (a folder under checkpoints/): metrics.json, captions.jsonl and outcomes.jsonl there.

    Every figure has its 95% interval, and two controls: a blank picture and another item's picture.
    """
    import torch

    from prismcap.configs.load import load_config
    from prismcap.data.schema import DataError
    from prismcap.evaluate.results import METRICS
    from prismcap.evaluate.run import evaluate_run
    from prismcap.evaluate.table import metrics_table
    from prismcap.train.allocator import keep_freed_memory
    from prismcap.train.precision import warn_if_slow

    keep_freed_memory()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (run / "config.yaml").is_file():
        config = load_config(run / "config.yaml")
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        warn_if_slow(list(config.stages.values())[-1].precision, torch.device(device))
    try:
        metrics = evaluate_run(run, splits, limit, device, sys.stderr.isatty(), missing)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    click.echo(metrics_table(metrics))
    about = metrics["about"]
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in about["parts_s"].items())
    click.echo(f"{about['total_s']:.0f} seconds in all ({parts}); written to {run / METRICS}")
    if about["quick"]:
        click.echo("These figures are of a quick run: trained on few scenes, measured on few items.")
    if about["limited"]:
        click.echo(
            f"--limit cut short {', '.join(about['limited_in'])}: only a part of the items was measured."
        )
