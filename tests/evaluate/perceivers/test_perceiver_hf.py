"""Models of transformers as perceivers: batches with pictures of all sizes, bad ones, code of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from shown import PICTURES, Broken, Picture, ask
from tiny_vlms import KINDS

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate import exported as asking
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.perceivers import hf
from prismcap.evaluate.perceivers._contract import PerceiverContext, PerceiveRequest
from prismcap.evaluate.perceivers._several import ViewPerceiver

MakeVlm = Callable[[str], Path]
NEW = 6


def perceiver(model: Path | str, batch_size: int = 4, num_beams: int = 1, **options: Any) -> ViewPerceiver:
    decoding = Decoding(max_new_tokens=NEW, num_beams=num_beams)
    context = PerceiverContext("other", decoding, "cpu", batch_size)
    return hf.build(hf.Options(model=str(model), **options), context)


def describe(perceiver: ViewPerceiver, requests: list[PerceiveRequest]) -> list[tuple[Any, ...]]:
    """All of the answers but their time, in order."""
    answers: dict[int, Answer] = dict(perceiver.describe(requests))
    ordered = [answers[position] for position in range(len(requests))]
    return [(a.text, a.error, a.finish_reason, a.tokens_in, a.tokens_out) for a in ordered]


@pytest.fixture
def requests() -> list[PerceiveRequest]:
    """Of different lengths, so that rows of a batch are padded."""
    return [
        ask(picture, id=str(number), instruction=f"Describe{' it well' * (number % 3)}.")
        for number, picture in enumerate(PICTURES)
    ]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_batches_equal_single_pictures(
    kind: str, num_beams: int, vlm: MakeVlm, requests: list[PerceiveRequest]
) -> None:
    single = describe(perceiver(vlm(kind), 1, num_beams), requests)
    assert describe(perceiver(vlm(kind), 4, num_beams), requests) == single
    assert describe(perceiver(vlm(kind), 4, num_beams), requests[::-1]) == single[::-1]
    if num_beams == 1:
        assert len({text for text, *_ in single}) > 2, "a mixed-up order would show"
    assert len({tokens_in for _, _, _, tokens_in, _ in single}) > 1, "rows were padded"


def test_a_fault_in_the_padding_would_be_seen(
    vlm: MakeVlm, requests: list[PerceiveRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = describe(perceiver(vlm("llava"), 1), requests)
    real = asking.generate_answers

    def padding_attended(exported: Any, inputs: Any, *arguments: Any) -> Any:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return real(exported, inputs, *arguments)

    monkeypatch.setattr("prismcap.evaluate.perceivers._chat.generate_answers", padding_attended)
    assert describe(perceiver(vlm("llava"), 4), requests) != single


def test_texts_are_those_of_transformers_itself(vlm: MakeVlm, requests: list[PerceiveRequest]) -> None:
    """One picture, by the processor's own way from a conversation to inputs."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = vlm("llava")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    found = describe(perceiver(folder), requests)
    for request, (text, _, _, tokens_in, _) in zip(requests, found, strict=True):
        content = [
            {"type": "image", "image": request.images[0].load()},
            {"type": "text", "text": request.instruction},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
        length = inputs["input_ids"].shape[1]
        assert tokens_in == length
        assert text == processor.decode(output[0, length:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", list(KINDS))
def test_bad_pictures_within_a_batch_fail_alone(
    kind: str, vlm: MakeVlm, requests: list[PerceiveRequest]
) -> None:
    good = describe(perceiver(vlm(kind)), requests)
    # qwen2_vl's processor refuses what is 200 times as long as it is wide; the others squash it
    strip = Picture("red", (4, 1000))
    bad = [*requests[:2], ask(Broken(), id="bad"), ask(strip, id="long"), *requests[2:]]
    answers = describe(perceiver(vlm(kind)), bad)
    assert answers[2][:2] == ("", "broken.jpg: not a readable picture")
    assert [*answers[:2], *answers[4:]] == good
    if kind == "qwen2_vl":
        assert "the model's processor refuses it: absolute aspect ratio" in str(answers[3][1])


def test_the_models_sampling_defaults_are_not_used(
    vlm: MakeVlm, requests: list[PerceiveRequest], tmp_path: Path
) -> None:
    folder = tmp_path / "sampling"
    shutil.copytree(vlm("llava"), folder)
    path = folder / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"do_sample": True, "temperature": 9.0, "top_p": 0.9}))
    assert describe(perceiver(folder), requests) == describe(perceiver(vlm("llava")), requests)


def test_code_of_a_model_runs_only_where_it_is_allowed(
    vlm: MakeVlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "coded"
    shutil.copytree(vlm("idefics3"), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "coded.C", "AutoModelForImageTextToText": "coded.M"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "coded.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).write_text('')\n"
        "from transformers import Idefics3Config, Idefics3ForConditionalGeneration\n"
        "class C(Idefics3Config):\n    pass\n"
        "class M(Idefics3ForConditionalGeneration):\n    config_class = C\n"
    )
    with pytest.raises(ConfigError, match="runs code of its own; refused"):
        describe(perceiver(folder), [ask(PICTURES[0])])
    assert not (tmp_path / "ran").exists()
    allowed = perceiver(folder, trust_remote_code=True)
    assert describe(allowed, [ask(PICTURES[0])]) == describe(perceiver(vlm("idefics3")), [ask(PICTURES[0])])
    assert (tmp_path / "ran").exists()


def test_models_that_are_not_there(tmp_path: Path, vlm: MakeVlm) -> None:
    with pytest.raises(ConfigError, match="nothing: no such directory"):
        perceiver(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="the model hub did not give it"):
        _ = perceiver("prismcap-tests/no-such-model").identity
    folder = tmp_path / "mute"
    shutil.copytree(vlm("llava"), folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        describe(perceiver(folder), [ask(PICTURES[0])])


def test_the_identity_is_of_the_files(vlm: MakeVlm, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(vlm("llava"), folder)
    first = perceiver(folder).identity
    assert first == perceiver(vlm("llava")).identity
    assert perceiver(folder, dtype="bfloat16").identity != first
    (folder / "chat_template.jinja").write_text("{{ 'other' }}")
    assert perceiver(folder).identity != first


def test_pictures_reach_the_processor_in_rgb(vlm: MakeVlm, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    real = asking.model_inputs

    def watched(exported: Any, images: list[Image.Image], prompts: list[str]) -> Any:
        shown.extend(images)
        return real(exported, images, prompts)

    monkeypatch.setattr("prismcap.evaluate.perceivers._chat.model_inputs", watched)
    describe(perceiver(vlm("llava"), 2), [ask(picture) for picture in PICTURES])
    assert [image.tobytes() for image in shown] == [picture.load().tobytes() for picture in PICTURES]
