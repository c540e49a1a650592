"""`prismcap serve` with `transformers serve` and real exports, tiny ones, read by OpenAI's own client."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from served import Served, serving
from tiny_run import PROMPT, export_run, make_run

from prismcap.evaluate.clients.data_url import data_url
from prismcap.model.hf.load import load_exported
from prismcap.scripts.commands.caption import caption_batch
from prismcap.scripts.serving.client import answer_pieces, chat_body

MISSING = "the extra `serve` is not installed"
pytest.importorskip("fastapi", reason=MISSING)
pytest.importorskip("uvicorn", reason=MISSING)
openai = pytest.importorskip("openai", reason=MISSING)

CONNECTORS = {"llava": {"name": "mlp"}, "custom": {"name": "patch_concat", "k": 2, "depth": 1}}
MAX_TOKENS = 16


def pictures() -> list[Image.Image]:
    """Of the model's own size, so that no two ways of resizing can differ."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8) for _ in range(2)]
    plain = [Image.new("RGB", (32, 32), colour) for colour in ("black", "white", "red")]
    return [*plain, *(Image.fromarray(values.numpy()) for values in noise)]


@pytest.fixture(scope="module", params=["llava", pytest.param("custom", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of each format, with code in it that must not run."""
    folder = tmp_path_factory.mktemp("runs")
    export = export_run(make_run(folder / request.param, CONNECTORS[request.param]))
    for path in export.glob("*.py"):
        path.write_text("raise SystemExit('this code must not run')")
    return export


@pytest.fixture(scope="module")
def expected(model: Path) -> list[str]:
    """What `prismcap caption` says of the pictures."""
    exported = load_exported(model)
    texts = [caption_batch(exported, [picture], PROMPT, MAX_TOKENS)[0] for picture in pictures()]
    assert len(set(texts)) > 1, "the pictures must matter"
    return texts


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # in a folder with one of the model's name, which is not the model
    folder = model.parent.parent
    with serving(model, tmp_path_factory.mktemp("log") / "log", folder=folder) as running:
        yield running


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_PROXY", "*")
    return openai.OpenAI(base_url=f"{served.address.url}/v1", api_key="none", max_retries=0)


def test_one_model_is_offered_and_no_other_answers(client: Any, model: Path) -> None:
    assert [entry.id for entry in client.models.list().data] == [model.parent.name]
    for other in ("gpt2", str(model), f"{model.parent.name}x"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**chat_body(other, data_url(pictures()[0]), PROMPT, 1))
        assert "pinned to" in refused.value.response.text


def test_answers_are_the_captions(client: Any, served: Served, model: Path, expected: list[str]) -> None:
    name = model.parent.name
    for picture, text in zip(pictures(), expected, strict=True):
        body = chat_body(name, data_url(picture), PROMPT, MAX_TOKENS)
        answer = client.chat.completions.create(**body)
        assert (answer.choices[0].message.content or "").strip() == text
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)
    ]
    assert "".join(pieces).strip() == text and len([piece for piece in pieces if piece]) > 1
    assert "".join(answer_pieces(served.address, body)).strip() == text


def test_sigterm_ends_the_server(served: Served, client: Any) -> None:
    assert served.end(signal.SIGTERM) == 128 + signal.SIGTERM
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
