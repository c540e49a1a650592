"""What reaches the model on a GPU: batches from pinned memory, and features from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prismcap.configs.load import load_config
from prismcap.data.features import FeatureInputs
from prismcap.data.pack import PixelInputs
from prismcap.model.build import build_captioner
from prismcap.train.distributed import Ranks
from prismcap.train.feature_cache import fill, open_store
from prismcap.train.run import stage_loader


@pytest.mark.gpu
def test_batches_are_pinned_for_a_gpu(world: Path) -> None:
    """Pinned memory: every tensor of a batch is in it, with and without workers, and holds what it held"""
    config = load_config(world / "config.yaml")
    captioner = build_captioner(config.model, seed=config.seed)
    loader = replace(stage_loader(config, "instruct", captioner, Ranks()), num_steps=2)
    plain = [batch for data in loader for batch in data.micro_batches]
    for num_workers in (0, 1):
        pinned = replace(loader, pin_memory=True, num_workers=num_workers)
        batches = [batch for data in pinned for batch in data.micro_batches]
        for batch, expected in zip(batches, plain, strict=True):
            for name, value in vars(expected).items():
                found = getattr(batch, name)
                if isinstance(value, torch.Tensor):
                    assert found.is_pinned() and torch.equal(found, value), name
                else:
                    assert found == value, name


def test_cached_features_are_those_of_the_cpu(
    device: torch.device,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[[str], None],
) -> None:
    """Feature cache: features encoded here in fp32 are those of a CPU, within their rounding to bf16"""
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path))
    config = load_config(world / "config.yaml")
    captioner = build_captioner(config.model, seed=config.seed)
    mix = stage_loader(config, "align", captioner, Ranks()).mix
    spec = replace(captioner.image_spec, geometry=config.stages["align"].data.geometry)
    store = open_store(config.model.vision_encoder, captioner.vision_encoder, spec, "fp32")
    images = {image for position in range(len(mix)) for image in mix.sample_at(position).images}
    with torch.no_grad():
        expected = {image: captioner.encode_images(PixelInputs(spec).read(image)[0]) for image in images}
    done = fill(captioner.to(device), mix, len(mix), spec, store, Ranks(device=device), "fp32")
    assert done == len(images) > 10
    cached = FeatureInputs(store, spec)
    largest = 0.0
    for image, value in expected.items():
        found = cached.read(image)[0].float()
        largest = max(largest, float(((found - value).abs() / value.abs().clamp(min=1e-2)).max()))
    measured(f"features differ by {largest:.1e}")
    # half a unit of bf16's 8 bits, and room for a value that rounding in fp32 takes over the middle
    assert 0 < largest < 2**-8 + 1e-3
