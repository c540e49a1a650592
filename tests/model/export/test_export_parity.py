"""A reloaded export says what the captioner says: logits, pictures, prompts, captions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline

from prismcap.data.encode import Encoder
from prismcap.data.image import to_tiles
from prismcap.data.schema import ImagePart, Message, TextPart
from prismcap.model.generate import generate
from prismcap.model.hf.dry_run import ExportError, compare, dry_run
from prismcap.model.hf.export import export_captioner
from prismcap.model.hf.load import load_exported

SIZES = [(90, 40), (37, 83), (20, 21), (200, 33)]

# fp32 over another order of sums: 1.04e-5 was seen on a CPU without AVX-512, and 1.6e-5 in 4.57's
LOGITS_ATOL = 3e-5


class Given:
    """A picture that is handed to the model as tiles, not loaded."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def load(self) -> Image.Image:
        return self.image

    def fingerprint(self) -> str:
        return str(hash(self.image.tobytes()))


def reload(case: Any) -> tuple[Any, Any]:
    """As a user would: Auto classes, remote code only where the card says so."""
    model = AutoModelForImageTextToText.from_pretrained(case.folder, trust_remote_code=case.trust)
    processor = AutoProcessor.from_pretrained(case.folder, trust_remote_code=case.trust)
    return model.eval(), processor


def chat(*images: Image.Image, text: str = "Describe the picture.") -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def inputs_of(processor: Any, messages: list[dict[str, Any]]) -> Any:
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@torch.no_grad()
def difference(case: Any, model: Any, processor: Any, tools: Any) -> float:
    """Of logits, on two pictures in one prompt. The rows of the vocabulary that the captioner has."""
    inputs = inputs_of(processor, chat(tools.picture(90, 40), tools.picture(37, 83, seed=1)))
    batch = tools.batch_of(inputs["input_ids"], inputs["pixel_values"], model.config.image_token_id)
    expected = case.captioner.logits(batch)
    found = model(**inputs).logits[..., : expected.shape[-1]]
    return float((found - expected).abs().max())


