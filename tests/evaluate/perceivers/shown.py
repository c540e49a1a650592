"""Pictures that tests show: good ones, and one that cannot be read. `loaded` counts how often, by colour."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from PIL import Image, ImageDraw

from prismcap.data.schema import ImageRef, SampleRejected
from prismcap.evaluate.perceivers._contract import PerceiveRequest


@dataclass(frozen=True)
class Picture:
    """A disc of a colour, on white. No side is a multiple of the other."""

    colour: str
    size: tuple[int, int] = (40, 56)

    def load(self) -> Image.Image:
        LOADED[self.colour] += 1
        image = Image.new("RGB", self.size, "white")
        width, height = self.size
        ImageDraw.Draw(image).ellipse((1, 1, 3 * width // 4, height // 2), fill=self.colour)
        return image

    def fingerprint(self) -> str:
        return f"print of {self.colour} {self.size}"


@dataclass(frozen=True)
class Broken:
    """A picture whose file is damaged."""

    name: str = "broken.jpg"

    def load(self) -> Image.Image:
        raise SampleRejected("image_corrupt", f"{self.name}: not a readable picture")

    def fingerprint(self) -> str:
        raise SampleRejected("image_corrupt", f"{self.name}: not a readable picture")


LOADED: Counter[str] = Counter()
COLOURS = ("red", "green", "blue", "orange", "purple", "black", "brown")
SIZES = ((40, 56), (64, 24), (30, 30), (24, 70), (50, 40), (33, 21), (56, 40))
PICTURES = tuple(Picture(colour, size) for colour, size in zip(COLOURS, SIZES, strict=True))


def ask(
    *images: ImageRef, id: str = "0", instruction: str = "Describe it.", reference: str | None = None
) -> PerceiveRequest:
    return PerceiveRequest("shapes", id, images, instruction, reference)
