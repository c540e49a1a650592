"""Anyres pictures in the captioner, against LlavaNextForConditionalGeneration with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.data import DataConfig
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, DataError, Encoded, TokenSpec
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.connector._newline import Newline
from prismcap.model.generate import Generated, generate
from prismcap.model.trainable import prepare_stage, trainable_parameters

MakeConfig = Callable[..., ModelConfig]
MakeSample = Callable[..., Encoded]
Pack = Callable[..., Batch]
SIDE = 16  # of the tower of tests/model/conftest.py
IMAGE_TOKEN = 96
DATA = DataConfig.model_validate({"mix": [{"name": "llava_json"}], "geometry": "anyres"})
# height, width: wide, tall, square, smaller than a tile, not a multiple of anything, a strip
SIZES = [(20, 47), (50, 17), (33, 33), (7, 9), (31, 44), (3, 80)]
TRAIN: dict[Any, GroupConfig] = {"connector": GroupConfig(lr=1e-3), "llm": GroupConfig(lr=1e-3)}


def make_captioner(model_config: MakeConfig, **components: dict[str, Any]) -> Captioner:
    config = model_config(**components).model_copy(update={"image_newline": True})
    return build_captioner(config)


@pytest.fixture
def captioner(model_config: MakeConfig) -> Captioner:
    return make_captioner(model_config)


@pytest.fixture
def sample_of(make_sample: MakeSample) -> Callable[..., Encoded]:
    """A sample whose pictures have these sizes, with as many positions as `spec` says."""

    def make(name: str, spec: TokenSpec, *sizes: tuple[int, int], seed: int = 0, answer: int = 5) -> Encoded:
        tilings = tuple(tiling for size in sizes if (tiling := spec.tiling(*size)) is not None)
        spans, start = [], 1
        for image, tiling in enumerate(tilings):
            spans.append((image, start, spec.tokens_of(tiling)))
            start += spans[-1][2] + 2  # text between pictures
        plain = make_sample(name, 0, 0, prompt=start + 1, answer=answer, seed=seed)
        ids, labels = (
            values.masked_fill(values == IMAGE_TOKEN, 5) for values in (plain.input_ids, plain.labels)
        )
        for _, begin, length in spans:
            ids[begin : begin + length] = 0
        images = make_sample(name, len(sizes), 1, seed=seed).images
        return replace(
            plain, input_ids=ids, labels=labels, images=images, spans=tuple(spans), tilings=tilings
        )

    return make


def tiles_of(samples: Sequence[Encoded], seed: int = 0) -> Tensor:
    """Random tiles of all pictures of the samples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        sum(t.num_tiles for s in samples for t in s.tilings), 3, SIDE, SIDE, generator=generator
    )


def in_tiles(batch: Batch, samples: Sequence[Encoded]) -> Batch:
    """The batch of conftest's `pack`, told how its pictures are cut."""
    tilings = [tiling for sample in samples for tiling in sample.tilings]
    batch.tile_image = torch.cat([torch.full((t.num_tiles,), i) for i, t in enumerate(tilings)])
    batch.image_sizes = torch.tensor([(t.height, t.width) for t in tilings])
    batch.image_grids = torch.tensor([(t.rows, t.columns) for t in tilings])
    return batch


