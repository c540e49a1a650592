"""A contrastive stage's loss, held against transformers' SiglipModel and against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig, TextTowerConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, DataError
from prismcap.model import text_tower as towers
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import finish_stage, prepare_stage, trainable_parameters

MakeConfig = Callable[..., ModelConfig]
SIZE, WIDTH, VOCABULARY, LENGTH = 16, 16, 97, 10
SIZES = TextTowerConfig(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, max_text_tokens=LENGTH
)
TRAIN: dict[Any, GroupConfig] = {
    "vision_encoder": GroupConfig(lr=1e-3),
    "text_tower": GroupConfig(lr=1e-3, sizes=SIZES),
}
TEXTS = ([5, 6, 7], [8, 9], [5, 6, 8, 9, 10], [11])
Text = Sequence[int]


def pairs(texts: Sequence[Text], pictures: Sequence[int], width: int = 8) -> Batch:
    """Rows of [picture][text], filled up to `width`; `pictures` are numbers of random tiles."""
    rows = len(texts)
    order = list(dict.fromkeys(pictures))
    batch = Batch(
        input_ids=torch.zeros(rows, width, dtype=torch.long),
        labels=torch.full((rows, width), IGNORE_INDEX),
        position_ids=torch.zeros(rows, width, dtype=torch.long),
        segment_ids=torch.zeros(rows, width, dtype=torch.long),
        spans=torch.tensor([[order.index(picture), row, 0, 1] for row, picture in enumerate(pictures)]),
        tile_image=torch.arange(len(order)),
        image_sizes=torch.full((len(order), 2), SIZE),
        tiles=torch.stack([tile(number) for number in order]),
        sample_ids=tuple(f"s{row}" for row in range(rows)),
    )
    for row, text in enumerate(texts):
        size = 1 + len(text)
        batch.input_ids[row, 1:size] = torch.tensor(text)
        batch.position_ids[row, :size] = torch.arange(size)
        batch.segment_ids[row, :size] = 1
        batch.labels[row, size - 1] = text[-1]
    return batch


def tile(number: int) -> Tensor:
    return torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(number))


@pytest.fixture
def captioner(model_config: MakeConfig) -> Captioner:
    """Ready for a contrastive stage; nothing is at 0 or 1 where a mix-up would not be seen."""
    made = build_captioner(model_config())
    prepare_stage(made, TRAIN)
    assert made.text_tower is not None
    with torch.no_grad():
        for value in [*made.vision_encoder.parameters(), *made.text_tower.parameters()]:
            value.add_(torch.randn_like(value) * 0.1)
        # scale and bias at which right and wrong answers both count
        made.text_tower.logit_scale.fill_(math.log(3.0))
        made.text_tower.logit_bias.fill_(-0.7)
    return made.train()


def tower_of(captioner: Captioner) -> towers.TextTower:
    assert captioner.text_tower is not None
    return captioner.text_tower


def siglip_of(captioner: Captioner) -> Any:
    """transformers' own model with the captioner's weights."""
    tower: Any = captioner.vision_encoder
    text = SiglipTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZES.hidden_size,
        intermediate_size=SIZES.intermediate_size,
        num_hidden_layers=SIZES.num_hidden_layers,
        num_attention_heads=SIZES.num_attention_heads,
        max_position_embeddings=LENGTH,
        projection_size=WIDTH,
    )
    siglip: Any = SiglipModel(
        SiglipConfig(text_config=text.to_dict(), vision_config=tower.tower.config.to_dict())
    )
    state = {f"vision_model.{name}": value for name, value in tower.tower.state_dict().items()}
    own = tower_of(captioner)
    state |= {f"text_model.{name}": value for name, value in own.tower.state_dict().items()}
    state |= {"logit_scale": own.logit_scale, "logit_bias": own.logit_bias}
    siglip.load_state_dict(state)
    return siglip.train()


def filled(texts: Sequence[Text]) -> Tensor:
    return torch.tensor([[*text, *[0] * (LENGTH - len(text))] for text in texts])


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def compare(captioner: Captioner) -> tuple[float, float, float]:
    """Our loss, SiglipModel's, and the largest difference of a gradient over that tensor's largest."""
    siglip = siglip_of(captioner)
    batch = pairs(TEXTS, [0, 1, 2, 3])
    output = captioner(batch)
    assert output.num_target_tokens == batch.num_target_tokens == 4
    loss = output.loss_sum / output.num_target_tokens
    loss.backward()
    expected = siglip(input_ids=filled(TEXTS), pixel_values=batch.tiles, return_loss=True).loss
    expected.backward()
    theirs = gradients(siglip)
    ours = {
        f"vision_model.{name.partition('.')[2]}": v for name, v in gradients(captioner.vision_encoder).items()
    }
    for name, value in gradients(tower_of(captioner)).items():
        ours[name.replace("tower.", "text_model.", 1)] = value
    assert ours.keys() == theirs.keys()
    # the bias of a key has a gradient of rounding alone: a floor under what is compared with
    floor = 1e-2 * max(float(value.abs().max()) for value in theirs.values())
    worst = max(
        float((value - theirs[name]).abs().max()) / max(float(theirs[name].abs().max()), floor)
        for name, value in ours.items()
    )
    return loss.item(), expected.item(), worst


def test_loss_and_gradients_are_those_of_siglip(captioner: Captioner) -> None:
    loss, expected, worst = compare(captioner)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert worst < 1e-5
    # every one of them is read
    assert all(value.grad is not None for value in trainable_parameters(captioner).values())


def test_pool_mean_is_the_mean_over_a_texts_own_tokens(captioner: Captioner) -> None:
    tower = tower_of(captioner).eval()
    tower.pool = "mean"
    with torch.no_grad():
        found_ND = tower(filled(TEXTS))
        hidden_NLD = tower.tower(input_ids=filled(TEXTS)).last_hidden_state
        means = [hidden_LD[: len(text)].mean(0) for hidden_LD, text in zip(hidden_NLD, TEXTS, strict=True)]
        torch.testing.assert_close(found_ND, torch.stack([tower.tower.head(mean_D) for mean_D in means]))
        # an empty text, as the idle loss asks about, has no tokens of its own
        assert torch.isfinite(tower(torch.zeros(1, LENGTH, dtype=torch.long))).all()


@pytest.mark.parametrize("fault", ["texts moved by one", "bias left out", "pad differs"])
def test_faults_are_seen(captioner: Captioner, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tower_of(captioner)
    if fault == "texts moved by one":
        usual = tower.tower.forward
        monkeypatch.setattr(tower.tower, "forward", lambda input_ids: usual(input_ids=input_ids.roll(1, 0)))
    elif fault == "bias left out":
        monkeypatch.setattr(
            tower,
            "logits",
            lambda a, b: towers._unit(a) @ towers._unit(b).T * tower.logit_scale.exp() + 0 * tower.logit_bias,
        )
    else:
        tower.pad_id = 3
    loss, expected, _ = compare(captioner)
    assert loss != pytest.approx(expected, rel=1e-3)


def by_hand(captioner: Captioner, texts: Sequence[Text], pictures: Sequence[int]) -> tuple[float, int]:
    """The formula of section 3.1, a question at a time, in Python's floats; how many pictures are right."""
    siglip = siglip_of(captioner)
    with torch.no_grad():
        found = siglip(
            input_ids=filled(texts), pixel_values=torch.stack([tile(number) for number in pictures])
        )
    images, words = found.image_embeds.tolist(), found.text_embeds.tolist()
    scale, bias = tower_of(captioner).logit_scale.exp().item(), tower_of(captioner).logit_bias.item()
    total, right = 0.0, 0
    for i, image in enumerate(images):
        logits = [scale * sum(a * b for a, b in zip(image, word, strict=True)) + bias for word in words]
        true = [pictures[i] == pictures[j] or list(texts[i]) == list(texts[j]) for j in range(len(texts))]
        total += sum(math.log1p(math.exp(-x if z else x)) for x, z in zip(logits, true, strict=True))
        right += true[logits.index(max(logits))]
    return total, right


