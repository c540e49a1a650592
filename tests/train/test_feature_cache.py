"""Features from disk are those of the encoder, and training with them is training without."""

from __future__ import annotations

import logging
import multiprocessing
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.data.features import (
    FeatureInputs,
    FeatureStore,
    StoredAs,
    StoredImage,
    shard_path,
    shard_tensors,
)
from prismcap.data.image import FileImage
from prismcap.data.pack import PixelInputs
from prismcap.data.schema import DataError, ImageSpec, SampleRejected
from prismcap.model.build import build_captioner
from prismcap.model.weights import save_weights
from prismcap.train import feature_cache
from prismcap.train.checkpoint import Manifest, SaveError, save_checkpoint
from prismcap.train.distributed import Ranks
from prismcap.train.feature_cache import fill, missing_images, open_store, store_key
from prismcap.train.run import run_training, stage_loader
from prismcap.train.runfolder import check_same, comparable

Make = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filled(
    config: RunConfig, stored_as: StoredAs = "bf16", **options: Any
) -> tuple[Any, Any, FeatureStore, int]:
    captioner = build_captioner(config.model, seed=config.seed)
    mix = stage_loader(config, "align", captioner, Ranks()).mix
    spec = replace(captioner.image_spec, geometry=config.stages["align"].data.geometry)
    store = open_store(config.model.vision_encoder, captioner.vision_encoder, spec, "fp32", stored_as)
    done = fill(captioner, mix, 1000, spec, store, Ranks(), "fp32", batch_size=4, **options)
    return captioner, mix, store, done


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_features_are_the_encoders_rounded_to_bf16(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1000)  # several shards
    captioner, mix, store, done = filled(make_config(), num_workers=workers)
    images = {image for position in range(len(mix)) for image in mix.sample_at(position).images}
    assert done == len(images) == len(store) == 20
    assert len(list(store.folder.iterdir())) == 3
    inputs = FeatureInputs(store, captioner.image_spec)
    for image in images:
        features, size = inputs.read(image)
        tiles, expected_size = PixelInputs(captioner.image_spec).read(image)
        with torch.no_grad():
            expected = captioner.encode_images(tiles)
        assert size == expected_size
        assert features.dtype == torch.float32
        # one rounding to bf16 (8 bits), of features computed in other batches
        torch.testing.assert_close(features, expected, rtol=2**-8, atol=1e-5)
        assert torch.equal(features, features.bfloat16().float())
    # nothing is left to do, in this process or the next
    assert missing_images(mix, 1000, FeatureStore(store.folder)) == []


def test_fp8_takes_half_the_room_and_rounds_to_three_bits(make_config: Make) -> None:
    captioner, _, exact, _ = filled(make_config())
    _, _, store, done = filled(make_config(), "fp8")
    assert store.folder != exact.folder and done == len(exact)
    again = FeatureStore(store.folder)  # a shard says itself what it holds
    for fingerprint in exact._places:
        expected, found = exact.read(fingerprint).features.float(), again.read(fingerprint).features
        # e4m3 has three bits behind the point: half a step is 1/16 of the value, and what is far below
        # the patch's largest value is lost
        largest = expected.abs().amax(-1, keepdim=True)
        assert ((found - expected).abs() <= expected.abs() / 16 + largest / 448 / 16).all()
        assert not torch.equal(found, expected)
    small, large = (
        sum(path.stat().st_size for path in folder.iterdir()) for folder in (store.folder, exact.folder)
    )
    # half of two bytes a value, but for the scale of a patch, and a line of the header for all scales
    encoder = captioner.vision_encoder
    expected_bytes = done * encoder.num_patches * (encoder.hidden_size - 4)
    assert expected_bytes - 200 < large - small <= expected_bytes


@pytest.mark.parametrize("stored_as", ["bf16", "fp8"])
def test_the_size_said_before_is_the_size_on_disk(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stored_as: StoredAs
) -> None:
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1000)
    monkeypatch.setattr(feature_cache, "megabytes", lambda num_bytes: f"{num_bytes} bytes")
    caplog.set_level(logging.INFO)
    _, _, store, _ = filled(make_config(), stored_as)
    (said,) = re.findall(r"20 pictures to encode, (\d+) bytes", caplog.text)
    on_disk = headers = 0
    for path in store.folder.iterdir():
        on_disk += path.stat().st_size
        with path.open("rb") as file:
            headers += 8 + int.from_bytes(file.read(8), "little")
        with safe_open(path, framework="pt") as tensors:
            headers += tensors.get_tensor("index").nbytes
    assert int(said) == on_disk - headers > 0


