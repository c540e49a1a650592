"""A page that shows training samples as the model gets them: pictures, text, and what is learned.

The picture is the tile itself, with anyres each of its tiles, the normalisation undone; the text is decoded
from the ids, and colour comes from the labels: what is wrong in the data path is visible here. In pairs (of
contrastive stages) no token has a loss of its own: the text is compared with the picture as a whole.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from torch import Tensor

from prismcap.data.encode import Encoder
from prismcap.data.image import from_tile
from prismcap.data.mix import Mix
from prismcap.data.pack import Inputs, PixelInputs, read_images
from prismcap.data.pairs import PairEncoder
from prismcap.data.schema import IGNORE_INDEX, DataError, Encoded, ImageSpec, SampleRejected

Kind = Literal["context", "trained", "compared", "image"]
# so that a mix of which nearly all is rejected still ends, and shows why
_TRIED_PER_SHOWN = 10
_SHOWN_REJECTIONS = 20


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens of one kind; `compared` is a pair's text. For a picture, `text` is its number,
    counted from 1."""

    kind: Kind
    text: str
    num_tokens: int


@dataclass(frozen=True)
class ShownSample:
    id: str
    source: str
    runs: tuple[Run, ...]
    tiles: tuple[str, ...]  # data URIs
    tile_names: tuple[str, ...]
    num_tokens: int
    num_image_tokens: int
    num_target_tokens: int
    cut_tokens: int


@dataclass(frozen=True)
class Inspection:
    """What write_page draws. num_rejected: by reason, of num_tried samples from the first epoch. of_pairs:
    the stage is contrastive."""

    samples: tuple[ShownSample, ...]
    num_tried: int
    num_rejected: dict[str, int]
    messages: tuple[str, ...]
    of_pairs: bool = False


def inspect_mix(mix: Mix, encoder: Encoder, spec: ImageSpec, num: int) -> Inspection:
    """The first `num` usable samples in the order of training, and what was rejected on the way."""
    shown: list[ShownSample] = []
    rejected: Counter[str] = Counter()
    messages: list[str] = []
    tried = 0
    for position in range(min(len(mix), num * _TRIED_PER_SHOWN)):
        if len(shown) == num:
            break
        tried += 1
        try:
            sample = mix.sample_at(position)
            encoded = encoder.encode(sample)
            tiles = dict(_named_tiles(encoded, spec))
        except SampleRejected as error:
            rejected[error.reason] += 1
            if len(messages) < _SHOWN_REJECTIONS:
                messages.append(f"{error.reason}: {error}")
        else:
            shown.append(_shown(encoded, sample.source, tiles, encoder))
    of_pairs = isinstance(encoder, PairEncoder)
    return Inspection(tuple(shown), tried, dict(rejected.most_common()), tuple(messages), of_pairs)


def _shown(encoded: Encoded, source: str, tiles: dict[str, str], encoder: Encoder) -> ShownSample:
    return ShownSample(
        id=encoded.id,
        source=source,
        runs=tuple(token_runs(encoded, encoder)),
        tiles=tuple(tiles.values()),
        tile_names=tuple(tiles),
        num_tokens=len(encoded),
        num_image_tokens=sum(length for _, _, length in encoded.spans),
        num_target_tokens=encoded.num_target_tokens,
        cut_tokens=encoded.cut_tokens,
    )


def token_runs(encoded: Encoded, encoder: Encoder) -> Iterator[Run]:
    """The sample's tokens in order, grouped by what they are. Their counts add up to its length."""
    image_at = {start + i: image for image, start, length in encoded.spans for i in range(length)}
    begins = {start for _, start, _ in encoded.spans}
    groups: list[tuple[Kind, int]] = []  # one key per token; a second showing of a picture is its own run
    showing = 0
    for position, label in enumerate(encoded.labels.tolist()):
        showing += position in begins
        if position in image_at:
            groups.append(("image", showing))
        elif isinstance(encoder, PairEncoder):
            groups.append(("compared", -1))
        else:
            groups.append(("trained" if label != IGNORE_INDEX else "context", -1))
    ids = encoded.input_ids.tolist()
    for (kind, _), positions in groupby(range(len(ids)), key=groups.__getitem__):
        run = list(positions)
        is_image = kind == "image"
        text = str(image_at[run[0]] + 1) if is_image else encoder.decode([ids[i] for i in run])
        yield Run(kind, text, len(run))


def _named_tiles(encoded: Encoded, spec: ImageSpec) -> Iterator[tuple[str, str]]:
    """Name and data URI of every tile. Raises SampleRejected as training does."""
    inputs: Inputs = {}
    read_images(encoded, PixelInputs(spec), inputs)
    for number, image in enumerate(encoded.images, start=1):
        for place, tile in enumerate(inputs[image][0]):
            part = "" if not spec.grids else f", tile {place}" if place else ", overview"
            yield f"picture {number}{part}", _data_uri(tile, spec)


def _data_uri(tile_3SS: Tensor, spec: ImageSpec) -> str:
    stream = io.BytesIO()
    from_tile(tile_3SS, spec).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def write_page(inspection: Inspection, path: Path, title: str) -> None:
    """One self-contained HTML file, folders as needed. Raises DataError when it cannot be written."""
    from jinja2 import Environment, FileSystemLoader

    # data is shown, never run: everything is escaped
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("inspect.html.j2").render(title=title, inspection=inspection)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: the page cannot be written: {error}. Make room, or name another file with --out."
        ) from error
