"""An endpoint as a perceiver: what is sent, what fails alone, what ends the run."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from shown import LOADED, PICTURES, Broken, Picture, ask

from prismcap.configs.errors import ConfigError, DataError
from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.perceivers import openai
from prismcap.evaluate.perceivers._contract import PerceiverContext
from prismcap.evaluate.perceivers._several import ViewPerceiver

CONTEXT = PerceiverContext("api", Decoding(max_new_tokens=32), "cpu", 4)


def perceiver(url: str, context: PerceiverContext = CONTEXT, **options: Any) -> ViewPerceiver:
    return openai.build(openai.Options(url=url, model="m", max_retries=0, **options), context)


def seen(asked: Any) -> tuple[Image.Image, str]:
    """The picture and the text of a request's only message."""
    (message,) = asked.body["messages"]
    picture, text = message["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert (message["role"], head) == ("user", "data:image/png;base64")
    return Image.open(io.BytesIO(base64.b64decode(data))), text["text"]


def test_each_picture_goes_out_unchanged_before_its_instruction(faulty: Any) -> None:
    def script(asked: Any) -> Any:
        image, text = seen(asked)
        return faulty.chat(f"{image.getpixel((image.width // 2 - 2, image.height // 4))} {text}")

    with faulty.faulty(script) as server:
        requests = [ask(picture, instruction=f"Say {picture.colour}.") for picture in PICTURES]
        answers = dict(perceiver(server.url).describe(requests))
        by_text = {text: image for image, text in map(seen, server.asked)}
        assert {asked.body["max_tokens"] for asked in server.asked} == {32}
        assert all("detail" not in str(asked.body) for asked in server.asked)
        dict(perceiver(server.url, detail="low").describe(requests[:1]))
        assert server.asked[-1].body["messages"][0]["content"][0]["image_url"]["detail"] == "low"
    for position, picture in enumerate(PICTURES):
        instruction = f"Say {picture.colour}."
        assert by_text[instruction].tobytes() == picture.load().tobytes()
        assert answers[position].text.endswith(instruction)
        assert (answers[position].tokens_in, answers[position].finish_reason) == (11, "stop")


def test_faults_of_one_request_fail_one_question(faulty: Any) -> None:
    def script(asked: Any) -> Any:
        text = seen(asked)[1]
        return faulty.refusal(400, "too rude") if text == "Curse." else faulty.chat("A disc.")

    requests = [
        ask(PICTURES[0]),
        ask(Broken()),
        ask(PICTURES[1], instruction="Curse."),
        ask(PICTURES[2], Broken()),
        ask(PICTURES[3]),
    ]
    with faulty.faulty(script) as server:
        answers = dict(perceiver(server.url, max_concurrent=2).describe(requests))
    assert [answers[position].status for position in range(5)] == ["ok", "failed", "failed", "failed", "ok"]
    assert answers[1].error == "broken.jpg: not a readable picture"
    assert answers[2].error is not None and "too rude" in answers[2].error
    assert answers[3].error == "picture 2 of 2: broken.jpg: not a readable picture"


def test_an_endpoint_that_is_down_ends_the_run() -> None:
    pytest.importorskip("openai", reason="the extra `eval` is not installed")
    nowhere = perceiver("http://127.0.0.1:9/v1")
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/v1: cannot be reached .*start the server"):
        list(nowhere.describe([ask(PICTURES[0])]))


def test_a_wrong_key_ends_the_run_and_is_never_named(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-very-secret")

    def script(asked: Any) -> Any:
        return faulty.refusal(401, f"{asked.headers['authorization']} is wrong")

    with faulty.faulty(script) as server:
        api = perceiver(server.url, api_key_env="TEST_KEY")
        with pytest.raises(DataError, match="the key in TEST_KEY is refused") as raised:
            list(api.describe([ask(PICTURES[0])]))
        assert server.asked[0].headers["authorization"] == "Bearer sk-very-secret"
    assert "very-secret" not in f"{raised.value} {api.identity} {api!r}"


def test_few_pictures_are_in_memory(faulty: Any) -> None:
    with faulty.faulty(lambda _: faulty.chat("A disc.")) as server:
        LOADED.clear()
        pictures = [Picture("green", (10 + number, 20)) for number in range(3 * openai.ROUNDS_AT_ONCE)]
        answers = perceiver(server.url, max_concurrent=1).describe([ask(picture) for picture in pictures])
        next(iter(answers))
        assert LOADED["green"] <= openai.ROUNDS_AT_ONCE
        assert len(list(answers)) == len(pictures) - 1
        assert LOADED["green"] == len(pictures)


def test_beams_are_refused_with_the_remedy() -> None:
    pytest.importorskip("openai", reason="the extra `eval` is not installed")
    context = PerceiverContext("api", Decoding(num_beams=5), "cpu", 4)
    with pytest.raises(ConfigError, match="no beam search: set it to 1"):
        list(perceiver("http://127.0.0.1:9/v1", context).describe([ask(PICTURES[0])]))


def test_the_identity_is_of_address_model_and_detail() -> None:
    first = perceiver("http://127.0.0.1:9/v1").identity
    assert first == perceiver("http://127.0.0.1:9/v1", max_concurrent=3).identity
    assert first != perceiver("http://127.0.0.1:9/v1", detail="high").identity
    assert first != perceiver("http://127.0.0.1:8/v1").identity
    with pytest.raises(ConfigError, match="no user, password"):
        perceiver("http://me:secret@127.0.0.1:9/v1")