# seen: 0.0011 and 0.0036; the patches of each picture in reverse, 0.023
@pytest.mark.parametrize(("stored_as", "tolerance"), [("bf16", 0.005), ("fp8", 0.01)])
def test_training_with_the_cache_is_training_without(
    make_config: Make, stored_as: StoredAs, tolerance: float
) -> None:
    losses: dict[str, list[float]] = {stored_as: [], "false": []}
    for cached in losses:
        config = make_config(f"name=c{cached}", f"stages.align.feature_cache={cached}")
        run_training(
            config, callbacks=[lambda event, cached=cached: losses[cached].append(event.record["loss"])]
        )
    assert losses[stored_as] == pytest.approx(losses["false"], rel=tolerance)
    assert losses[stored_as][:4] != losses["false"][:4], "the cache was not used"


def test_a_run_of_before_fp8_goes_on(make_config: Make, tmp_path: Path) -> None:
    """Its checkpoints say feature_cache: true, which is bf16 now."""
    config = make_config("stages.align.feature_cache=true")
    key = "stages.align.feature_cache"
    assert comparable(config, "align")[key] == "bf16"
    manifest = Manifest("align", 1, 1, "torch", comparable(config, "align") | {key: True}, {})
    save_checkpoint(tmp_path / "align", "step-000001", manifest, lambda folder: None, Ranks())  # noqa: ARG005
    check_same(config, tmp_path / "align")
    for other, said in (("fp8", "'fp8'"), ("false", "False")):
        with pytest.raises(ConfigError, match=f"{key}: 'bf16' then, {said} now"):
            check_same(make_config(f"{key}={other}"), tmp_path / "align")


def test_a_run_of_before_there_were_newlines_goes_on(make_config: Make, tmp_path: Path) -> None:
    """Its checkpoints do not know the keys that came with anyres and with MiniGPT-4's warm-up."""
    config = make_config()
    later = ("model.image_newline", "stages.align.schedule.warmup_start_ratio")
    saved = {key: value for key, value in comparable(config, "align").items() if key not in later}
    assert len(saved) == len(comparable(config, "align")) - len(later)
    manifest = Manifest("align", 1, 1, "torch", saved, {})
    save_checkpoint(tmp_path / "align", "step-000001", manifest, lambda folder: None, Ranks())  # noqa: ARG005
    check_same(config, tmp_path / "align")
    changed = make_config("stages.align.schedule.warmup_start_ratio=0.1")
    with pytest.raises(ConfigError, match=r"warmup_start_ratio: 0\.0 then, 0\.1 now"):
        check_same(changed, tmp_path / "align")


def test_a_swapped_picture_would_be_seen(make_config: Make) -> None:
    # the comparison above can fail: features of another picture are far off
    captioner, mix, store, _ = filled(make_config())
    first, second = [mix.sample_at(position) for position in range(9) if mix.sample_at(position).images][:2]
    features, _ = FeatureInputs(store, captioner.image_spec).read(first.images[0])
    tiles, _ = PixelInputs(captioner.image_spec).read(second.images[0])
    with torch.no_grad():
        other = captioner.encode_images(tiles)
    assert float((features - other).abs().max()) > 0.1


def test_the_key_follows_weights_options_and_preprocessing(make_config: Make) -> None:
    config = make_config()
    component = config.model.vision_encoder
    encoder = build_captioner(config.model, seed=1).vision_encoder
    spec = encoder.image_spec
    key = store_key(component, encoder, spec, "fp32")
    again = build_captioner(config.model, seed=1).vision_encoder
    assert key == store_key(component, again, spec, "fp32")
    other_layer = component.model_copy(update={"layer": -1})
    keys = {
        key,
        store_key(other_layer, encoder, spec, "fp32"),
        store_key(component, encoder, replace(spec, geometry="pad"), "fp32"),
        store_key(component, encoder, spec, "bf16"),
    }
    with torch.no_grad():
        next(encoder.parameters()).flatten()[0] += 1e-3
    keys.add(store_key(component, encoder, spec, "fp32"))
    assert len(keys) == 5


def stored(name: str, value: float) -> StoredImage:
    return StoredImage(name, torch.full((1, 3, 2), value), (4, 5))


def write(folder: str, number: int) -> None:
    images = [stored("both", 1.0), stored(f"own{number}", float(number))]
    save_weights(shard_path(Path(folder)), shard_tensors(images))


