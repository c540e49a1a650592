"""`prismcap import LAYOUT SRC DST`: released weights as the folder of a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("import")
@click.argument("layout", metavar="LAYOUT")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.argument("options", metavar="[KEY=VALUE]...", nargs=-1)
def import_(layout: str, source: Path, destination: Path, options: tuple[str, ...]) -> None:
    """Read the released weights SRC and write DST, the folder of a run whose one stage has finished.

    \b
    LAYOUT is one of
      llava           SRC: mm_projector.bin (with llm=DIR), a whole model, or a LoRA checkpoint (with llm=DIR)
      llava-hf        SRC: the directory of a LlavaForConditionalGeneration
      minigpt4        SRC: the .pth of the projection; blip2=DIR llm=DIR
      mplug-owl       SRC: the directory of mPLUG-Owl v1
      prismcaptioner  SRC: the directory with llm_adapter and projector; llm=DIR, a converted InternLM2
      blip2           SRC: the directory of a BLIP-2; DST holds vision_encoder and qformer, and is no run

    Nothing in SRC is run. DST must not be there, or be empty.
    """
    from prismcap.configs.errors import ConfigError
    from prismcap.scripts.importing import import_weights

    try:
        imported = import_weights(layout, source, destination, options)
    except OSError as error:
        # the error names the file, of either
        raise ConfigError(f"{source} cannot be imported to {destination}: {error}") from error
    for note in imported.notes:
        click.echo(f"Note: {note}")
    if imported.run is None:
        click.echo(f"Imported to {destination}: directories for the `path` of eva_vit_g and qformer.")
        return
    click.echo(f"Imported to {destination}. Caption with it:")
    click.echo(f"  prismcap export {destination} && prismcap caption {destination} PICTURE.jpg")
    click.echo(f"Train on: a config with `base: {destination}/config.yaml` and one more stage, --resume auto")
