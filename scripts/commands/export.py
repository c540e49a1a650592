"""`prismcap export RUN [DST]`: a trained run as a Hugging Face model directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

NAMES = {"llava": "LLaVA", "llava_next": "LLaVA-NeXT", "blip2": "BLIP-2", "custom": "custom model"}


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", metavar="[DST]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "layout",
    type=click.Choice(["auto", "llava", "llava_next", "blip2", "custom"]),
    default="auto",
    show_default=True,
    help="llava: LlavaForConditionalGeneration. llava_next: the same for anyres pictures. blip2: "
    "Blip2ForConditionalGeneration. None needs remote code. custom: a small model with its code. auto: the "
    "first of them that fits.",
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--prompt", help="What `prismcap caption` asks by default.  [default: `prompt` of the config]")
def export(run: Path, destination: Path | None, layout: str, dtype: str, prompt: str | None) -> None:
    """Write the trained RUN (a folder under checkpoints/) to DST, by default RUN/model.

    An older export there is replaced; any other folder that holds files is refused.
    """
    from prismcap.configs.errors import ConfigError
    from prismcap.model.hf.export import export_captioner
    from prismcap.model.hf.files import check_replaceable, read_marker
    from prismcap.model.restore import load_trained
    from prismcap.scripts.exporting import export_inputs

    target = destination or run / "model"
    check_replaceable(target)
    click.echo(f"Loading {run} …", err=True)
    captioner, config = load_trained(run)
    image_spec, info = export_inputs(captioner, config)
    if prompt is not None:
        info = replace(info, prompt=prompt)
    try:
        export_captioner(
            captioner,
            target,
            image_spec=image_spec,
            info=info,
            format=layout,  # type: ignore[arg-type]  # click has checked it
            precision=dtype,  # type: ignore[arg-type]
        )
    except OSError as error:
        raise ConfigError(f"{target}: the export cannot be written: {error}") from error
    written = str(read_marker(target)["format"])
    trust = ", trust_remote_code=True" if written == "custom" else ""
    click.echo(f"Exported to {target} ({NAMES[written]}, {dtype}).")
    click.echo("Caption with it:   ", nl=False)
    click.echo(f"prismcap caption {target} PICTURE.jpg")
    click.echo("Load it in Python: ", nl=False)
    click.echo(f'AutoModelForImageTextToText.from_pretrained("{target}"{trust})')
