"""`prismcap export RUN [DST]`: a trained run as a Hugging Face model directory, or as GGUF files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from prismcap.data.schema import ImageSpec
    from prismcap.model.captioner import Captioner
    from prismcap.model.hf.export import ExportInfo

NAMES = {
    "llava": "LLaVA",
    "llava_next": "LLaVA-NeXT",
    "blip2": "BLIP-2",
    "custom": "custom model",
    "gguf": "GGUF",
}


def _shard_size(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", value):
        raise click.BadParameter(f"{value!r} is no size like 5GB or 500MB")
    return value


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", metavar="[DST]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "layout",
    type=click.Choice(["auto", "llava", "llava_next", "blip2", "custom", "gguf"]),
    default="auto",
    show_default=True,
    help="llava: LlavaForConditionalGeneration. llava_next: the same for anyres pictures. blip2: "
    "Blip2ForConditionalGeneration. None needs remote code. custom: a small model with its code. auto: the "
    "first of them that fits. gguf: two files for llama.cpp.",
)
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option(
    "--adapter",
    is_flag=True,
    help="Keep the last stage's LoRA apart, as a peft folder beside the weights before it.",
)
@click.option(
    "--max-shard-size", callback=_shard_size, default="5GB", show_default=True, help="Of a weights file."
)
@click.option("--prompt", help="What `prismcap caption` asks by default.  [default: `prompt` of the config]")
def export(
    run: Path,
    destination: Path | None,
    layout: str,
    dtype: str,
    adapter: bool,
    max_shard_size: str,
    prompt: str | None,
) -> None:
    """Write the trained RUN (a folder under checkpoints/) to DST, by default RUN/model.

    An older export there is replaced; any other folder that holds files is refused. With --format gguf, DST
    is by default RUN/gguf.
    """
    from prismcap.configs.errors import ConfigError
    from prismcap.model.hf.adapter import take_adapter
    from prismcap.model.hf.files import check_replaceable
    from prismcap.model.restore import load_trained
    from prismcap.scripts.exporting import export_inputs

    if layout == "gguf" and adapter:
        raise ConfigError("--adapter: a GGUF file holds merged weights; leave --adapter out")
    target = destination or run / ("gguf" if layout == "gguf" else "model")
    check_replaceable(target)
    click.echo(f"Loading {run} …", err=True)
    captioner, config = load_trained(run, merge_last=not adapter)
    options: dict[str, Any] = {"max_shard_size": max_shard_size}
    if adapter:
        options["adapter"] = take_adapter(captioner, list(config.stages.values())[-1].train)
    image_spec, info = export_inputs(captioner, config, run)
    if prompt is not None:
        info = replace(info, prompt=prompt)
    try:
        _write(captioner, target, image_spec, info, layout, dtype, options)
    except OSError as error:
        raise ConfigError(f"{target}: the export cannot be written: {error}") from error
    _say(target, dtype)


def _write(
    captioner: Captioner,
    target: Path,
    image_spec: ImageSpec,
    info: ExportInfo,
    layout: Any,
    dtype: Any,
    options: dict[str, Any],
) -> None:
    from prismcap.model.gguf.export import export_gguf
    from prismcap.model.hf.export import export_captioner

    if layout == "gguf":
        export_gguf(captioner, target, image_spec=image_spec, info=info, precision=dtype)
    else:
        export_captioner(
            captioner, target, image_spec=image_spec, info=info, format=layout, precision=dtype, **options
        )


def _say(target: Path, dtype: str) -> None:
    from prismcap.model.gguf.export import caption_line
    from prismcap.model.hf.files import read_marker

    marker = read_marker(target)
    written = str(marker["format"])
    click.echo(f"Exported to {target} ({NAMES[written]}, {dtype}, {marker['weights']} weights).")
    if written == "gguf":
        click.echo(f"Caption with it: {caption_line(target, marker['prompt'], marker['stop'])}")
        return
    trust = ", trust_remote_code=True" if written == "custom" else ""
    click.echo(f"Caption with it:   prismcap caption {target} PICTURE.jpg")
    click.echo(f'Load it in Python: AutoModelForImageTextToText.from_pretrained("{target}"{trust})')
