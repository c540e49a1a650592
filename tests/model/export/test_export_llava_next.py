"""A captioner of anyres pictures, exported and reloaded: ids, tiles, logits and captions for pictures of all
shapes are those of transformers' LlavaNextForConditionalGeneration and its processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.data import DataConfig
from prismcap.configs.schema.run import ModelConfig
from prismcap.data.encode import Encoder
from prismcap.data.image import to_tiles
from prismcap.data.pack import collate
from prismcap.data.schema import ImagePart, Message, TextPart
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.generate import generate
from prismcap.model.hf import llava_next
from prismcap.model.hf.dry_run import ExportError, dry_run
from prismcap.model.hf.export import export_captioner
from prismcap.model.hf.load import load_exported
from prismcap.scripts.commands.caption import caption_batch

# width, height: wide, tall, square, smaller than a tile, a strip, larger than the largest grid
SIZES = [(90, 40), (37, 83), (50, 50), (20, 13), (200, 3), (301, 200)]
HD = DataConfig.model_validate({"mix": [{"name": "llava_json"}], "geometry": "anyres"})
NEXT = HD.model_copy(update={"tile_grids": ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))})
KINDS = {
    "siglip-hd": ("siglip-mlp", HD, {"name": "mlp"}),
    "clip-hd": ("clip-mlp", HD, {"name": "linear"}),
    "clip-next": ("clip-mlp", NEXT, {"name": "mlp"}),
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
PROMPT = "Describe the picture."


class Given:
    """A picture that is there already."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def load(self) -> Image.Image:
        return self.image

    def fingerprint(self) -> str:
        return str(hash(self.image.tobytes()))


class Exported:
    """A captioner, and its export read again by transformers."""

    def __init__(self, name: str, cases: Any, tools: Any) -> None:
        like, self.data, connector = KINDS[name]
        self.captioner = make_captioner(like, connector, cases, tools)
        self.template = tools.make_template("chatml")
        self.info = tools.make_info(self.template)
        self.spec = self.captioner.image_spec_of(self.data)
        self.folder = cases.folder / name
        export_captioner(self.captioner, self.folder, image_spec=self.spec, info=self.info)
        self.read = load_exported(self.folder, dtype="float32")
        token_spec = self.captioner.token_spec_of(self.data)
        self.encoder = Encoder(self.template, self.captioner.tokenizer, token_spec, max_tokens=500)

    def prompt(self, *images: Image.Image) -> Any:
        parts = (*(ImagePart(i) for i in range(len(images))), TextPart(PROMPT))
        return self.encoder.encode_prompt([Message("user", parts)], [Given(image) for image in images])

    def inputs(self, *images: Image.Image) -> Any:
        content = [{"type": "image", "image": image} for image in images]
        return self.read.processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": PROMPT}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


def make_captioner(like: str, connector: dict[str, Any], cases: Any, tools: Any) -> Captioner:
    """With the vision encoder of a kind of conftest, random weights far from 0, and a newline."""
    values = {
        "vision_encoder": tools.kinds[like].vision_encoder,
        "connector": connector,
        "llm": {"name": "random", "tokenizer": str(cases.tokenizer), "config": LLAMA},
        "image_newline": True,
    }
    captioner = build_captioner(ModelConfig.model_validate(values))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, value in captioner.named_parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.1)
            elif name.startswith("connector."):
                value.mul_(3)
    return captioner


@pytest.fixture(scope="module")
def made(cases: Any, tools: Any) -> dict[str, Exported]:
    return {name: Exported(name, cases, tools) for name in KINDS}


@pytest.fixture(params=list(KINDS))
def exported(request: pytest.FixtureRequest, made: dict[str, Exported]) -> Exported:
    return made[request.param]


def test_it_is_transformers_own_class(exported: Exported) -> None:
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaNextForConditionalGeneration"] and "auto_map" not in config
    side = exported.spec.size_px
    assert config["image_grid_pinpoints"] == [[side * r, side * c] for r, c in exported.data.grids]
    marker = json.loads((exported.folder / "prismcap.json").read_text())
    assert marker["format"] == "llava_next"
    assert marker["image"]["grids"] == [list(grid) for grid in exported.data.grids]
    assert "LlavaNextForConditionalGeneration" in (exported.folder / "README.md").read_text()
    model = AutoModelForImageTextToText.from_pretrained(exported.folder)
    assert isinstance(model, LlavaNextForConditionalGeneration)
    assert type(AutoProcessor.from_pretrained(exported.folder)).__name__ == "LlavaNextProcessor"
    newline = exported.captioner.connector.newline
    assert newline is not None and torch.equal(model.model.image_newline, newline.weight)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [*((size,) for size in SIZES), (SIZES[0], SIZES[3]), tuple(SIZES[1:4])])
