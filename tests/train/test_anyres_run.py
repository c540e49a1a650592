"""A whole run with anyres pictures: both stages, its caches and plans, its export, its page of samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.data.features import FeatureInputs
from prismcap.data.image import FileImage
from prismcap.data.inspect import inspect_mix
from prismcap.data.lengths import LengthIndex, Measure
from prismcap.data.pack import PixelInputs, make_batches
from prismcap.data.plan import plan_step
from prismcap.data.schema import DataError, Encoded, SampleRejected
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.hf.dry_run import compare
from prismcap.model.hf.load import load_exported
from prismcap.model.restore import load_trained
from prismcap.model.trainable import prepare_stage
from prismcap.scripts.cli import cli
from prismcap.scripts.exporting import export_inputs
from prismcap.train import lengths
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.samples import draw_samples
from prismcap.train.feature_cache import fill, open_store
from prismcap.train.flops import shape_of
from prismcap.train.plan.duration import lengths_of_data, lengths_of_mix
from prismcap.train.plan.memory import StageMemory
from prismcap.train.plan.static import Sharding
from prismcap.train.plan.worst_case import worst_batch, worst_tiling
from prismcap.train.run import run_training, stage_data, stage_loader

Make = Callable[..., RunConfig]
SIZES = [
    (40, 12),
    (12, 40),
    (25, 24),
    (9, 5),
    (16, 23),
    (60, 2),
    (33, 47),
]  # width, height; tiles are of 16 px


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Fourteen rows, two of them without a picture, and pictures of all shapes; one is turned by its EXIF."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(14):
        question = "Say it."
        row: dict[str, Any] = {"id": f"row{i}"}
        if i % 7 != 3:
            width, height = SIZES[i % 7]
            pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
            exif = Image.Exif()
            exif[0x0112] = 6 if i == 8 else 1
            Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png", exif=exif)
            row["image"] = f"{i}.png"
            question = f"<image>\n{question}"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "abcdefg"[i % 7] * (2 + i)}]
        found.append(row | {"conversations": turns})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(found))
    return path


@pytest.fixture
def anyres(make_config: Make, rows: Path) -> Make:
    def make(*overrides: str) -> RunConfig:
        return make_config(
            "model.image_newline=true",
            "stages.*.data.geometry=anyres",
            "stages.*.data.mix=[{name: llava_json, path: " + str(rows) + "}]",
            "stages.*.batch.images_per_micro_batch=8",
            *overrides,
        )

    return make


def encoded_of(config: RunConfig, captioner: Captioner) -> tuple[list[Encoded], PixelInputs]:
    mix, encoder, images = stage_data(config, "instruct", captioner)
    return [encoder.encode(mix.sample_at(position)) for position in range(len(mix))], images


def test_placeholders_are_counted_before_the_pixels_and_right(anyres: Make) -> None:
    captioner = build_captioner(anyres().model)
    samples, images = encoded_of(anyres(), captioner)
    assert len({sample.num_tiles for sample in samples}) > 3
    for sample in samples:
        assert Measure.of(sample).num_images == sample.num_tiles
        for (_, _, length), tiling, image in zip(sample.spans, sample.tilings, sample.images, strict=True):
            tiles, size = images.read(image)
            assert size == (tiling.height, tiling.width) and len(tiles) == tiling.num_tiles
            assert length == captioner.token_spec_of(anyres().stages["align"].data).token_count(*size)
    # the captioner holds tiles, sizes and spans of all of them against each other
    batch = make_batches([[samples]], 0, images)[0]
    assert len(batch.tile_image) == sum(sample.num_tiles for sample in samples)
    with torch.no_grad():
        assert torch.isfinite(captioner(batch).loss_sum)


def test_a_micro_batch_has_no_more_tiles_than_allowed(anyres: Make) -> None:
    config = anyres()
    captioner = build_captioner(config.model)
    loader = stage_loader(config, "instruct", captioner, Ranks())
    tiles = [len(batch.tile_image) for step in range(4) for batch in loader.load(step).micro_batches]
    assert max(tiles) <= 8 and sum(tiles) > 40
    samples, _ = encoded_of(config, captioner)
    tokens, num_tiles = [len(sample) for sample in samples], [sample.num_tiles for sample in samples]
    plan = plan_step(tokens, num_tiles, config.stages["instruct"].batch)
    for micro_batch in plan.micro_batches():
        assert sum(num_tiles[i] for row in micro_batch for i in row) <= 8


def test_a_file_that_changes_is_rejected_by_name(anyres: Make, tmp_path: Path) -> None:
    samples, images = encoded_of(anyres(), build_captioner(anyres().model))
    Image.new("RGB", (10, 30)).save(tmp_path / "0.png")
    rejected: list[SampleRejected] = []
    make_batches([[samples]], 0, images, lambda _, error: rejected.append(error))
    assert [error.reason for error in rejected] == ["image_size_differs"]
    assert "0.png: 30 x 10 pixels" in str(rejected[0]) and "12 x 40" in str(rejected[0])


def test_doctor_and_inspect_reject_what_training_rejects(
    anyres: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture whose header says another size than its pixels."""
    config = anyres()
    captioner = build_captioner(config.model)
    mix, encoder, images = stage_data(config, "instruct", captioner)
    height_width = FileImage.height_width

    def turned(image: FileImage) -> tuple[int, int]:
        height, width = height_width(image)
        return (width, height) if image.path.name == "0.png" else (height, width)

    monkeypatch.setattr(FileImage, "height_width", turned)
    drawn = draw_samples(mix, encoder, images, num=100)
    spec = captioner.image_spec_of(config.stages["instruct"].data)
    inspection = inspect_mix(mix, encoder, spec, num=100)
    assert len(drawn.rejected) == 1 and "0.png" in drawn.rejected[0], drawn.rejected
    assert drawn.rejected[0].startswith("image_size_differs: ")
    assert inspection.num_rejected == {"image_size_differs": 1}
    assert len(drawn.samples) == len(inspection.samples) == len(mix) - 1


