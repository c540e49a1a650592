"""What every file of evaluate/reasoners/ keeps: a new one is tested as soon as it has a case here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reasoner_context import context

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import available, component_options
from prismcap.configs.schema.base import Component
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.reasoners._contract import Reasoner, ReasonRequest
from prismcap.evaluate.reasoners.openai import Options as EndpointOptions

QUESTION = Question(
    id="q", kind="choice", text="What is there?", answer="B", images=(), options=("a cat", "a dog")
)
REQUESTS = [
    ReasonRequest("What is there? A. a cat B. a dog", QUESTION, "A dog on the left."),
    ReasonRequest("What is there?", QUESTION, None),
    ReasonRequest("Write an instruction."),
] * 3
RULES = ("keyword", "random")


@pytest.fixture(params=available("reasoner"))
def case(request: pytest.FixtureRequest, tiny_llm: Path, endpoint: str) -> tuple[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {
        "hf": {"path": str(tiny_llm)},
        "openai": {"url": endpoint, "model": "m"},
        **{name: {} for name in RULES},
    }
    name: str = request.param
    assert name in cases, f"give the reasoner {name} a case in this file"
    return name, cases[name]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "clients"))
    from faulty_server import Asked, Reply, chat, faulty

    def script(asked: Asked) -> Reply:
        return chat(f"to {asked.prompt}")

    with faulty(script) as server:
        yield server.url


def build(name: str, options: dict[str, Any]) -> Reasoner:
    module, checked = component_options("reasoner", Component(name=name, **options))
    reasoner: Reasoner = module.build(checked, context())
    return reasoner


def test_every_request_is_answered_once_and_the_same_every_time(case: tuple[str, dict[str, Any]]) -> None:
    answers = list(build(*case).answer(REQUESTS))
    assert sorted(position for position, _ in answers) == list(range(len(REQUESTS)))
    by_position = dict(answers)
    for position, answer in answers:
        assert (answer.status == "ok") == bool(answer.text.strip()) == (answer.error is None)
        assert answer.text == by_position[position % 3].text, "equal requests, equal texts"
        assert answer.latency_s >= 0 and answer.retries == 0
    again = dict(build(*case).answer(REQUESTS))
    assert [again[i].text for i in range(9)] == [by_position[i].text for i in range(9)]
    assert list(build(*case).answer([])) == []


def test_the_identity_is_one_line_and_stays(case: tuple[str, dict[str, Any]]) -> None:
    identity = build(*case).identity
    assert identity == build(*case).identity and "\n" not in identity
    json.dumps(identity)
    others = {name: build(name, {}).identity for name in RULES}
    assert all(identity != other for name, other in others.items() if name != case[0])


def test_unknown_options_are_refused(case: tuple[str, dict[str, Any]]) -> None:
    name, options = case
    with pytest.raises(ConfigError, match="no_such_option"):
        build(name, {**options, "no_such_option": 1})


def test_a_key_in_the_config_is_refused_by_the_reasoners_name_and_not_shown() -> None:
    module, _ = component_options("reasoner", Component(name="random"))
    assert module.Options()
    with pytest.raises(ConfigError, match=r"reasoners\.x\.api_key_env") as raised:
        build("openai", EndpointOptions(url="http://x/v1", model="m", api_key_env="sk-1").model_dump())
    assert "sk-1" not in str(raised.value)