CASES = [
    (TEXTS, [0, 1, 2, 3]),
    ((TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]), [0, 1, 2, 3]),  # one caption of two pictures
    ((TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[3]), [0, 1, 0, 2]),  # two captions of one picture
    ((TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]), [0, 0, 1, 2]),
    ((TEXTS[0],), [5]),
]


@pytest.mark.parametrize(("texts", "pictures"), CASES)
def test_what_belongs_together_is_no_counterexample(
    captioner: Captioner, texts: Sequence[Text], pictures: list[int]
) -> None:
    output = captioner(pairs(texts, pictures))
    total, right = by_hand(captioner, texts, pictures)
    assert output.loss_sum.item() == pytest.approx(total, rel=1e-5)
    assert int(output.num_correct) == right
    assert output.num_target_tokens == len(texts)


@pytest.mark.parametrize(("texts", "pictures"), CASES[1:3])
def test_repeated_captions_or_pictures_as_counterexamples_are_seen(
    captioner: Captioner, texts: Sequence[Text], pictures: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: only a pair's own place counts as right."""
    usual = towers.sigmoid_loss
    monkeypatch.setattr(
        towers, "sigmoid_loss", lambda logits, match: usual(logits, torch.eye(len(match), dtype=torch.bool))
    )
    output = captioner(pairs(texts, pictures))
    assert output.loss_sum.item() != pytest.approx(by_hand(captioner, texts, pictures)[0], rel=1e-2)


def test_the_width_of_the_rows_does_not_matter(captioner: Captioner) -> None:
    losses = [captioner(pairs(TEXTS, [0, 1, 2, 3], width)).loss_sum for width in (6, 8, 16)]
    assert losses[0] == losses[1] == losses[2]


def test_a_rank_without_pairs_runs_both_towers(captioner: Captioner) -> None:
    batch = pairs(TEXTS[:1], [0])
    idle = Batch(
        **{**vars(batch), "spans": batch.spans[:0], "tile_image": batch.tile_image[:0], "tiles": None}
    )
    output = captioner(idle)
    output.loss_sum.backward()
    assert (output.loss_sum.item(), output.num_target_tokens, int(output.num_correct)) == (0.0, 0, 0)
    assert all(
        value.grad is not None and not value.grad.any() for value in trainable_parameters(captioner).values()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": torch.tensor([[0, 0, 0, 1]])}, "one picture and its text"),
        ({"spans": torch.tensor([[0, 0, 0, 1], [1, 1, 2, 1]])}, "one picture and its text"),
        ({"tiles": None}, "one picture and its text"),
        ({"tile_image": torch.tensor([0, 0])}, "several tiles"),
    ],
)
def test_rows_that_are_no_pairs_are_named(captioner: Captioner, change: dict[str, Any], message: str) -> None:
    batch = Batch(**{**vars(pairs(TEXTS[:2], [0, 1])), **change})
    with pytest.raises(DataError, match=rf"{message}.* \(samples s0, s1\)"):
        captioner(batch)


