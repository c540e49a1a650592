"""`prismcap plan`: what a run needs in memory and time, before any of it is there."""

from __future__ import annotations

import click


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--gpu", default="A100-80G", show_default=True, help="Type of GPU; a wrong one lists all.")
@click.option("--num-gpus", default=8, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--lengths",
    multiple=True,
    metavar="STAGE=MIX",
    help="What a stage's samples are like: stage1_pairs, allava_captions or mix665k. Else its data is read.",
)
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="In place of the fitted one.")
def plan(
    config: str,
    overrides: tuple[str, ...],
    gpu: str,
    num_gpus: int,
    lengths: tuple[str, ...],
    mfu: float | None,
) -> None:
    """Print memory, time and cost of every stage of CONFIG with OVERRIDES (key.sub=value).

    The model is made of shapes alone: a 13B model plans on a laptop, and of pretrained parts only config.json
    is needed.
    """
    from prismcap.configs.errors import ConfigError
    from prismcap.configs.load import load_config
    from prismcap.train.plan.gpus import find_gpu
    from prismcap.train.plan.report import Machine, plan_lines

    mixes: dict[str, str] = {}
    for text in lengths:
        stage, equals, mix = text.partition("=")
        if not equals:
            raise ConfigError(f"--lengths {text}: expected STAGE=MIX, for example align=stage1_pairs")
        mixes[stage] = mix
    for line in plan_lines(load_config(config, overrides), Machine(find_gpu(gpu), num_gpus, mfu), mixes):
        click.echo(line)