def test_writers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write, args=(str(tmp_path), number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = FeatureStore(tmp_path)
    assert len(store) == 5
    for number in range(4):
        found = store.read(f"own{number}")
        assert torch.equal(found.features, torch.full((1, 3, 2), float(number), dtype=torch.bfloat16))
        assert found.size == (4, 5)


def fill_together(config: RunConfig, barrier: Any) -> None:
    def wait(done: int, total: int, images_per_s: float) -> None:  # noqa: ARG001
        if done == 1:
            barrier.wait(timeout=400)  # the other one too has listed what is missing

    _, _, _, done = filled(config, "fp8", progress=wait)
    assert done == 20


def test_a_mix_that_goes_step_by_step_is_filled_whole(make_config: Make, world: Path) -> None:
    """Its longest item is through long after as many positions as there are samples."""
    rows = f"name: llava_json, path: {world / 'rows.json'}"
    items = f"[{{{rows}, per_step: 1}}, {{{rows}, limit: 3, per_step: 5}}]"
    _, mix, store, done = filled(make_config(f"stages.align.data.mix={items}"))
    assert len(mix) == 26 and mix.num_until_all == 23 * 6
    assert done == len(store) == 20


def test_two_processes_fill_one_store_at_once(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks; elsewhere one of them waits (test_feature_lock.py)."""
    monkeypatch.setattr(feature_cache, "filling_alone", lambda *_: nullcontext())
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1000)
    context = multiprocessing.get_context("fork")
    config, barrier = make_config(), context.Barrier(2)
    processes = [context.Process(target=fill_together, args=(config, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    captioner, mix, store, done = filled(config, "fp8")
    images = {image for position in range(len(mix)) for image in mix.sample_at(position).images}
    assert done == 0 and len(store) == len(images) == 20
    assert len(list(store.folder.iterdir())) == 2 * 3
    with torch.no_grad():
        expected = {
            image.fingerprint(): captioner.encode_images(PixelInputs(captioner.image_spec).read(image)[0])
            for image in images
        }
    # both copies of every picture, and not only the one that is found first
    for path in store.folder.iterdir():
        shard = FeatureStore(store.folder / "no such folder")
        shard._list(path)
        for fingerprint in shard._places:
            features = expected[fingerprint]
            difference = (shard.read(fingerprint).features - features).abs()
            assert float(difference.max()) <= float(features.abs().max()) / 16


def test_an_interrupted_fill_keeps_its_shards(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1000)

    def stop(done: int, total: int, images_per_s: float) -> None:  # noqa: ARG001
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled(make_config(), progress=stop)
    _, _, store, done = filled(make_config())
    assert 0 < done < 20
    assert len(store) == 20


def test_a_damaged_shard_and_a_changed_picture_are_named(tmp_path: Path, world: Path) -> None:
    write(str(tmp_path), 0)
    store = FeatureStore(tmp_path)
    spec = ImageSpec(16, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(DataError, match=r"0\.png.*not in the feature cache"):
        FeatureInputs(store, spec).read(FileImage(world / "0.png"))
    with pytest.raises(SampleRejected, match="no such picture"):
        FeatureInputs(store, spec).read(FileImage(world / "gone.png"))
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{shard.name}.*Delete this file"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("reason", ["image_corrupt", "image_too_elongated"])
def test_an_unreadable_picture_is_left_out_and_counted_in_training(
    make_config: Make, world: Path, tmp_path: Path, reason: str
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(world, copy)
    if reason == "image_corrupt":
        (copy / "3.png").write_bytes(b"no picture")
    else:
        Image.new("RGB", (20_000, 1)).save(copy / "3.png")
    rows = f"stages.align.data.mix.0.path={copy / 'rows.json'}"
    options = ("feature_cache=true", "data.max_rejected_share=0.5", "data.geometry=pad")
    config = make_config(rows, *(f"stages.align.{option}" for option in options))
    counts: list[dict[str, int]] = []
    run_training(config, callbacks=[lambda event: counts.append(event.record["rejected"])])
    assert counts[3] == {reason: 1}
    _, _, store, done = filled(config)
    assert done == 0
    assert len(store) == 19


def test_a_disk_that_cannot_hold_the_features_is_refused_before(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = feature_cache.shutil.disk_usage

    def little(path: Any) -> Any:
        return real(path)._replace(free=100)

    monkeypatch.setattr(feature_cache.shutil, "disk_usage", little)
    with pytest.raises(SaveError, match=r"20 pictures take .* MB.*PRISMCAP_CACHE"):
        filled(make_config())
