"""What every perceiver keeps: a new file of evaluate/perceivers is tested by being there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from shown import PICTURES, Broken, ask

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import available, component_options
from prismcap.configs.schema.base import Component
from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.clients.openai_chat import ChatClient
from prismcap.evaluate.perceivers import captioner, hf
from prismcap.evaluate.perceivers._contract import Perceiver, PerceiverContext, PerceiveRequest

RED, GREEN, BLUE = PICTURES[:3]
REQUESTS = [
    ask(RED, id="one", reference="A red disc."),
    ask(Broken(), id="broken"),
    ask(BLUE, GREEN, id="two", reference="Two discs."),
    ask(RED, id="same", reference="A red disc."),
    ask(GREEN, id="other words", instruction="Count.", reference="A green disc."),
    ask(id="none"),
]
GOOD = (0, 2, 3, 4)
BAD = (1, 5)
Make = Callable[..., Perceiver]
Configs = dict[str, dict[str, Any]]


@pytest.fixture(params=available("perceiver"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Builds the perceiver as the pipeline does; keyword arguments are options in place of the case's."""
    assert name in CASES, f"a new perceiver: add {name!r} to CASES, so that its contract is tested"
    with ExitStack() as stack:
        case = CASES[name](request, tmp_path, stack)
        kept = stack.pop_all()
    request.addfinalizer(kept.close)

    def build(**options: Any) -> Perceiver:
        component = Component.model_validate({"name": name, **case, **options})
        module, found = component_options("perceiver", component, "perceivers.tested")
        context = PerceiverContext("tested", Decoding(max_new_tokens=5), "cpu", 2)
        perceiver: Perceiver = module.build(found, context)
        return perceiver

    return build


def _endpoint(request: pytest.FixtureRequest, _: Path, stack: ExitStack) -> dict[str, Any]:
    faulty = request.getfixturevalue("faulty")

    def script(asked: Any) -> Any:
        picture, text = asked.body["messages"][0]["content"]
        return faulty.chat(f"{hash(picture['image_url']['url'])}: {text['text']}")

    return {"url": stack.enter_context(faulty.faulty(script)).url, "model": "m", "max_retries": 0}


def _file(_: pytest.FixtureRequest, folder: Path, __: ExitStack) -> dict[str, Any]:
    rows = [{"fingerprint": image.fingerprint(), "text": image.colour} for image in (RED, GREEN, BLUE)]
    (folder / "d.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"path": str(folder / "d.jsonl")}


CASES: dict[str, Callable[[pytest.FixtureRequest, Path, ExitStack], dict[str, Any]]] = {
    "captioner": lambda request, *_: {"model": str(request.getfixturevalue("run_dir"))},
    "hf": lambda request, *_: {"model": str(request.getfixturevalue("vlm")("llava"))},
    "openai": _endpoint,
    "file": _file,
    "reference": lambda *_: {},
}


def described(perceiver: Perceiver, requests: list[PerceiveRequest]) -> list[Answer]:
    """In the order of the requests; each is answered exactly once."""
    answers = list(perceiver.describe(requests))
    assert sorted(position for position, _ in answers) == list(range(len(requests)))
    return [dict(answers)[position] for position in range(len(requests))]


def test_every_request_is_answered_with_a_text_or_a_reason(make: Make) -> None:
    answers = described(make(), REQUESTS)
    for answer in answers:
        if answer.status == "ok":
            assert answer.text and answer.text == answer.text.strip() and answer.error is None
        else:
            assert answer.error and not answer.text
    assert [answers[position].status for position in GOOD] == ["ok"] * len(GOOD)
    assert [answers[position].status for position in BAD] == ["failed"] * len(BAD)
    assert "broken" in str(answers[1].error) and "none" in str(answers[5].error)
    assert described(make(), []) == []


def test_the_text_depends_on_the_request_alone(make: Make) -> None:
    together = [answer.text for answer in described(make(), REQUESTS)]
    assert together[0] == together[3] and len(set(together)) >= 4
    perceiver = make()
    backwards = [answer.text for answer in described(perceiver, REQUESTS[::-1])]
    assert backwards[::-1] == together
    alone = [described(perceiver, [request])[0].text for request in REQUESTS]
    assert alone == together


def test_several_pictures_are_labelled_alike(make: Make, name: str) -> None:
    perceiver = make()
    both, blue, green = described(perceiver, [REQUESTS[2], ask(BLUE), ask(GREEN)])
    if name == "reference":
        assert both.text == REQUESTS[2].reference, "the benchmark's, as it is"
        return
    assert both.text == f"Image 1: {blue.text}\nImage 2: {green.text}"
    if blue.tokens_out is not None and green.tokens_out is not None:
        assert both.tokens_out == blue.tokens_out + green.tokens_out


def test_building_and_identity_are_cheap_and_stable(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded or asked")

    monkeypatch.setattr(captioner, "load_trained", never)
    monkeypatch.setattr(captioner, "load_exported", never)
    monkeypatch.setattr(hf, "load_exported", never)
    monkeypatch.setattr(ChatClient, "complete", never)
    perceiver = make()
    assert perceiver.identity and perceiver.identity == make().identity
    assert isinstance(perceiver.needs_pictures, bool)


def test_the_identity_names_the_kind(make: Make, name: str) -> None:
    kinds = {"captioner": "run"}  # or export
    assert make().identity.startswith(kinds.get(name, name))


def test_unknown_options_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"perceivers\.tested\.colour: unknown key"):
        make(colour="red")


def test_pictures_that_are_not_needed_are_not_read(make: Make) -> None:
    """Where an answer does not depend on pixels, a picture that cannot be read is no reason to fail."""
    perceiver = make()
    if not perceiver.needs_pictures:
        assert described(perceiver, [ask(Broken(), reference="There.")])[0].status == "ok"
    else:
        assert described(perceiver, [ask(Broken(), reference="There.")])[0].status == "failed"
