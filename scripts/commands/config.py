"""`prismcap config show|validate`: what a run would do, before it does it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from prismcap.configs.errors import ConfigError
from prismcap.scripts.groups import NamingGroup

if TYPE_CHECKING:
    from prismcap.configs.schema.run import RunConfig


@click.group(cls=NamingGroup)
def config() -> None:
    """Show or validate a config."""


@config.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--deepspeed", is_flag=True, help="Print the JSON that DeepSpeed is handed instead, by stage.")
def show(config: str, overrides: tuple[str, ...], deepspeed: bool) -> None:
    """Print CONFIG (a YAML file or a preset) as it is after base: and OVERRIDES (key.sub=value)."""
    from prismcap.configs.load import load_any, to_yaml
    from prismcap.configs.schema.run import RunConfig

    loaded = load_any(config, overrides)
    if not deepspeed:
        click.echo(to_yaml(loaded), nl=False)
        return
    if not isinstance(loaded, RunConfig):
        raise ConfigError(f"{config}: it trains nothing, so there is no JSON for DeepSpeed")
    generated, others = deepspeed_json(loaded)
    if not generated:
        raise ConfigError(
            f"{config}: no stage trains with DeepSpeed ({', '.join(others)}), so there is no JSON to show. "
            "Add the override 'stages.*.engine.name=deepspeed'."
        )
    for other in others:
        click.echo(f"{other}: left out", err=True)
    click.echo(json.dumps(generated, indent=2))


def deepspeed_json(config: RunConfig) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """By stage, what its engine hands to DeepSpeed; and the stages of other engines, as `stage: engine`."""
    from prismcap.configs.registry import component_options
    from prismcap.train.distributed import pick_device
    from prismcap.train.engines.deepspeed import Options, deepspeed_config
    from prismcap.train.precision import fastest_precision, with_precision

    config = with_precision(config, fastest_precision(pick_device()))
    generated, others = {}, []
    for name, stage in config.stages.items():
        _, options = component_options("engine", stage.engine, f"stages.{name}.engine")
        if isinstance(options, Options):
            generated[name] = deepspeed_config(options, stage)
        else:
            others.append(f"stages.{name}.engine.name: {stage.engine.name}")
    return generated, others


@config.command()
@click.argument("configs", nargs=-1, metavar="[CONFIG]...")
def validate(configs: tuple[str, ...]) -> None:
    """Check every CONFIG, the options of its components included; without one, all shipped presets."""
    from prismcap.configs.load import load_any, presets

    failed = 0
    for name in configs or presets():
        try:
            load_any(name)
        except ConfigError as error:
            failed += 1
            click.echo(f"{name}: INVALID\n{error}", err=True)
        else:
            click.echo(f"{name}: valid")
    if failed:
        raise SystemExit(2)
