"""A model of transformers with a chat template that describes pictures: exports of our own, and `hf`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image

from prismcap.configs.schema.prism import Decoding
from prismcap.data.schema import DataError, ImageRef
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.exported import check_shape, generate_answers, model_inputs
from prismcap.evaluate.perceivers._local import answer_of, chunks_by_picture
from prismcap.evaluate.perceivers._several import View
from prismcap.model.hf.load import Exported


@dataclass
class ChatModel:
    """Describes views in batches. load: called once, at the first view.

    check_shapes: the image processor is one of our exports', which can be asked about very long pictures.
    """

    load: Callable[[], Exported]
    decoding: Decoding
    batch_size: int
    check_shapes: bool = False
    _pictures: dict[ImageRef, Image.Image | str] = field(default_factory=dict)

    @cached_property
    def exported(self) -> Exported:
        return self.load()

    def describe_views(self, views: Sequence[View]) -> Iterator[tuple[int, Answer]]:
        """As Perceiver.describe, of views. A picture is read once for all views of it that are neighbours."""
        for positions in chunks_by_picture(views, self.batch_size):
            self._read([views[position].image for position in positions])
            good = []
            for position in positions:
                found = self._pictures[views[position].image]
                if isinstance(found, str):
                    yield position, failed(found)
                else:
                    good.append(position)
            yield from self._answers(views, good)
        self._pictures.clear()

    def _read(self, images: Sequence[ImageRef]) -> None:
        """Keep these pictures, or why they cannot be used, and no others."""
        self._pictures = {image: self._pictures[image] for image in images if image in self._pictures}
        for image in images:
            if image in self._pictures:
                continue
            try:
                picture = image.load()
                if self.check_shapes:
                    check_shape(picture, str(image), self.exported.processor.image_processor)
                self._pictures[image] = picture
            except DataError as error:
                self._pictures[image] = str(error)

    def _answers(self, views: Sequence[View], positions: list[int]) -> Iterator[tuple[int, Answer]]:
        """Of one batch whose pictures could be read."""
        if not positions:
            return
        exported = self.exported  # what goes wrong here concerns all
        begun_s = time.perf_counter()
        pictures = [self._pictures[views[position].image] for position in positions]
        try:
            inputs = model_inputs(
                exported,
                [picture for picture in pictures if isinstance(picture, Image.Image)],
                [views[position].instruction for position in positions],
            )
        except ValueError as error:
            # processors refuse what their model cannot take (a strip 200 times as long as it is wide)
            if len(positions) == 1:
                image = views[positions[0]].image
                yield positions[0], failed(f"{image}: the model's processor refuses it: {error}")
                return
            for position in positions:
                yield from self._answers(views, [position])
            return
        tokens_in = inputs["attention_mask"].sum(1).tolist()
        answers = generate_answers(exported, inputs, self.decoding.max_new_tokens, self.decoding.num_beams)
        latency_s = (time.perf_counter() - begun_s) / len(positions)
        for position, count, answer in zip(positions, tokens_in, answers, strict=True):
            yield position, answer_of(answer, int(count), latency_s)
