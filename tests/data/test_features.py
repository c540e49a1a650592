"""A picture that the fill of the cache had to leave out is rejected; one that it lost is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from prismcap.data.features import FeatureInputs, FeatureStore
from prismcap.data.image import FileImage
from prismcap.data.schema import DataError, ImageSpec, SampleRejected


def test_a_picture_too_long_to_pad_is_rejected_and_named(tmp_path: Path) -> None:
    line, square = FileImage(tmp_path / "line.png"), FileImage(tmp_path / "square.png")
    Image.new("RGB", (20_000, 1)).save(line.path)
    Image.new("RGB", (8, 8)).save(square.path)
    store = FeatureStore(tmp_path)
    padded = FeatureInputs(store, ImageSpec(16, (0.5,) * 3, (0.5,) * 3, "pad"))
    with pytest.raises(SampleRejected, match=r"line\.png: 20000 x 1 pixels") as caught:
        padded.read(line)
    assert caught.value.reason == "image_too_elongated"
    # squashed it would have been stored, as the square one: that they are not there is no fault of theirs
    squashed = FeatureInputs(store, ImageSpec(16, (0.5,) * 3, (0.5,) * 3, "resize"))
    for inputs, image in ((squashed, line), (squashed, square), (padded, square)):
        with pytest.raises(DataError, match=rf"{image.path.name}: not in the feature cache") as lost:
            inputs.read(image)
        assert not isinstance(lost.value, SampleRejected)
