"""`prismcap caption MODEL IMAGE…`: captions of picture files, one line each."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from PIL import Image

    from prismcap.model.hf.load import Exported

# what PIL opens and people keep pictures in; a file that is named itself is tried whatever its name
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--prompt", default=None, help="What to ask.  [default: the default prompt of the model]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Caption the first so many pictures only.")
@click.option("--jsonl", type=click.Path(path_type=Path), help="Append a JSON line per picture to this file.")
@click.option("--device", default=None, help="cpu, cuda, …  [default: a GPU where there is one]")
@click.option("--max-image-pixels", type=click.IntRange(min=1), default=100_000_000, show_default=True)
def caption(
    model: str,
    images: tuple[str, ...],
    prompt: str | None,
    max_new_tokens: int,
    batch_size: int,
    limit: int | None,
    jsonl: Path | None,
    device: str | None,
    max_image_pixels: int,
) -> None:
    """Caption IMAGE... (files, folders with all below them, globs) with MODEL.

    MODEL is an exported folder, a run's folder with its export in model/, or a hub name that
    transformers knows natively. No code of the model's folder is run. Pictures that cannot be read
    are named and skipped, and the exit code is then 1.
    """
    from tqdm import tqdm

    from prismcap.model.hf.load import load_exported

    source = find_model(model)
    paths = find_images(images)[:limit]
    skipped = 0
    with ExitStack() as stack:
        write = _writer(jsonl, stack)
        exported = load_exported(source, device=device or _default_device())
        question = exported.prompt if prompt is None else prompt
        bar = stack.enter_context(tqdm(total=len(paths), unit="picture", disable=None))
        geometry = exported.processor.image_processor
        for batch, errors in read_batches(paths, batch_size, max_image_pixels, geometry):
            for message in errors:
                tqdm.write(f"Skipped: {message}", file=sys.stderr)
            texts = caption_batch(exported, [image for _, image in batch], question, max_new_tokens)
            for (path, _), text in zip(batch, texts, strict=True):
                write({"image": str(path), "caption": text, "prompt": question, "model": source})
            skipped += len(errors)
            bar.update(len(batch) + len(errors))
    if skipped:
        click.echo(f"{skipped} of {len(paths)} pictures could not be read.", err=True)
        raise SystemExit(1)


def _writer(jsonl: Path | None, stack: ExitStack) -> Callable[[dict[str, str]], None]:
    """What takes a finished caption: a line of the JSONL file, or of stdout. Raises ConfigError."""
    from tqdm import tqdm

    from prismcap.configs.errors import ConfigError

    if jsonl is None:
        return lambda record: tqdm.write(f"{record['image']}: {record['caption']}", file=sys.stdout)
    try:
        out = stack.enter_context(jsonl.open("a", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--jsonl {jsonl}: cannot be written: {error}") from error

    def append(record: dict[str, str]) -> None:
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
        out.flush()  # what is captioned stays captioned, however this process ends

    return append


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Files of the patterns in order, each once; folders give the pictures below them, sorted.

    Raises ConfigError for a pattern that matches no picture.
    """
    from prismcap.configs.errors import ConfigError

    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.exists():
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            raise ConfigError(f"{pattern}: no such file or folder, and as a glob it matches nothing")
        files = [file for match in matches for file in _files_of(match, named=match == path)]
        if not files:
            raise ConfigError(f"{pattern}: no pictures there (looked for {', '.join(sorted(SUFFIXES))})")
        found.update(dict.fromkeys(files))
    return list(found)


def _files_of(path: Path, named: bool) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return [path] if named or path.suffix.lower() in SUFFIXES else []


def find_model(model: str) -> str:
    """What to load: the folder itself, the export inside a run's folder, or a name as it is.

    Raises ConfigError for a folder that is not there, or a run that has not been exported.
    """
    from prismcap.configs.errors import ConfigError
    from prismcap.model.huggingface import local_or_hub

    name = local_or_hub(model)
    folder = Path(name)
    if not folder.is_dir():
        return name
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if (folder / "mmproj.gguf").is_file():
        raise ConfigError(f"{folder}: GGUF files, for llama.cpp; export another format to caption with")
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: a run without an export: run `prismcap export {folder}` first")
    raise ConfigError(f"{folder}: neither an exported model (config.json) nor a run (config.yaml)")


def read_batches(
    paths: Sequence[Path], batch_size: int, max_pixels: int, geometry: Any
) -> Iterator[tuple[list[tuple[Path, Image.Image]], list[str]]]:
    """Pictures in batches, with the messages of those that could not be read.

    geometry: the image processor, asked for what it would make of a very long picture.
    """
    from prismcap.data.image import open_image
    from prismcap.data.schema import SampleRejected
    from prismcap.evaluate.exported import check_shape

    for start in range(0, len(paths), batch_size):
        batch: list[tuple[Path, Image.Image]] = []
        errors: list[str] = []
        for path in paths[start : start + batch_size]:
            try:
                image = open_image(path, max_pixels)
                check_shape(image, str(path), geometry)
                batch.append((path, image))
            except SampleRejected as error:
                errors.append(str(error))
        yield batch, errors


def caption_batch(
    exported: Exported, images: Sequence[Image.Image], prompt: str, max_new_tokens: int
) -> list[str]:
    """One greedy caption per picture, without outer white space."""
    from prismcap.evaluate.exported import generate_answers, model_inputs

    if not images:
        return []
    inputs = model_inputs(exported, images, [prompt] * len(images))
    return [answer.text.strip() for answer in generate_answers(exported, inputs, max_new_tokens)]


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
