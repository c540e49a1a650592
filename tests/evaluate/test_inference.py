"""Texts and losses in batches equal those of single items; pictures are drawn once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prismcap.evaluate.inference as module
from prismcap.configs.registry import component_module
from prismcap.configs.schema.base import Component
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.pack import collate
from prismcap.data.schema import Encoded
from prismcap.data.sources._contract import SourceContext
from prismcap.evaluate.caption_loss import sample_losses
from prismcap.evaluate.inference import FeatureStore, Request, generate_texts, inference
from prismcap.model.captioner import Captioner
from prismcap.model.restore import load_trained


@pytest.fixture(scope="module")
def captioner(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    return load_trained(make_run(tmp_path_factory.mktemp("run") / "tiny"))[0]


@pytest.fixture(scope="module")
def encoder(captioner: Captioner) -> Encoder:
    return build_encoder(Component(name="chatml"), captioner.tokenizer, captioner.token_spec, 128)


@pytest.fixture(scope="module")
def samples(drawn_scenes: str) -> list[Any]:
    source = component_module("source", drawn_scenes)
    scenes = source.build(source.Options(num_objects=(1, 2, 3)), SourceContext(seed=1))
    return [scenes[index] for index in range(20)]


def prompts(encoder: Encoder, samples: list[Any]) -> list[Encoded]:
    return [encoder.encode_prompt(sample.messages[:-1], sample.images, sample.id) for sample in samples]


def test_batches_equal_single_items_in_the_given_order(
    captioner: Captioner, encoder: Encoder, samples: list[Any]
) -> None:
    requests = [Request(prompt, likely_length=i % 3) for i, prompt in enumerate(prompts(encoder, samples))]
    options: dict[str, Any] = {"max_new_tokens": 5, "stop": encoder.template.spec.stop}
    done: list[int] = []
    with inference(captioner, "fp32"):
        store = FeatureStore(captioner, captioner.image_spec, batch_size=7)
        store.add([sample.images[0] for sample in samples])
        batched = generate_texts(captioner, requests, store, batch_size=6, progress=done.append, **options)
        single = [generate_texts(captioner, [r], store, batch_size=1, **options)[0] for r in requests]
    assert batched == single
    assert len(set(batched)) > 3, "texts differ, so that a mixed-up order would show"
    assert sum(done) == len(samples)


def test_equal_requests_are_generated_once(
    captioner: Captioner, encoder: Encoder, samples: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = module.generate

    def counted(captioner: Captioner, batch: Any, **options: Any) -> Any:
        seen.append(len(batch))
        return original(captioner, batch, **options)

    monkeypatch.setattr(module, "generate", counted)
    first, second = prompts(encoder, samples)[:2]
    same = replace(first, id="another name")
    other_picture = replace(first, images=(samples[7].images[0],))
    requests = [Request(item) for item in (first, second, same, other_picture)]
    done: list[int] = []
    with inference(captioner, "fp32"):
        store = FeatureStore(captioner, captioner.image_spec)
        store.add([samples[0].images[0], samples[1].images[0], samples[7].images[0]])
        texts = generate_texts(
            captioner, requests, store, batch_size=8, max_new_tokens=4, stop=(), progress=done.append
        )
    assert seen == [3] and done == [4]
    assert texts[0] == texts[2]


def test_pictures_are_drawn_and_encoded_once(captioner: Captioner, samples: list[Any]) -> None:
    drawn: list[Any] = []
    images = [sample.images[0] for sample in samples]
    with inference(captioner, "fp32"):
        store = FeatureStore(
            captioner, captioner.image_spec, batch_size=2, on_draw=lambda image, _: drawn.append(image)
        )
        store.add(images)
        store.add(images[:3])
        single = FeatureStore(captioner, captioner.image_spec, batch_size=1)
        single.add(images)
    assert drawn == list(dict.fromkeys(images)) and len(store) == len(drawn) < len(images)
    for image in images:
        torch.testing.assert_close(store[image], single[image], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(store[images[0]], store[images[-1]], atol=1e-2)


def test_sample_losses_equal_the_captioners_own(
    captioner: Captioner, encoder: Encoder, samples: list[Any]
) -> None:
    encoded = [encoder.encode(sample) for sample in samples]
    with inference(captioner, "fp32"):
        store = FeatureStore(captioner, captioner.image_spec)
        store.add([sample.images[0] for sample in samples])
        losses = sample_losses(captioner, encoded, store, pad_id=encoder.pad_id, batch_size=6)
        for item, loss in zip(encoded, losses, strict=True):
            inputs = {item.images[0]: (store[item.images[0]], (32, 32))}
            output = captioner(collate([[item]], encoder.pad_id, inputs, "features"))
            assert output.num_target_tokens > 1
            assert loss == pytest.approx(float(output.loss_sum) / output.num_target_tokens, rel=1e-5)
        # planted fault: the picture of another sample must move the loss, or the control is empty
        other = replace(encoded[0], images=encoded[-1].images)
        moved = sample_losses(captioner, [other], store, pad_id=encoder.pad_id, batch_size=1)
    assert abs(moved[0] - losses[0]) > 1e-4


def test_inference_puts_everything_back(captioner: Captioner) -> None:
    captioner.connector.requires_grad_(True)
    captioner.train()
    flags = [parameter.requires_grad for parameter in captioner.parameters()]
    with inference(captioner, "bf16"):
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        assert not captioner.llm.training
    assert [parameter.requires_grad for parameter in captioner.parameters()] == flags
    assert captioner.llm.training and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    captioner.requires_grad_(False)
    captioner.eval()


def test_bf16_equals_plain_autocast(captioner: Captioner, encoder: Encoder, samples: list[Any]) -> None:
    item = encoder.encode(samples[0])
    with inference(captioner, "bf16"):
        store = FeatureStore(captioner, captioner.image_spec)
        store.add([samples[0].images[0]])
        (loss,) = sample_losses(captioner, [item], store, pad_id=0, batch_size=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inputs = {item.images[0]: (store[item.images[0]], (0, 0))}
        output = captioner(collate([[item]], 0, inputs, "features"))
    assert loss == pytest.approx(float(output.loss_sum) / output.num_target_tokens, rel=1e-6)
