"""`prismcap convert LAYOUT SRC DST`: a model with code of its own as one that transformers knows."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("layout", metavar="LAYOUT", type=click.Choice(["internlm2"]))
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an older conversion at DST.")
def convert(layout: str, source: Path, destination: Path, force: bool) -> None:  # noqa: ARG001
    """Write the model in the directory SRC to DST: weights, config, tokenizer and chat template.

    LAYOUT is internlm2: InternLM2 becomes a LLaMA with the same outputs, which needs no code of its own.
    No file of code in SRC is run.
    """
    from prismcap.configs.errors import ConfigError
    from prismcap.data.templates import internlm2
    from prismcap.data.templates._jinja import chat_template
    from prismcap.model.convert.internlm2 import convert_internlm2

    template = chat_template(internlm2.build(internlm2.Options()))
    try:
        notes = convert_internlm2(source, destination, template, force)
    except OSError as error:
        raise ConfigError(f"{destination}: the conversion cannot be written: {error}") from error
    for note in notes:
        click.echo(f"Note: {note}")
    click.echo(f"Converted to {destination}. In a config: llm: {{name: causal_lm, path: {destination}}}")
