"""Export, reload, compare: before the first training step, so that no run fails at its very end.

Shape legend: T positions, V vocabulary, S tile side in pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.data.schema import IGNORE_INDEX, Batch, ImageSpec, Tiling
from prismcap.model.captioner import Captioner
from prismcap.model.hf.export import ExportInfo, Format, export_captioner
from prismcap.model.hf.load import Exported, load_exported

# of the largest logit; fp32 on both sides, sums in another order
TOLERANCE = 1e-4


class ExportError(ConfigError):
    """The export does not say what the captioner says."""


def dry_run(
    captioner: Captioner,
    *,
    image_spec: ImageSpec,
    info: ExportInfo,
    format: Format = "auto",
    folder: Path | None = None,
) -> float:
    """Export to a temporary folder (in `folder`, by default the system's), reload, compare logits.

    Returns the largest difference as a share of the largest logit. The captioner, its modes and
    gradients and the random state are left as they were. Needs room for the weights in fp32 on disk,
    and for a second copy in memory. Raises ExportError when logits differ, and what export_captioner raises.
    """
    try:
        # the name is one that a run clears away, should this process be killed
        place = tempfile.TemporaryDirectory(prefix=".unfinished-export-", dir=folder)
        with _undisturbed(captioner), place as name:
            path = export_captioner(
                captioner, Path(name) / "model", image_spec=image_spec, info=info, format=format
            )
            exported = load_exported(path, device=captioner.device, dtype="float32")
            return compare(captioner, exported, info, image_spec)
    except OSError as error:
        raise ExportError(
            f"the dry export to {folder or tempfile.gettempdir()} cannot be written: {error}. Make room there"
            f"{'' if folder else ' or set TMPDIR to a larger folder'}, or skip this check: --no-dry-export"
        ) from error


@torch.no_grad()
def compare(
    captioner: Captioner, exported: Exported, info: ExportInfo, image_spec: ImageSpec | None = None
) -> float:
    """The largest difference of logits on one picture and the default prompt, over the largest logit.

    image_spec: needed where the picture's size decides how it is cut (anyres).
    Raises ExportError when it is over TOLERANCE, or the processor makes another number of image tokens.
    """
    picture = _picture()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": info.prompt}]
    inputs = exported.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(captioner.device)
    is_image_T = inputs["input_ids"][0] == _image_token_id(exported.model.config)
    tiling = image_spec.tiling(picture.height, picture.width) if image_spec else None
    made, needed = int(is_image_T.sum()), captioner.token_spec.tokens_of(tiling)
    if made != needed:
        raise ExportError(f"the exported processor makes {made} image tokens, the connector {needed}")
    tiles_P3SS = inputs["pixel_values"].flatten(0, -4)  # anyres has [pictures, tiles, …]
    batch = _batch(inputs["input_ids"], is_image_T, tiles_P3SS, tiling)
    expected_TV = captioner.logits(batch)[0].float()
    found_TV = exported.model(**inputs).logits[0, :, : expected_TV.shape[1]].float()
    difference = float((found_TV - expected_TV).abs().max() / expected_TV.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:  # NaN fails too
        raise ExportError(
            f"the reloaded export differs from the captioner by {difference:.1e} of the largest logit "
            f"(allowed {TOLERANCE:.0e})"
        )
    return difference


def _image_token_id(config: Any) -> int:
    return int(config.image_token_id)


def _picture() -> Image.Image:
    """Not square and different everywhere, so that a swapped or missing patch is seen."""
    width, height = 96, 64
    values = (torch.arange(height * width * 3) * 2654435761 % 251).to(torch.uint8)
    return Image.fromarray(values.view(height, width, 3).numpy())


def _batch(input_ids_1T: Tensor, is_image_T: Tensor, tiles_P3SS: Tensor, tiling: Tiling | None) -> Batch:
    length = input_ids_1T.shape[1]
    start, count = int(is_image_T.nonzero()[0]), int(is_image_T.sum())
    device = input_ids_1T.device
    size = tuple(tiles_P3SS.shape[-2:]) if tiling is None else (tiling.height, tiling.width)
    return Batch(
        input_ids=input_ids_1T.masked_fill(is_image_T, 0),
        labels=torch.full_like(input_ids_1T, IGNORE_INDEX),
        position_ids=torch.arange(length, device=device)[None],
        segment_ids=torch.ones_like(input_ids_1T),
        spans=torch.tensor([[0, 0, start, count]], device=device),
        tile_image=torch.zeros(len(tiles_P3SS), dtype=torch.long, device=device),
        image_sizes=torch.tensor([size], device=device),
        image_grids=None if tiling is None else torch.tensor([[tiling.rows, tiling.columns]], device=device),
        tiles=tiles_P3SS,
    )


@contextmanager
def _undisturbed(captioner: Captioner) -> Iterator[None]:
    """Eval mode inside; modes and random states as before afterwards."""
    modes = {module: module.training for module in captioner.modules()}
    devices = [captioner.device] if captioner.device.type == "cuda" else []
    captioner.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
