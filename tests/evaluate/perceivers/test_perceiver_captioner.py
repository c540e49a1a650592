"""Our captioner as a perceiver: batches, pictures and memory, beams, the blank control, its identity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from shown import LOADED, PICTURES, Broken, Picture, ask

import prismcap.evaluate.perceivers.captioner as module
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.prism import Decoding
from prismcap.data.encode import Encoder
from prismcap.data.pairs import stage_encoder
from prismcap.data.schema import ImagePart, Message, TextPart
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.inference import FeatureStore, Request, generate_texts, inference
from prismcap.evaluate.local_models import local_device
from prismcap.evaluate.perceivers._contract import PerceiverContext, PerceiveRequest
from prismcap.evaluate.perceivers._several import ViewPerceiver
from prismcap.model.generate import Generated
from prismcap.model.restore import load_trained

NEW = 6


def perceiver(
    model: Path, batch_size: int = 4, picture: Any = "own", device: str = "cpu", **decoding: Any
) -> ViewPerceiver:
    context = PerceiverContext("ours", Decoding(**{"max_new_tokens": NEW, **decoding}), device, batch_size)
    return module.build(module.Options(model=str(model), picture=picture), context)


def describe(perceiver: ViewPerceiver, requests: list[PerceiveRequest]) -> list[Answer]:
    answers = list(perceiver.describe(requests))
    assert sorted(position for position, _ in answers) == list(range(len(requests)))
    return [dict(answers)[position] for position in range(len(requests))]


def said(answers: list[Answer]) -> list[tuple[Any, ...]]:
    """All but the time."""
    return [
        (answer.text, answer.error, answer.finish_reason, answer.tokens_in, answer.tokens_out)
        for answer in answers
    ]


@pytest.fixture
def requests() -> list[PerceiveRequest]:
    words = ("Describe it.", "What is there to be seen?", "Count.")
    return [
        ask(picture, id=f"{number}/{word}", instruction=word)
        for word in words
        for number, picture in enumerate(PICTURES)
    ]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["run_dir", "export_dir"])
def test_batches_equal_single_pictures(
    kind: str, num_beams: int, requests: list[PerceiveRequest], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    batched = describe(perceiver(model, batch_size=5, num_beams=num_beams), requests)
    single = describe(perceiver(model, batch_size=1, num_beams=num_beams), requests)
    assert said(batched) == said(single)
    assert len({answer.text for answer in batched}) > 5, "a mixed-up order would show"
    assert all(answer.status == "ok" and answer.latency_s > 0 for answer in batched)


def test_an_export_describes_as_its_run_does(
    run_dir: Path, export_dir: Path, requests: list[PerceiveRequest]
) -> None:
    assert said(describe(perceiver(run_dir), requests)) == said(describe(perceiver(export_dir), requests))


def test_texts_are_those_of_the_evaluation(run_dir: Path, requests: list[PerceiveRequest]) -> None:
    """The same pictures and prompts by generate_texts, which measures runs."""
    captioner, config = load_trained(run_dir)
    stage = config.stages["instruct"]
    encoder: Encoder = stage_encoder(stage, captioner.tokenizer, captioner.token_spec_of(stage.data))
    prompts = [
        encoder.encode_prompt(
            [Message("user", (ImagePart(0), TextPart(request.instruction)))], request.images
        )
        for request in requests
    ]
    with inference(captioner, stage.precision):
        store = FeatureStore(captioner, captioner.image_spec_of(stage.data))
        store.add(PICTURES)
        texts = generate_texts(
            captioner,
            [Request(prompt) for prompt in prompts],
            store,
            batch_size=8,
            max_new_tokens=NEW,
            stop=encoder.template.spec.stop,
        )
    answers = describe(perceiver(run_dir), requests)
    assert [answer.text for answer in answers] == [text.strip() for text in texts]
    assert [answer.tokens_in for answer in answers] == [len(prompt) for prompt in prompts]
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    assert all(answer.tokens_out == NEW for answer in answers if answer.cut_off)


def test_beams_change_the_text_and_one_beam_is_greedy(run_dir: Path, requests: list[PerceiveRequest]) -> None:
    greedy, one, four = (
        describe(perceiver(run_dir, **decoding), requests)
        for decoding in ({}, {"num_beams": 1}, {"num_beams": 4})
    )
    assert said(greedy) == said(one)
    assert said(greedy) != said(four)


@pytest.mark.parametrize("kind", ["run_dir", "export_dir"])
def test_a_bad_picture_within_a_batch_fails_alone(
    kind: str, requests: list[PerceiveRequest], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    good = describe(perceiver(model), requests)
    with_bad = list(requests)
    with_bad.insert(2, ask(Broken(), id="bad"))
    with_bad.insert(11, ask(PICTURES[0], Broken(), id="half bad"))
    answers = describe(perceiver(model), with_bad)
    assert answers[2].error == "broken.jpg: not a readable picture"
    assert answers[11].error == "picture 2 of 2: broken.jpg: not a readable picture"
    assert said([answer for answer in answers if answer.status == "ok"]) == said(good)


def test_a_chunk_of_bad_pictures_only_fails_them_all(run_dir: Path) -> None:
    pictures = [Broken(f"{number}.jpg") for number in range(6)]
    answers = describe(perceiver(run_dir, batch_size=1), [ask(picture) for picture in pictures])
    assert [answer.error for answer in answers] == [f"{p.name}: not a readable picture" for p in pictures]


def test_a_picture_is_drawn_and_encoded_once_and_few_are_held(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    encoded: list[int] = []
    ours = perceiver(run_dir, batch_size=1)
    real = FeatureStore.add

    def counted(store: FeatureStore, *arguments: Any) -> None:
        real(store, *arguments)
        held.append(len(store))

    monkeypatch.setattr(FeatureStore, "add", counted)
    pictures = [Picture("red", (20 + number, 40)) for number in range(12)]
    requests = [
        ask(picture, id=f"{word} {number}", instruction=f"{word}.")
        for word in ("Describe", "Count", "Name", "Find", "Tell")  # more than fit into a chunk
        for number, picture in enumerate(pictures)
    ]
    captioner = load_trained(run_dir)[0]
    encode = captioner.encode_images
    captioner.encode_images = lambda tiles: encoded.append(len(tiles)) or encode(tiles)  # type: ignore[method-assign,func-returns-value]
    monkeypatch.setattr(module, "load_trained", lambda *_: (captioner, None))
    LOADED.clear()
    describe(ours, requests)
    assert LOADED["red"] == sum(encoded) == len(pictures)
    assert max(held) <= module.BATCHES_AT_ONCE


def test_answers_come_before_all_pictures_are_read(run_dir: Path) -> None:
    ours = perceiver(run_dir, batch_size=1)
    LOADED.clear()
    answers = ours.describe([ask(Picture("blue", (20 + number, 30))) for number in range(40)])
    next(iter(answers))
    assert LOADED["blue"] <= module.BATCHES_AT_ONCE


def test_grad_mode_and_autocast_are_not_changed_for_others(run_dir: Path) -> None:
    for _ in perceiver(run_dir).describe([ask(picture) for picture in PICTURES]):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("kind", ["run_dir", "export_dir"])
def test_the_blank_control_sees_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    blank = perceiver(request.getfixturevalue(kind), picture="blank")
    LOADED.clear()
    answers = describe(blank, [ask(PICTURES[0]), ask(PICTURES[1]), ask(Broken())])
    assert not LOADED and not blank.needs_pictures
    assert len({answer.text for answer in answers}) == 1 and answers[2].status == "ok"


def test_an_instruction_that_cannot_be_written_fails_alone(run_dir: Path) -> None:
    requests = [ask(PICTURES[0], instruction="word " * 400), ask(PICTURES[0])]
    too_long, fine = describe(perceiver(run_dir), requests)
    assert too_long.error is not None and "max_tokens is 256" in too_long.error, "the LLM's own window"
    assert fine.status == "ok"
    longer = describe(perceiver(run_dir), [ask(PICTURES[0], instruction="word " * 30)])[0]
    assert longer.status == "ok", "longer than any sample of the training"


def test_the_identity_is_of_the_weights_and_loads_none(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "metrics.json").write_text("{}")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(module, "load_trained", never)
    first = perceiver(run_dir).identity
    assert perceiver(copy).identity == first
    assert perceiver(run_dir, picture="blank").identity != first
    config = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(config.replace("geometry: resize", "geometry: pad"), encoding="utf-8")
    assert perceiver(copy).identity != first, "pictures are drawn in another way"
    (copy / "config.yaml").write_text(config, encoding="utf-8")
    for stage in ("align", "instruct"):
        path = copy / stage / "final" / "weights.safetensors"
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert perceiver(copy).identity != first, stage
        path.write_bytes(before)
    assert perceiver(copy).identity == first


def test_the_identity_of_an_export_is_of_its_files(export_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(export_dir, copy)
    first = perceiver(export_dir).identity
    (copy / "README.md").write_text("other words")
    assert perceiver(copy).identity == first
    marker = json.loads((copy / "prismcap.json").read_text(encoding="utf-8"))
    (copy / "prismcap.json").write_text(json.dumps({**marker, "stop": ["x"]}), encoding="utf-8")
    assert perceiver(copy).identity != first


def test_folders_that_are_no_model(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"perceivers\.ours\.model: .*nothing: no such folder of a run"):
        perceiver(tmp_path / "nothing")
    half = tmp_path / "half"
    shutil.copytree(run_dir, half)
    shutil.rmtree(half / "instruct")
    with pytest.raises(ConfigError, match=r"stage has not finished.*prismcap train"):
        _ = perceiver(half).identity
    with pytest.raises(ConfigError, match="'instruct' has not finished"):
        next(iter(perceiver(half).describe([ask(PICTURES[0])])))


def test_sampling_is_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"perceivers\.ours: .*temperature is 0\.5: set it to 0"):
        perceiver(run_dir, temperature=0.5)


def test_each_process_has_its_own_gpu(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device("cpu") == torch.device("cpu")
    assert local_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device("cuda") == torch.device("cuda", 1)
    assert local_device("cuda:0") == torch.device("cuda", 0)
    assert local_device("cpu") == torch.device("cpu")
    devices: list[torch.device] = []

    def load(_: Path, device: torch.device) -> Any:
        devices.append(device)
        return load_trained(run_dir)

    monkeypatch.setattr(module, "load_trained", load)
    describe(perceiver(run_dir, device="cuda"), [ask(PICTURES[0])])
    assert devices == [torch.device("cuda", 1)]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"cuda:2 is not there, this machine shows 2 GPU\(s\)"):
        local_device("cuda")
    with pytest.raises(ConfigError, match="device 'gpu'"):
        local_device("gpu")


def test_an_empty_text_is_a_failure_with_its_counts(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "generate_stored", lambda *_, **__: [Generated("\n", (7,), "stop")])
    (answer,) = describe(perceiver(run_dir), [ask(PICTURES[0])])
    assert answer.status == "failed" and "before it wrote a word" in str(answer.error)
    assert answer.tokens_out == 1 and answer.tokens_in is not None