def test_a_text_that_is_too_long_is_named(captioner: Captioner) -> None:
    with pytest.raises(DataError, match=r"a text of 11 tokens, the text tower reads 10 \(samples s0\)"):
        captioner(pairs([list(range(5, 16))], [0], width=16))


def test_all_of_the_encoder_trains_and_the_text_tower_ends_with_the_stage(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    names = list(captioner.state_dict())
    prepare_stage(captioner, TRAIN, seed=7)
    first = {name: value.clone() for name, value in tower_of(captioner).state_dict().items()}
    trained = trainable_parameters(captioner)
    # layer: -2 reads neither the last layer nor the head; a contrastive stage does
    own = [name for name, _ in captioner.named_parameters() if name.startswith("vision_encoder.")]
    assert any("head." in name for name in own)
    assert [name for name in trained if not name.startswith("text_tower.")] == own
    assert {"text_tower.logit_scale", "text_tower.logit_bias"} < trained.keys()
    with pytest.raises(ValueError, match="finish_stage"):
        prepare_stage(captioner, TRAIN)
    finish_stage(captioner)
    assert captioner.text_tower is None
    assert list(captioner.state_dict()) == names
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    prepare_stage(captioner, TRAIN, seed=7)
    assert torch.rand(1).equal(drawn), "the random state is left as it was"
    state = tower_of(captioner).state_dict()
    assert all(value.equal(state[name]) for name, value in first.items()), "of the seed alone"


def test_an_encoder_without_an_embedding_of_the_picture(model_config: MakeConfig) -> None:
    clip = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"name": "clip", "config": clip | {"image_size": 16, "patch_size": 8}}
    captioner = build_captioner(model_config(vision_encoder=vision))
    with pytest.raises(ConfigError, match=r"take vision_encoder\.name: siglip"):
        prepare_stage(captioner, TRAIN)