def test_ids_tiles_and_logits_equal(
    exported: Exported, tools: Any, sizes: tuple[tuple[int, int], ...]
) -> None:
    images = [tools.picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    prompt, inputs = exported.prompt(*images), exported.inputs(*images)
    ids = inputs["input_ids"][0]
    is_image = ids == exported.read.processor.image_token_id
    places = [place for _, start, length in prompt.spans for place in range(start, start + length)]
    assert is_image.nonzero().flatten().tolist() == places
    assert torch.equal(ids[~is_image], prompt.input_ids[~is_image])
    tiles = [to_tiles(image, exported.spec) for image in images]
    for given, part in zip(inputs["pixel_values"], tiles, strict=True):
        assert torch.equal(given[: len(part)], part) and not given[len(part) :].any()
    sized = [(part, (image.height, image.width)) for part, image in zip(tiles, images, strict=True)]
    batch = collate([[prompt]], 0, dict(zip(prompt.images, sized, strict=True)))
    expected = exported.captioner.logits(batch)[0, : len(prompt)]
    found = exported.read.model(**inputs).logits[0, :, : expected.shape[1]]
    assert (found - expected).abs().max() < 3e-5
    # and the tiles matter, so that equal is not equal by chance
    moved = replace(batch, tiles=torch.cat(tiles).roll(1, dims=0))
    assert (exported.captioner.logits(moved)[0, : len(prompt)] - expected).abs().max() > 1e-3


def test_captions_in_a_batch_are_our_own(exported: Exported, tools: Any) -> None:
    images = [tools.picture(*size, seed=seed) for seed, size in enumerate(SIZES)]
    texts = caption_batch(exported.read, images, PROMPT, max_new_tokens=8)
    for image, text in zip(images, texts, strict=True):
        own = generate(
            exported.captioner,
            [exported.prompt(image)],
            tiles_P3SS=to_tiles(image, exported.spec),
            max_new_tokens=8,
            stop=exported.template.spec.stop,
        )[0]
        assert text == own.text.strip()
    assert len(set(texts)) > 1


def test_the_dry_run_sees_a_wrong_newline(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dry_run(exported.captioner, image_spec=exported.spec, info=exported.info) < 3e-5
    state = llava_next.llava_next_state

    def rolled(*arguments: Any) -> dict[str, torch.Tensor]:
        found = state(*arguments)
        return found | {"image_newline": found["image_newline"].roll(1)}

    monkeypatch.setattr(llava_next, "llava_next_state", rolled)
    with pytest.raises(ExportError, match="differs from the captioner by"):
        dry_run(exported.captioner, image_spec=exported.spec, info=exported.info)


def test_another_grid_is_seen(made: dict[str, Exported], tmp_path: Path) -> None:
    """The planted fault: the model knows other grids than the processor."""
    one = made["siglip-hd"]
    folder = export_captioner(one.captioner, tmp_path / "model", image_spec=one.spec, info=one.info)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"image_grid_pinpoints": config["image_grid_pinpoints"][:2]}))
    from prismcap.model.hf.dry_run import compare

    with pytest.raises(ExportError, match="image tokens, the connector"):
        compare(one.captioner, load_exported(folder, dtype="float32"), one.info, one.spec)


@pytest.mark.parametrize("format", ["llava", "custom"])
def test_other_formats_cannot_say_it(made: dict[str, Exported], tmp_path: Path, format: Any) -> None:
    one = made["siglip-hd"]
    with pytest.raises(ConfigError, match=f"--format {format}: the model sees pictures in tiles"):
        export_captioner(one.captioner, tmp_path / "m", image_spec=one.spec, info=one.info, format=format)
    plain = one.captioner.image_spec
    with pytest.raises(ConfigError, match=r"--format llava_next: the last stage's data\.geometry is resize"):
        export_captioner(one.captioner, tmp_path / "m", image_spec=plain, info=one.info, format="llava_next")


def test_what_llava_next_cannot_say_is_refused_and_a_last_stage_of_one_tile_is_not(
    cases: Any, tools: Any, tmp_path: Path
) -> None:
    connector = {"name": "patch_concat", "k": 2}
    captioner = make_captioner("siglip-mlp", connector, cases, tools)
    info = tools.make_info(tools.make_template("chatml"))
    with pytest.raises(ConfigError, match=r"exports to LLaVA-NeXT alone.*the connector is neither"):
        export_captioner(captioner, tmp_path / "m", image_spec=captioner.image_spec_of(HD), info=info)
    assert dry_run(captioner, image_spec=captioner.image_spec, info=info) < 3e-5