def pair(model_config: MakeConfig, family: str) -> tuple[Captioner, Any]:
    """Our captioner and transformers' model, with equal weights."""
    options = model_config().vision_encoder.options
    captioner = make_captioner(model_config, vision_encoder={"name": family, **options})
    tower, llm = captioner.vision_encoder.tower, captioner.llm
    config = LlavaNextConfig(
        vision_config=tower.config.to_dict(),
        text_config=llm.config.to_dict(),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if family == "clip" else "full",
        image_grid_pinpoints=[[rows * SIDE, columns * SIDE] for rows, columns in DATA.grids],
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    layers, newline = captioner.connector.layers, captioner.connector.newline
    assert isinstance(newline, Newline)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.model.multi_modal_projector.linear_1.load_state_dict(layers[0].state_dict())
    model.model.multi_modal_projector.linear_2.load_state_dict(layers[2].state_dict())
    model.model.image_newline.data.copy_(newline.weight)
    return captioner, model


def next_inputs(samples: Sequence[Encoded], tiles: Tensor) -> dict[str, Tensor]:
    """One right-padded row per sample, as LlavaNextProcessor makes them, with blank tiles to fill up."""
    length = max(len(sample) for sample in samples)
    tilings = [tiling for sample in samples for tiling in sample.tilings]
    found: dict[str, Tensor] = {
        "input_ids": torch.zeros(len(samples), length, dtype=torch.long),
        "labels": torch.full((len(samples), length), IGNORE_INDEX),
        "attention_mask": torch.zeros(len(samples), length, dtype=torch.long),
        "pixel_values": torch.zeros(len(tilings), max(t.num_tiles for t in tilings), 3, SIDE, SIDE),
        "image_sizes": torch.tensor([(t.height, t.width) for t in tilings]),
    }
    for row, sample in enumerate(samples):
        found["input_ids"][row, : len(sample)] = sample.input_ids
        found["labels"][row, : len(sample)] = sample.labels
        found["attention_mask"][row, : len(sample)] = 1
        for _, start, size in sample.spans:
            found["input_ids"][row, start : start + size] = IMAGE_TOKEN
    for image, part in enumerate(tiles.split([t.num_tiles for t in tilings])):
        found["pixel_values"][image, : len(part)] = part
    return found


def largest_difference(captioner: Captioner, model: Any, samples: list[Encoded], pack: Pack) -> float:
    """Of logits, all samples in one row of ours."""
    tiles = tiles_of(samples)
    batch = in_tiles(pack([samples], tiles), samples)
    with torch.no_grad():
        expected = model(**next_inputs(samples, tiles), use_cache=False)
        logits, output = captioner.logits(batch)[0], captioner(batch)
    differences = [
        (logits[batch.segment_ids[0] == row + 1] - expected.logits[row, : len(sample)]).abs().max()
        for row, sample in enumerate(samples)
    ]
    found = float(output.loss_sum / output.num_target_tokens)
    assert max(differences) > 1e-3 or found == pytest.approx(float(expected.loss), rel=1e-5)
    return float(max(differences))


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_logits_and_loss_are_llava_nexts(
    model_config: MakeConfig, sample_of: Callable[..., Encoded], pack: Pack, family: str
) -> None:
    captioner, model = pair(model_config, family)
    spec = captioner.token_spec_of(DATA)
    samples = [sample_of(f"s{i}", spec, size, seed=i) for i, size in enumerate(SIZES)]
    samples.append(sample_of("two", spec, SIZES[0], SIZES[3], seed=9))
    assert len({sample.tilings[0].num_tiles for sample in samples}) > 3, "the sizes are not all alike"
    assert largest_difference(captioner, model, samples, pack) < 1e-5


@pytest.mark.parametrize(
    "fault", ["tile swapped", "newline dropped", "unpadding off by one", "map transposed"]
)
def test_a_planted_fault_turns_parity_red(
    model_config: MakeConfig,
    sample_of: Callable[..., Encoded],
    pack: Pack,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prismcap.data.anyres import Tiling

    captioner, model = pair(model_config, "siglip")
    sample = sample_of("s", captioner.token_spec_of(DATA), (31, 44))
    order = Tiling.token_order

    def faulty(self: Tiling, tile_tokens: tuple[int, int], first: int, newline: int) -> Tensor:
        found = order(self, tile_tokens, first, newline)
        per_tile, line = tile_tokens[0] * tile_tokens[1], len(self.kept(tile_tokens)[1]) + 1
        lines = found[per_tile:].view(-1, line)
        if fault == "newline dropped":  # and the last token of the row said twice
            lines[:, -1] = lines[:, -2]
        elif fault == "unpadding off by one":
            lines[1:-1] = lines[2:].clone()
        elif fault == "map transposed":
            tokens = lines[:, :-1]
            lines[:, :-1] = tokens.flatten().view(tokens.shape[1], -1).T.reshape(tokens.shape)
        else:
            found = torch.where(
                (found >= first + per_tile) & (found < first + 2 * per_tile), found - per_tile, found
            )
        return found

    assert largest_difference(captioner, model, [sample], pack) < 1e-5
    monkeypatch.setattr(Tiling, "token_order", faulty)
    assert largest_difference(captioner, model, [sample], pack) > 1e-2


def test_twenty_steps_are_those_of_a_plain_loop(
    model_config: MakeConfig, sample_of: Callable[..., Encoded], pack: Pack
) -> None:
    """The newline trains with the connector, and every weight goes the way of transformers' model."""
    captioner, model = pair(model_config, "clip")
    spec = captioner.token_spec_of(DATA)
    prepare_stage(captioner, TRAIN)
    captioner.train()
    model.train()
    model.model.vision_tower.requires_grad_(False)
    ours = torch.optim.AdamW(trainable_parameters(captioner).values(), lr=1e-3)
    theirs = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-3)
    newline = captioner.connector.newline
    assert newline is not None and newline.weight.requires_grad
    start, losses, expected = newline.weight.detach().clone(), [], []
    for step in range(20):
        sizes = SIZES[step % 6], SIZES[(step + 1) % 6]
        samples = [sample_of(f"{i}", spec, size, seed=step % 5 + i) for i, size in enumerate(sizes)]
        tiles = tiles_of(samples, seed=step)
        loss = model(**next_inputs(samples, tiles), use_cache=False).loss
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        expected.append(loss.item())
        output = captioner(in_tiles(pack([samples], tiles), samples))
        ours.zero_grad()
        (output.loss_sum / output.num_target_tokens).backward()
        ours.step()
        losses.append(output.loss_sum.item() / output.num_target_tokens)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(newline.weight, model.model.image_newline, atol=1e-4, rtol=0)
    assert (newline.weight - start).abs().max() > 5e-3


def test_packed_equals_single_and_features_do_as_well(
    captioner: Captioner, sample_of: Callable[..., Encoded], make_sample: MakeSample, pack: Pack
) -> None:
    spec = captioner.token_spec_of(DATA)
    samples = [sample_of(f"s{i}", spec, size, seed=i) for i, size in enumerate(SIZES[:4])]
    samples.insert(2, make_sample("text", 0, 0, seed=7))
    tiles = tiles_of(samples)
    batch = in_tiles(pack([samples[:3], samples[3:]], tiles, length=240), samples)
    parts = iter(tiles.split([t.num_tiles for sample in samples for t in sample.tilings]))
    places = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    with torch.no_grad():
        logits = captioner.logits(batch)
        for sample, (row, segment) in zip(samples, places, strict=True):
            alone = pack([[sample]], next(parts) if sample.images else None)
            alone = in_tiles(alone, [sample]) if sample.images else alone
            packed = logits[row, batch.segment_ids[row] == segment]
            torch.testing.assert_close(packed, captioner.logits(alone)[0], atol=1e-5, rtol=1e-5)
        features = replace(batch, tiles=None, features=captioner.encode_images(tiles))
        torch.testing.assert_close(captioner.logits(features), logits)
        swapped = replace(batch, tiles=tiles.roll(1, dims=0))
        assert (captioner.logits(swapped) - logits).abs().max() > 1e-2, "tiles do matter"


def test_a_picture_shown_twice_and_a_picture_of_another_sample(
    captioner: Captioner, sample_of: Callable[..., Encoded], pack: Pack
) -> None:
    """Spans name pictures: out of order, and one of them in two rows."""
    spec = captioner.token_spec_of(DATA)
    samples = [sample_of("a", spec, SIZES[0]), sample_of("b", spec, SIZES[1])]
    batch = in_tiles(pack([[sample] for sample in samples], tiles_of(samples)), samples)
    first, second = batch.spans[:, 2:].tolist()
    twice = replace(
        batch,
        input_ids=batch.input_ids[[1, 0, 1]],
        labels=batch.labels[[1, 0, 1]],
        position_ids=batch.position_ids[[1, 0, 1]],
        segment_ids=batch.segment_ids[[1, 0, 1]],
        spans=torch.tensor([[1, 0, *second], [0, 1, *first], [1, 2, *second]]),
    )
    with torch.no_grad():
        assert torch.equal(captioner.embed(twice), captioner.embed(batch)[[1, 0, 1]])


def test_batched_generation_equals_single(
    captioner: Captioner, sample_of: Callable[..., Encoded], make_sample: MakeSample
) -> None:
    spec = captioner.token_spec_of(DATA)
    prompts = [sample_of(f"p{i}", spec, size, seed=i) for i, size in enumerate(SIZES[:4])]
    prompts.insert(1, make_sample("text", 0, 0, prompt=9, seed=5))
    prompts.append(sample_of("two", spec, SIZES[4], SIZES[2], seed=6))
    tiles = tiles_of(prompts)
    counts = [sum(tiling.num_tiles for tiling in prompt.tilings) for prompt in prompts]
    single: list[Generated] = []
    for prompt, part in zip(prompts, tiles.split(counts), strict=True):
        single += generate(captioner, [prompt], tiles_P3SS=part if len(part) else None, max_new_tokens=8)
    assert generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=8) == single
    features = captioner.encode_images(tiles).detach()
    assert generate(captioner, prompts, features_PKD=features, max_new_tokens=8) == single
    assert generate(captioner, prompts, tiles_P3SS=tiles.flip(0), max_new_tokens=8) != single
    with pytest.raises(DataError, match=f"3 tiles were given for prompts with {sum(counts)}"):
        generate(captioner, prompts, tiles_P3SS=tiles[:3], max_new_tokens=8)


