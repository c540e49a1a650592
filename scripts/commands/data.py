"""`prismcap data inspect`: training data as the model sees it."""

from __future__ import annotations

from pathlib import Path

import click

from prismcap.configs.errors import ConfigError, nearest


@click.group()
def data() -> None:
    """Look at training data as the model sees it."""


@data.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--stage", help="Stage to look at; the first one if not given.")
@click.option("--num", default=20, show_default=True, type=click.IntRange(min=1), help="Samples to show.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="HTML file to write. [default: in the run's folder]"
)
def inspect(config: str, overrides: tuple[str, ...], stage: str | None, num: int, out: Path | None) -> None:
    """Write an HTML page of training samples of CONFIG: pictures, text, what is learned, what is rejected."""
    from prismcap.configs.load import load_config
    from prismcap.data.inspect import inspect_mix, write_page
    from prismcap.data.mix import build_mix
    from prismcap.data.pairs import stage_encoder
    from prismcap.data.schema import DataError
    from prismcap.data.sources._contract import SourceContext
    from prismcap.model.build import build_captioner

    run = load_config(config, overrides)
    name = stage or next(iter(run.stages))
    if name not in run.stages:
        raise ConfigError(f"{config}: no stage is called {name!r}.{nearest(name, run.stages)}")
    chosen = run.stages[name]
    where = f"{config}: stages.{name}"
    try:
        # the data first: it is quick to open, and where mistakes are likely
        mix = build_mix(chosen.data, SourceContext(run.seed, chosen.data.max_image_pixels), f"{where}.data")
        captioner = build_captioner(run.model, config)
        encoder = stage_encoder(chosen, captioner.tokenizer, captioner.token_spec_of(chosen.data), where)
        inspection = inspect_mix(mix, encoder, captioner.image_spec_of(chosen.data), num)
    except DataError as error:
        raise ConfigError(f"{where}.data: {error}") from error
    path = out or Path(run.output_dir) / run.name / f"inspect-{name}.html"
    write_page(inspection, path, f"{run.name} · {name}")
    rejected = ", ".join(f"{reason} {count}" for reason, count in inspection.num_rejected.items()) or "none"
    click.echo(f"{path}: {len(inspection.samples)} samples shown; rejected: {rejected}")