def test_both_stages_train_and_the_export_says_the_same(anyres: Make) -> None:
    config = anyres()
    start = build_captioner(config.model, seed=config.seed).connector.newline
    folder = run_training(config)
    captioner, _ = load_trained(folder, last_stage="align")
    newline = captioner.connector.newline
    assert start is not None and newline is not None
    assert (newline.weight - start.weight).abs().max() > 1e-3, "it trains in stage 1"
    done = CliRunner().invoke(cli, ["export", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0 and "LLaVA-NeXT" in done.output
    trained, settled = load_trained(folder)
    image_spec, info = export_inputs(trained, settled)
    assert compare(trained, load_exported(folder / "model", dtype="float32"), info, image_spec) < 3e-5


def test_packed_steps_are_unpacked_steps(anyres: Make) -> None:
    """The first step's loss and gradients, with several samples to a row and with one."""
    found = []
    for packing in ("true", "false"):
        config = anyres(f"stages.align.batch.packing={packing}", "stages.align.batch.samples_per_step=14")
        captioner = build_captioner(config.model, seed=config.seed)
        prepare_stage(captioner, config.stages["align"].train)
        batches = stage_loader(config, "align", captioner, Ranks()).load(0).micro_batches
        loss, count = torch.zeros(()), 0
        for batch in batches:
            output = captioner(batch)
            loss, count = loss + output.loss_sum, count + output.num_target_tokens
        (loss / count).backward()
        newline = captioner.connector.newline
        assert newline is not None and newline.weight.grad is not None and newline.weight.grad.any()
        found.append((float(loss.detach() / count), newline.weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-4)


def test_the_feature_cache_holds_all_tiles_of_a_picture(anyres: Make) -> None:
    config = anyres()
    captioner = build_captioner(config.model, seed=config.seed)
    mix, _, images = stage_data(config, "align", captioner)
    spec = captioner.image_spec_of(config.stages["align"].data)
    store = open_store(config.model.vision_encoder, captioner.vision_encoder, spec, "fp32")
    assert fill(captioner, mix, 100, spec, store, Ranks(), "fp32", batch_size=3) == 12
    cached = FeatureInputs(store, spec)
    for position in range(len(mix)):
        for image in mix.sample_at(position).images:
            tiles, size = images.read(image)
            features, stored_size = cached.read(image)
            assert size == stored_size and len(features) == len(tiles) > 1
            with torch.no_grad():
                expected = captioner.encode_images(tiles)
            torch.testing.assert_close(features, expected, rtol=2**-8, atol=1e-5)
    other = open_store(
        config.model.vision_encoder, captioner.vision_encoder, replace(spec, grids=spec.grids[:3]), "fp32"
    )
    assert other.folder != store.folder, "other grids are another store"


def test_a_cached_run_gives_the_losses_of_one_without(anyres: Make) -> None:
    losses = []
    for name, cache in (("plain", "false"), ("cached", "true")):
        overrides = (
            f"name={name}",
            f"stages.*.feature_cache={cache}",
            "stages.instruct.schedule={max_steps: 2}",
        )
        lines = (run_training(anyres(*overrides)) / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_the_plan_knows_of_tiles(anyres: Make) -> None:
    config = anyres("stages.align.batch.images_per_micro_batch=16")
    stage = config.stages["align"]
    memory = StageMemory(config.model, stage)
    captioner = build_captioner(config.model)
    batch, tiling = worst_batch(captioner, stage), worst_tiling(captioner, stage)
    assert tiling is not None and tiling.num_tiles == 7
    assert len(batch.tile_image) == 7 * len(batch.spans) <= 16 and len(batch.spans) > 0
    assert torch.isfinite(captioner(batch).loss_sum)
    assert memory.of(Sharding(None)).total > 0
    lengths = lengths_of_data("align", config, captioner)
    samples, _ = encoded_of(config, captioner)
    assert sorted(lengths.tiles) == sorted(sample.num_tiles for sample in samples)
    assert shape_of(batch).tiles == len(batch.tile_image)
    wide = stage.model_copy(update={"data": stage.data.model_copy(update={"max_tokens": 2048})})
    mix = lengths_of_mix("stage1_pairs", captioner, wide)
    assert (
        set(mix.tiles) == {7} and "640 x 480 px assumed" in mix.origin
    )  # 2 x 3 tiles of 16 px, and the overview


def test_the_page_shows_every_tile(anyres: Make) -> None:
    config = anyres()
    captioner = build_captioner(config.model)
    mix, encoder, images = stage_data(config, "align", captioner)
    shown = inspect_mix(mix, encoder, images.spec, num=14).samples
    samples = {
        sample.id: encoder.encode(mix.sample_at(i)) for i in range(14) for sample in [mix.sample_at(i)]
    }
    for page in shown:
        assert len(page.tiles) == len(page.tile_names) == samples[page.id].num_tiles
        if page.tiles:
            assert page.tile_names[:2] == ("picture 1, overview", "picture 1, tile 1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.image_newline=false"], r"set model\.image_newline: true"),
        (["stages.*.data.geometry=pad"], "no stage has data.geometry: anyres"),
        (["stages.align.batch.images_per_micro_batch=6"], "a picture has up to 7 tiles"),
    ],
)
def test_a_config_that_cannot_be_is_refused(anyres: Make, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        anyres(*overrides)


def test_a_first_patch_that_is_dropped_leaves_no_map(anyres: Make) -> None:
    config = anyres("model.vision_encoder.drop_first_patch=true")
    with pytest.raises(ConfigError, match="drop_first_patch: true leaves no square of patches"):
        build_captioner(config.model)


def test_ranks_agree_on_lengths_that_pictures_decide(anyres: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that cannot read a picture would plan a step otherwise than the ranks that can."""
    asked: list[int] = []

    def measured(*arguments: Any) -> LengthIndex:
        asked.append(arguments[2])
        return LengthIndex(())

    monkeypatch.setattr(lengths, "measured", measured)
    for geometry, expected in (("anyres", [12]), ("resize", [12])):
        config = anyres(f"stages.instruct.data.geometry={geometry}")
        mix, encoder, _ = stage_data(config, "instruct", build_captioner(config.model))
        lengths.lengths_for(mix, encoder, config.stages["instruct"].batch, 12, 0, Ranks(world_size=2))
        assert asked == expected
        lengths.lengths_for(mix, encoder, config.stages["instruct"].batch, 12, 0, Ranks())
        assert asked == expected  # alone, each step is planned from what it reads itself


def test_a_stage_without_tiles_may_come_first(anyres: Make) -> None:
    """As in LLaVA-1.5-HD: stage 1 sees one tile of each picture."""
    config = anyres("stages.align.data.geometry=resize", "stages.*.schedule={max_steps: 2}")
    run_training(config)


def test_lengths_are_measured_from_the_sizes(anyres: Make, tmp_path: Path) -> None:
    """Sorted by length, a plan knows all lengths beforehand; a file that changes afterwards stops the run."""
    overrides = ("grouping=length", "packing=false", "samples_per_step=14")
    config = anyres(*(f"stages.align.batch.{override}" for override in overrides))
    captioner = build_captioner(config.model)
    loader = stage_loader(config, "align", captioner, Ranks())
    samples = [loader.encoder.encode(loader.mix.sample_at(position)) for position in range(14)]
    assert loader.lengths is not None
    for position, sample in enumerate(samples):
        assert loader.lengths.at(*loader.mix.locate(position)) == Measure(len(sample), sample.num_tiles)
    assert sum(len(batch.tile_image) for batch in loader.load(0).micro_batches) == sum(
        sample.num_tiles for sample in samples
    )
    Image.new("RGB", (30, 10)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="or that of a picture, has changed since"):
        loader.load(0)