CONNECTORS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"name": "linear"}, (4, 4)),
    ({"name": "mlp"}, (4, 4)),
    ({"name": "patch_concat", "k": 2}, (2, 2)),
    ({"name": "patch_concat", "k": [1, 4]}, (4, 1)),
    ({"name": "pixel_shuffle", "k": 2}, (2, 2)),
    ({"name": "pooling", "k": 2}, (2, 2)),
]


@pytest.mark.parametrize(("connector", "grid"), CONNECTORS)
def test_every_connector_with_a_grid_works(
    model_config: MakeConfig,
    sample_of: Callable[..., Encoded],
    pack: Pack,
    connector: dict[str, Any],
    grid: tuple[int, int],
) -> None:
    """Its tokens, laid out by hand: a row of the map is a row of each tile, side by side, then a newline."""
    captioner = make_captioner(model_config, connector=connector)
    assert captioner.token_spec.tile_tokens == grid
    # 2 x 3 tiles filled to the edge: nothing is padding
    sample = sample_of("s", captioner.token_spec_of(DATA), (2 * SIDE, 3 * SIDE))
    tiles = tiles_of([sample])
    batch = in_tiles(pack([[sample]], tiles), [sample])
    newline = captioner.connector.newline
    assert newline is not None
    with torch.no_grad():
        tokens = captioner.connector(captioner.encode_images(tiles)).unflatten(1, grid)
        lines = [tokens[0].flatten(0, 1)]
        for row in range(2):
            for line in range(grid[0]):
                lines += [tokens[1 + row * 3 + column, line] for column in range(3)]
                lines.append(newline.weight[None])
        _, start, length = sample.spans[0]
        embedded = captioner.embed(batch)[0, start : start + length]
    torch.testing.assert_close(embedded, torch.cat(lines))