def test_logits_equal(case: Any, tools: Any) -> None:
    model, processor = reload(case)
    assert json.loads((case.folder / "prismcap.json").read_text())["format"] == case.kind.format
    assert difference(case, model, processor, tools) < LOGITS_ATOL
    # and the pictures matter, so that equal is not equal by chance
    batch = tools.batch_of(torch.tensor([[7] * case.captioner.connector.num_tokens + [5]]), torch.zeros(1), 7)
    logits = []
    for seed in (0, 1):
        batch.tiles = to_tiles(tools.picture(50, 40, seed), case.image_spec)
        logits.append(case.captioner.logits(batch))
    assert (logits[0][0, -1] - logits[1][0, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("fault", ["strategy", "layer", "projector"])
def test_a_planted_fault_is_seen(llava: Any, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    processor_config = json.loads((folder / "processor_config.json").read_text())
    if fault == "strategy":  # the class token stays, and the last patch is dropped by the count
        config["vision_feature_select_strategy"] = "full"
        processor_config["vision_feature_select_strategy"] = "full"
    elif fault == "layer":
        config["vision_feature_layer"] = -1
    else:
        config["projector_hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps(processor_config))
    with pytest.raises(ExportError):
        compare(llava.captioner, load_exported(folder, dtype="float32"), llava.info)


def test_a_dropped_patch_is_seen(llava: Any, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = reload(llava)
    vision = model.model.vision_tower.forward

    def without_last_patch(*args: Any, **kwargs: Any) -> Any:
        output = vision(*args, **kwargs)
        hidden = output.hidden_states[-2].clone()
        hidden[:, -1] = hidden[:, -2]
        output.hidden_states = (*output.hidden_states[:-2], hidden, output.hidden_states[-1])
        return output

    assert difference(llava, model, processor, tools) < LOGITS_ATOL
    monkeypatch.setattr(model.model.vision_tower, "forward", without_last_patch)
    assert difference(llava, model, processor, tools) > 1e-3


@pytest.mark.parametrize("geometry", ["resize", "center_crop", "pad"])
def test_preprocessing_equal(llava: Any, tools: Any, tmp_path: Path, geometry: Any) -> None:
    spec = replace(llava.image_spec, geometry=geometry)
    folder = export_captioner(llava.captioner, tmp_path / "model", image_spec=spec, info=llava.info)
    exact = AutoImageProcessor.from_pretrained(folder, backend="pil")
    default = AutoImageProcessor.from_pretrained(folder)
    grey_level = 1 / 255 / min(spec.std)
    for width, height in SIZES:
        image = tools.picture(width, height)
        expected = to_tiles(image, spec)
        assert torch.equal(exact(image, return_tensors="pt")["pixel_values"], expected)
        near = default(image, return_tensors="pt")["pixel_values"]
        assert (near - expected).abs().max() < 3 * grey_level
    other = replace(spec, geometry="pad" if geometry == "resize" else "resize")
    assert not torch.allclose(to_tiles(image, other), expected, atol=0.1)


TEMPLATES = [
    ("chatml", {}),
    ("chatml", {"system": "You're brief.\nAlways."}),
    ("plain", {}),
    ("vicuna_v1", {"end": "<|im_end|>"}),
]


@pytest.fixture(scope="module")
def real(cases: Any, tools: Any) -> tuple[Any, Any]:
    """A captioner with a real tokenizer, which joins letters and spaces to tokens, and its processor."""
    captioner = tools.make_captioner(tools.kinds["siglip-mlp"], tools.real_tokenizer)
    info = tools.make_info(tools.make_template("chatml"))
    export_captioner(captioner, cases.folder / "real", image_spec=captioner.image_spec, info=info)
    return captioner, AutoProcessor.from_pretrained(cases.folder / "real")


@pytest.mark.parametrize(("name", "options"), TEMPLATES)
def test_prompt_ids_equal(tools: Any, real: tuple[Any, Any], name: str, options: dict[str, Any]) -> None:
    template = tools.make_template(name, **options)
    captioner, processor = real
    processor.chat_template = tools.make_info(template).chat_template
    encoder = Encoder(template, captioner.tokenizer, captioner.token_spec, max_tokens=500)
    for text in ("Describe the picture.", "  What's on\n\nthe left? <b> 12,345", "\nIs it so?\n"):
        image = tools.picture(40, 30)
        message = Message("user", (ImagePart(0), TextPart(text)))
        prompt = encoder.encode_prompt([message], [Given(image)])
        ids = inputs_of(processor, chat(image, text=text))["input_ids"][0]
        is_image = ids == processor.image_token_id
        _, start, length = prompt.spans[0]
        assert is_image.nonzero().flatten().tolist() == list(range(start, start + length))
        assert torch.equal(ids[~is_image], prompt.input_ids[~is_image])


def test_captions_equal_our_own(case: Any, tools: Any) -> None:
    model, processor = reload(case)
    processor.image_processor = AutoImageProcessor.from_pretrained(
        case.folder, backend="pil", trust_remote_code=case.trust
    )
    encoder = Encoder(case.template, case.captioner.tokenizer, case.captioner.token_spec, max_tokens=500)
    for size in SIZES[:2]:
        image = tools.picture(*size)
        message = Message("user", (ImagePart(0), TextPart("Describe the picture.")))
        prompt = encoder.encode_prompt([message], [Given(image)])
        own = generate(
            case.captioner,
            [prompt],
            tiles_P3SS=to_tiles(image, case.image_spec),
            max_new_tokens=8,
            stop=case.template.spec.stop,
        )[0]
        inputs = inputs_of(processor, chat(image))
        output = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(output, skip_special_tokens=True) == own.text
        assert own.text


def test_the_image_token_is_never_generated(llava: Any, tools: Any) -> None:
    """Its row is the mean of all rows, so its logit is the mean of all logits."""
    model, processor = reload(llava)
    inputs = processor(images=tools.picture(40, 30), text="a <image> b", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    image_logit, others = logits[..., -1], logits[..., :-1]
    assert model.config.image_token_id == logits.shape[-1] - 1 == len(llava.captioner.tokenizer)
    assert torch.allclose(image_logit, others.mean(-1), atol=1e-4)


@pytest.mark.parametrize("name", ["siglip-mlp", "timm-patch_concat", "eva-qformer"])
def test_pipeline(name: str, cases: Any, tools: Any) -> None:
    case = cases[name]
    pipe = pipeline("image-text-to-text", model=str(case.folder), trust_remote_code=case.trust, device="cpu")
    answer = pipe(text=chat(tools.picture(40, 30)), max_new_tokens=4, return_full_text=False)
    assert answer[0]["generated_text"]


@pytest.mark.parametrize("name", ["siglip-mlp", "timm-patch_concat", "eva-qformer"])
def test_dry_run_leaves_everything_as_it_was(name: str, tools: Any, cases: Any) -> None:
    captioner = tools.make_captioner(tools.kinds[name], cases.tokenizer)
    captioner.connector.requires_grad_(True)
    captioner.train()
    modes = [module.training for module in captioner.modules()]
    weights = {key: value.clone() for key, value in captioner.state_dict().items()}
    gradient = torch.ones_like(next(captioner.connector.parameters()))
    next(captioner.connector.parameters()).grad = gradient
    rng = torch.get_rng_state()
    info = tools.make_info(tools.make_template("plain"))
    assert dry_run(captioner, image_spec=captioner.image_spec, info=info) < LOGITS_ATOL
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in captioner.modules()] == modes
    assert next(captioner.connector.parameters()).grad is gradient
    assert all(torch.equal(value, weights[key]) for key, value in captioner.state_dict().items())
    assert len(captioner.tokenizer) == captioner.llm.config.vocab_size


def test_dry_run_names_a_difference(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from prismcap.model.hf import native

    state = native.llava_state

    def swapped(*args: Any) -> dict[str, torch.Tensor]:
        found = state(*args)
        key = "multi_modal_projector.linear_2.bias"
        return found | {key: found[key].roll(1)}

    monkeypatch.setattr(native, "llava_state", swapped)
    with pytest.raises(ExportError, match="differs from the captioner by"):
        dry_run(llava.captioner, image_spec=llava.image_spec, info=llava.info)
