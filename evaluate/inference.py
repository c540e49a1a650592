"""A captioner at work on many pictures: each is drawn and encoded once, texts are generated in batches.

Shape legend: P tiles, K patches, D encoder width, S tile side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prismcap.configs.schema.stage import Precision
from prismcap.data.image import to_tiles
from prismcap.data.schema import DataError, Encoded, ImageRef, ImageSpec
from prismcap.model.captioner import Captioner
from prismcap.model.generate import Generated, generate
from prismcap.model.precision import autocast

Progress = Callable[[int], None]  # called with the number of items just done


def no_progress(num: int) -> None:
    """For callers that show nothing."""


@contextmanager
def inference(captioner: Captioner, precision: Precision) -> Iterator[None]:
    """Eval mode without gradients, and autocast to bf16 where the run trained so.

    Autocast keeps its copy of a weight only when the weight requires a gradient; otherwise it casts all
    of them anew in every forward, which for one token of a small batch is most of the work. So the flags
    are set inside (no graph is recorded all the same) and put back after.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in captioner.parameters()]
    training = captioner.training
    captioner.eval()
    try:
        if precision == "bf16":
            captioner.requires_grad_(True)
        with torch.no_grad(), autocast(captioner.device, precision):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        captioner.train(training)


@dataclass
class FeatureStore:
    """Encoder features of pictures, in memory: features_PKD by picture, P = 1 but for anyres.

    on_draw is called once with each picture as it was drawn, for keeping a thumbnail. on_reject, where it
    is given, is called with each picture that cannot be used, and the others go on. Use inside
    `inference`. Memory: K x D numbers per tile, in bf16 under autocast.
    """

    captioner: Captioner
    spec: ImageSpec
    batch_size: int = 32
    on_draw: Callable[[ImageRef, Image.Image], None] | None = None
    on_reject: Callable[[ImageRef, DataError], None] | None = None
    _features: dict[ImageRef, Tensor] = field(default_factory=dict)

    def __getitem__(self, image: ImageRef) -> Tensor:
        return self._features[image]

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, image: ImageRef) -> bool:
        return image in self._features

    def keep_only(self, images: Collection[ImageRef]) -> None:
        """Forget all other pictures: their memory is free again."""
        self._features = {image: self._features[image] for image in images if image in self._features}

    def add(self, images: Sequence[ImageRef], progress: Progress = no_progress) -> None:
        """Draw and encode the pictures that are not here yet. Raises DataError for a bad one (on_reject)."""
        new = [image for image in dict.fromkeys(images) if image not in self._features]
        device = self.captioner.device
        # the next pictures are drawn while this batch is encoded
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting = None
            for start in range(0, len(new), self.batch_size):
                batch = new[start : start + self.batch_size]
                drawn = (waiting or pool.submit(self._draw, batch)).result()
                following = new[start + self.batch_size : start + 2 * self.batch_size]
                waiting = pool.submit(self._draw, following) if following else None
                if drawn:
                    # with anyres a picture has several tiles: as many at once as pictures otherwise
                    features_PKD = torch.cat(
                        [
                            self.captioner.encode_images(part.to(device))
                            for part in torch.cat(list(drawn.values())).split(self.batch_size)
                        ]
                    )
                    parts = features_PKD.split([len(tiles) for tiles in drawn.values()])
                    # clones: a view would keep the whole batch alive
                    self._features.update(
                        (image, part.clone()) for image, part in zip(drawn, parts, strict=True)
                    )
                progress(len(batch))

    def _draw(self, images: Sequence[ImageRef]) -> dict[ImageRef, Tensor]:
        """tiles_P3SS of each picture that can be used."""
        drawn = {}
        for image in images:
            try:
                picture = image.load()
                if self.on_draw is not None:
                    self.on_draw(image, picture)
                drawn[image] = to_tiles(picture, self.spec, str(image))
            except DataError as error:
                if self.on_reject is None:
                    raise
                self.on_reject(image, error)
        return drawn


@dataclass(frozen=True)
class Request:
    """A prompt with one picture of the store, and how long the answer is likely to be (any unit)."""

    prompt: Encoded
    likely_length: int = 0

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[ImageRef, ...]]:
        return tuple(self.prompt.input_ids.tolist()), self.prompt.images


def generate_stored(
    captioner: Captioner, prompts: Sequence[Encoded], store: FeatureStore, **options: Any
) -> list[Generated]:
    """model.generate of one batch whose pictures are in the store; options: those of `generate`."""
    images = [image for prompt in prompts for image in prompt.images]
    features_PKD = torch.cat([store[image] for image in images]) if images else None
    return generate(captioner, prompts, features_PKD=features_PKD, **options)


def generate_texts(
    captioner: Captioner,
    requests: Sequence[Request],
    store: FeatureStore,
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: Sequence[str],
    progress: Progress = no_progress,
) -> list[str]:
    """The greedy text of each request, in their order. Use inside `inference`.

    Equal requests (the same tokens and pictures) are generated once: greedy decoding gives each the
    same text, and all items of the blank control with one prompt are equal. Requests of one length run
    together, so that a batch ends when its texts do. Pictures must be in the store.
    """
    distinct: dict[object, Request] = {}
    copies: dict[object, int] = {}
    for request in requests:
        distinct.setdefault(request.key, request)
        copies[request.key] = copies.get(request.key, 0) + 1
    order = sorted(distinct.values(), key=lambda item: (item.likely_length, len(item.prompt)))
    texts: dict[object, str] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        generated = generate_stored(
            captioner,
            [request.prompt for request in batch],
            store,
            max_new_tokens=max_new_tokens,
            stop=stop,
        )
        texts.update((request.key, answer.text) for request, answer in zip(batch, generated, strict=True))
        progress(sum(copies[request.key] for request in batch))
    return [texts[request.key] for request in requests]
