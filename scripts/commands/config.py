"""`prismcap config show|validate`: what a run would do, before it does it."""

from __future__ import annotations

import click

from prismcap.configs.errors import ConfigError


@click.group()
def config() -> None:
    """Show or validate a config."""


@config.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
def show(config: str, overrides: tuple[str, ...]) -> None:
    """Print CONFIG (a YAML file or a preset) as it is after base: and OVERRIDES (key.sub=value)."""
    from prismcap.configs.load import load_config, to_yaml

    click.echo(to_yaml(load_config(config, overrides)), nl=False)


@config.command()
@click.argument("configs", nargs=-1, metavar="[CONFIG]...")
def validate(configs: tuple[str, ...]) -> None:
    """Check every CONFIG, the options of its components included; without one, all shipped presets."""
    from prismcap.configs.load import load_config, presets

    failed = 0
    for name in configs or presets():
        try:
            load_config(name)
        except ConfigError as error:
            failed += 1
            click.echo(f"{name}: INVALID\n{error}", err=True)
        else:
            click.echo(f"{name}: valid")
    if failed:
        raise SystemExit(2)
