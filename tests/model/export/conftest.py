"""Tiny captioners of every exportable kind, each exported once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prismcap.configs.registry import component_module
from prismcap.configs.schema.run import ModelConfig
from prismcap.data.schema import IGNORE_INDEX, Batch, ImageSpec
from prismcap.data.templates._contract import Template
from prismcap.data.templates._jinja import chat_template
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.hf.export import ExportInfo, export_captioner

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = {"name": "siglip", "config": TOWER}
CLIP = {"name": "clip", "config": TOWER | {"projection_dim": 8}}
DINOV2_REGISTERS = {
    "name": "dinov2_registers",
    "post_layernorm": False,  # so that its type alone makes it no LLaVA
    "config": {key: value for key, value in TOWER.items() if key != "intermediate_size"}
    | {"mlp_ratio": 2, "num_register_tokens": 2},
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    # not the default base: 4.57 reads it under another name
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
EVA = {"name": "eva_vit_g", "config": TOWER | {"initializer_range": 0.3}}
LAST_NORMED = {"layer": -1, "post_layernorm": True}
QFORMER = {"name": "qformer", "num_queries": 5, "hidden": 24, "layers": 3, "heads": 4, "intermediate": 40}
ABSTRACTOR = {"name": "abstractor", "num_queries": 4, "layers": 2, "heads": 4, "intermediate": 40}
REAL_TOKENIZER = "cache:models/smollm2-135m-instruct"


@dataclass(frozen=True)
class Kind:
    """format: what `auto` must choose."""

    format: str
    geometry: Any
    vision_encoder: dict[str, Any]
    connector: dict[str, Any]
    tied: bool = False


KINDS = {
    "siglip-mlp": Kind("llava", "pad", SIGLIP, {"name": "mlp"}, tied=True),
    "clip-mlp": Kind("llava", "center_crop", CLIP, {"name": "mlp"}),
    "siglip-last-linear": Kind("llava", "resize", SIGLIP | {"layer": -1}, {"name": "linear"}),
    "timm-patch_concat": Kind(
        "custom",
        "resize",
        {"name": "timm", "model": "tf_efficientnet_lite0", "image_size": 128},
        {"name": "patch_concat", "k": [1, 2]},
        tied=True,
    ),
    "clip-layers-resized": Kind(
        "llava", "center_crop", CLIP | {"layer": [1, -2], "image_size": 48}, {"name": "linear"}
    ),
    # PrismCaptioner's quirk
    "siglip-first_patch": Kind("llava", "pad", SIGLIP | {"drop_first_patch": True}, {"name": "mlp"}),
    # what LLaVA cannot say: it reads hidden states before the final norm, and knows CLIP and SigLIP alone
    "clip-normed": Kind("custom", "resize", CLIP | LAST_NORMED, {"name": "linear"}),
    "dinov2_registers-mlp": Kind("custom", "pad", DINOV2_REGISTERS, {"name": "mlp"}),
    "clip-deep": Kind("custom", "pad", CLIP, {"name": "mlp", "depth": 3, "layer_norm": True}),
    "clip-patch_concat": Kind(
        "custom", "resize", CLIP, {"name": "patch_concat", "k": [1, 4], "depth": 1, "layer_norm": False}
    ),
    "siglip-pixel_shuffle": Kind("custom", "pad", SIGLIP, {"name": "pixel_shuffle"}),
    "siglip-pooling": Kind("custom", "center_crop", SIGLIP, {"name": "pooling"}),
    "eva-qformer": Kind("blip2", "resize", EVA | {"class_token": "keep"}, QFORMER, tied=True),
    "clip-qformer": Kind(
        "custom", "pad", CLIP | {"class_token": "keep"}, QFORMER | {"layer_norm": True, "projection_depth": 2}
    ),
    "clip-abstractor": Kind(
        "custom", "center_crop", CLIP | LAST_NORMED | {"class_token": "keep"}, ABSTRACTOR | {"hidden": 24}
    ),
    "siglip-plain-abstractor": Kind(
        "custom", "resize", SIGLIP, ABSTRACTOR | {"hidden": 16, "original": False}
    ),
    "eva-resampler": Kind(
        "custom",
        "pad",
        EVA | {"class_token": "keep"},
        {"name": "resampler", "latents": 5, "depth": 2, "heads": 4, "head_size": 6, "kv_heads": 2},
    ),
    "vit-linear": Kind(
        "custom", "center_crop", {"name": "timm", "model": "test_vit", "image_size": 64}, {"name": "linear"}
    ),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, and the copies of remote code somewhere else than in the user's cache."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    modules = tmp_path_factory.mktemp("modules")
    patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    patch.syspath_prepend(str(modules))
    yield
    patch.undo()
    torch.set_num_threads(before)


def make_template(name: str, **options: Any) -> Template:
    module = component_module("template", name)
    template: Template = module.build(module.Options(**options))
    return template


def make_info(template: Template) -> ExportInfo:
    return ExportInfo(
        name="tiny",
        template=template.spec.name,
        chat_template=chat_template(template),
        stop=template.spec.stop,
        prompt="Describe the picture.",
    )


def write_tokenizer(folder: Path) -> Path:
    """Bytes and the marks of chatml: small, so that embeddings are."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*marks, *sorted(ByteLevel.alphabet())])}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    start, end = marks[1:]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=end, pad_token=end, unk_token=marks[0]
    )
    fast.save_pretrained(folder)
    return folder


