"""The endpoint's reasoner with a real server of a real model, `transformers serve`, on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from reasoner_context import context

from prismcap.configs.cache import cache_dir
from prismcap.evaluate.reasoners import hf, openai
from prismcap.evaluate.reasoners._contract import ReasonRequest
from prismcap.scripts.commands.serve import offers
from prismcap.scripts.serving.backends import ServedExport, transformers_command
from prismcap.scripts.serving.client import Address

MISSING = "the extra `serve` is not installed"
pytest.importorskip("fastapi", reason=MISSING)
pytest.importorskip("uvicorn", reason=MISSING)
pytest.importorskip("openai", reason=MISSING)

NAME = "smollm2"
REQUESTS = [
    ReasonRequest(
        f"Description: A tiger and {i} cakes.\nQuestion: What is there?\nOptions:\nA. cakes\nB. hats"
    )
    for i in range(4)
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    folder = cache_dir() / "models/smollm2-135m-instruct"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("SmolLM2 is not fetched: prismcap fetch")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
        from served import free_port

    address = Address("127.0.0.1", free_port())
    export = ServedExport(folder=folder, name=NAME, format="causal_lm", prompt="", stop=())
    command = transformers_command(export, address, [], tmp_path_factory.mktemp("serve"))
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command.arguments,
            cwd=command.folder,
            stdout=out,
            stderr=out,
            env={**os.environ, **command.environment},
        )
        try:
            end = time.monotonic() + 180
            while not offers(address, NAME):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.mark.slow
def test_the_server_says_what_the_model_says_here(served: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    options = openai.Options(url=f"{served.url}/v1", model=NAME, max_concurrent=2)
    remote = dict(openai.build(options, context(max_new_tokens=8)).answer(REQUESTS))
    path = str(cache_dir() / "models/smollm2-135m-instruct")
    local = dict(hf.build(hf.Options(path=path), context(max_new_tokens=8)).answer(REQUESTS))
    assert len(remote) == len(REQUESTS)
    for position, here in local.items():
        there = remote[position]
        assert (there.status, there.text) == (here.status, here.text)
        assert (there.finish_reason, there.tokens_in) == (here.finish_reason, here.tokens_in)
        assert there.retries == 0 and there.latency_s > 0