@pytest.mark.parametrize("name", ["qformer", "abstractor", "resampler"])
def test_a_connector_without_a_grid_is_refused(model_config: MakeConfig, name: str) -> None:
    options = {
        "qformer": {"num_queries": 5, "hidden": 24, "layers": 3, "heads": 4, "intermediate": 40},
        "abstractor": {"num_queries": 5, "hidden": 24, "layers": 2, "heads": 4, "intermediate": 40},
        "resampler": {"latents": 5, "depth": 2, "heads": 4, "head_size": 6, "kv_heads": 2},
    }
    with pytest.raises(ConfigError, match=f"connector {name} lie in no grid.*Take linear, mlp"):
        make_captioner(model_config, connector={"name": name, **options[name]})


def test_without_anyres_pictures_the_newline_has_a_gradient_of_zero(
    captioner: Captioner, make_sample: MakeSample, pack: Pack
) -> None:
    """An optimiser, and a collective over gradients, must find it in every step."""
    prepare_stage(captioner, TRAIN)
    newline = captioner.connector.newline
    assert newline is not None
    for batch in (
        pack([[make_sample("text", 0, 0)]]),
        pack([[make_sample("plain", 1, 16)]], torch.randn(1, 3, SIDE, SIDE)),
    ):
        newline.weight.grad = None
        captioner(batch).loss_sum.backward()
        assert newline.weight.grad is not None and not newline.weight.grad.any()


def test_the_newline_changes_no_other_weight(model_config: MakeConfig, captioner: Captioner) -> None:
    plain = build_captioner(model_config()).state_dict()
    assert captioner.state_dict().keys() - plain.keys() == {"connector.newline.weight"}
    assert all(torch.equal(captioner.state_dict()[name], value) for name, value in plain.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_grids": torch.tensor([[3, 2]])}, "its image has"),
        ({"image_grids": torch.tensor([[1, 2]])}, "tiles of an image that Tiling"),
        ({"image_sizes": torch.tensor([[20, 60]])}, "its image has"),
        ({"image_grids": None}, "its image has 112 tokens"),
    ],
)
def test_disagreement_is_loud(
    captioner: Captioner,
    sample_of: Callable[..., Encoded],
    pack: Pack,
    change: dict[str, Any],
    message: str,
) -> None:
    sample = sample_of("s", captioner.token_spec_of(DATA), (31, 44))
    batch = in_tiles(pack([[sample]], tiles_of([sample])), [sample])
    with pytest.raises(DataError, match=message):
        captioner(replace(batch, **change))


def test_a_model_without_a_newline_refuses_grids(
    model_config: MakeConfig, captioner: Captioner, sample_of: Callable[..., Encoded], pack: Pack
) -> None:
    sample = sample_of("s", captioner.token_spec_of(DATA), (31, 44))
    batch = in_tiles(pack([[sample]], tiles_of([sample])), [sample])
    with pytest.raises(DataError, match="no image_newline"):
        build_captioner(model_config())(batch)