def make_captioner(kind: Kind, tokenizer: str | Path) -> Captioner:
    """Random weights, all of them far from 0."""
    config = LLAMA | {"tie_word_embeddings": kind.tied}
    llm = {"name": "random", "tokenizer": str(tokenizer), "config": config}
    values = {"vision_encoder": kind.vision_encoder, "connector": kind.connector, "llm": llm}
    captioner = build_captioner(ModelConfig.model_validate(values))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, value in captioner.named_parameters():
            # biases and norms start at 0 and 1, where a mix-up of two of them would not be seen
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.1)
            elif name.startswith("connector."):
                value.mul_(3)
    return captioner


@dataclass(frozen=True)
class Case:
    kind: Kind
    captioner: Captioner
    template: Template
    image_spec: ImageSpec
    info: ExportInfo
    folder: Path

    @property
    def trust(self) -> bool:
        return self.kind.format == "custom"


class Cases:
    """Exports by the name of their kind, made on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = write_tokenizer(folder / "tokenizer")
        self._made: dict[str, Case] = {}

    def __getitem__(self, name: str) -> Case:
        if name not in self._made:
            kind = KINDS[name]
            captioner, template = make_captioner(kind, self.tokenizer), make_template("chatml")
            spec = replace(captioner.image_spec, geometry=kind.geometry)
            info = make_info(template)
            folder = export_captioner(captioner, self.folder / name, image_spec=spec, info=info)
            self._made[name] = Case(kind, captioner, template, spec, info, folder)
        return self._made[name]


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("exports"))


@pytest.fixture(params=list(KINDS))
def case(request: pytest.FixtureRequest, cases: Cases) -> Case:
    """An exported captioner of each kind; no test changes it."""
    return cases[request.param]


@pytest.fixture
def llava(cases: Cases) -> Case:
    return cases["clip-mlp"]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges: resizing them wrongly is seen, and rounding is not everything."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 5, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse[None], size=(height, width), mode="bicubic")[0]
    return Image.fromarray((pixels.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy())


def batch_of(input_ids: Tensor, tiles: Tensor, image_token_id: int) -> Batch:
    """One row as the captioner wants it: spans in place of image tokens, one per picture."""
    places = (input_ids[0] == image_token_id).nonzero().flatten()
    length = len(places) // len(tiles)
    spans = [[i, 0, int(places[i * length]), length] for i in range(len(tiles))]
    return Batch(
        input_ids=input_ids.masked_fill(input_ids == image_token_id, 0),
        labels=torch.full_like(input_ids, IGNORE_INDEX),
        position_ids=torch.arange(input_ids.shape[1])[None],
        segment_ids=torch.ones_like(input_ids),
        spans=torch.tensor(spans),
        tile_image=torch.arange(len(tiles)),
        image_sizes=torch.zeros(len(tiles), 2, dtype=torch.long),
        tiles=tiles,
    )


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions of this file, for test modules (which cannot import a conftest)."""

    class Tools:
        make_captioner = staticmethod(make_captioner)
        make_template = staticmethod(make_template)
        make_info = staticmethod(make_info)
        picture = staticmethod(picture)
        batch_of = staticmethod(batch_of)
        kinds = KINDS
        real_tokenizer = REAL_TOKENIZER

    return Tools
