"""`prismcap recipes`: what recipes are there, and what each would take."""

from __future__ import annotations

import click


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--gpu", default="A100-80G", show_default=True, help="Type of GPU; a wrong one lists all.")
@click.option("--num-gpus", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--short", is_flag=True, help="Print the names alone, at once.")
def recipes(names: tuple[str, ...], gpu: str, num_gpus: int, short: bool) -> None:
    """Print a table of the recipes, or of those with NAME: data, what trains, memory and time of each stage.

    Full-size models are made of shapes alone and planned one by one: about ten seconds for a stage. Memory
    is of one GPU, with the recipe's own engine and micro-batch; `prismcap plan recipes/NAME` shows it by part
    and engine.
    """
    import os

    # sizes of what the recipes name are at hand: the hub would only be asked for tokenizers
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from prismcap.train.plan.gpus import find_gpu
    from prismcap.train.plan.recipes import recipe_names, recipe_stages, table_lines
    from prismcap.train.plan.report import Machine

    if short:
        for name in recipe_names():
            click.echo(f"recipes/{name}")
        return
    for line in table_lines(recipe_stages(names, Machine(find_gpu(gpu), num_gpus))):
        click.echo(line)
