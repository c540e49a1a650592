"""`prismcap serve` around its server: arguments, waiting, signals, exit codes, and what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import Served, fake_vllm, free_port, serving

from prismcap.configs.errors import ConfigError
from prismcap.model.hf.files import MARKER
from prismcap.scripts.commands.serve import check_apart, check_free, read_export
from prismcap.scripts.serving.backends import (
    ServerCommand,
    check_options,
    lay_out,
    served_name,
    vllm_command,
)
from prismcap.scripts.serving.client import Address, ServerError, answer_pieces, chat_body, growing_text
from prismcap.scripts.serving.page import answers_of
from prismcap.scripts.serving.process import run_server

PROMPT = "What's in it?"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As much of an export as the command itself reads."""
    return write_model(tmp_path / "model")


def write_model(folder: Path, **marker: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    values = {"name": "my run", "format": "llava", "prompt": PROMPT, "stop": ["END."]} | marker
    (folder / MARKER).write_text(json.dumps(values))
    return folder


def ended(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, to an end that it comes to by itself."""
    command = [sys.executable, "-m", "prismcap.scripts.cli", "serve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGINT, 130)])
def test_starts_waits_and_ends_with_its_server(
    model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    options = ["--backend", "vllm", "--", "--max-model-len", "512"]
    with serving(model, tmp_path / "log", *options, **fake_vllm(tmp_path)) as served:
        started = json.loads((tmp_path / "vllm.json").read_text())
        listen = ["--host", "127.0.0.1", "--port", str(served.address.port)]
        name = ["--served-model-name", "my-run"]
        expected = ["serve", str(model), *listen, *name, "--max-model-len", "512"]
        assert started["arguments"] == expected
        assert f"Serving 'my-run' at {served.address.url}/v1" in served.said
        assert started["no_usage_stats"] == "1"
        log = (tmp_path / "log").read_text()
        assert "Starting " in log and "max-model-len" not in log, "an option may hold a secret"
        assert served.end(number) == code, "the server's own exit code"
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", served.address.port), timeout=5):
            pass
    assert not Path(started["folder"]).exists(), "what was written beside the server is gone"


def test_the_line_for_a_shell_is_one_request(model: Path, tmp_path: Path) -> None:
    photo = tmp_path / "PICTURE.jpg"
    Image.effect_noise((700, 700), 90).save(photo, quality=95)
    assert photo.stat().st_size > 131_072, "longer than an argument may be"
    with serving(model, tmp_path / "log", "--backend", "vllm", **fake_vllm(tmp_path)) as served:
        line = served.said.strip().splitlines()[-1].replace("curl ", "curl --noproxy '*' --max-time 1 ")
        subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    (request,) = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    picture, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": PROMPT} and request["max_tokens"] == 128
    head, _, data = picture["image_url"]["url"].partition(",")
    sent = subprocess.run(["base64", "-d"], input=data.encode(), capture_output=True, check=True).stdout
    assert head == "data:image/jpeg;base64" and sent == photo.read_bytes()


@pytest.fixture
def talking(model: Path, tmp_path: Path) -> Any:
    pieces = json.dumps([" A", " cat", " \u00fc.", " E", "ND", ". never"])
    options = ["--backend", "vllm"]
    with serving(model, tmp_path / "log", *options, **fake_vllm(tmp_path, pieces)) as served:
        yield served


def test_an_answer_grows_up_to_the_stop_string_and_no_further(
    talking: Served, model: Path, tmp_path: Path
) -> None:
    answer = answers_of(read_export(str(model)), talking.address)
    # the stand-in writes for ever
    texts = list(islice(answer(Image.new("RGB", (3, 2), "red"), "Say it."), 50))
    assert texts[:3] == ["A", "A cat", "A cat \u00fc."] and texts[-1] == "A cat \u00fc."
    assert texts == [text for text in texts if "never" not in text]
    # it notices that nobody reads
    for _ in range(100):
        if (tmp_path / "gone").exists():
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert (tmp_path / "gone").exists(), "the server was left writing"
    (request,) = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert request["stream"] is True and request["model"] == "my-run"
    for name, words in (("other", "404: no such model"), ("broken", 'out of "memory"')):
        with pytest.raises(ServerError, match=words):
            list(answer_pieces(talking.address, chat_body(name, "data:", "x", 1)))


def test_text_without_a_stop_string_is_whole() -> None:
    assert list(growing_text([" a", "b ", "c"], ["", "\n\n"])) == ["a", "ab", "ab c"]
    assert list(growing_text(["x STOP y", "z"], ["STOP"])) == ["x"]


@pytest.mark.parametrize(("code", "ours"), [("3", 3), ("0", 1)])
def test_a_server_that_does_not_start_is_told(model: Path, tmp_path: Path, code: str, ours: int) -> None:
    environment = fake_vllm(tmp_path, FAKE_EXIT=code)
    done = ended(str(model), "--backend", "vllm", "--port", str(free_port()), **environment)
    assert done.returncode == ours and f"ended with exit code {code} before it answered" in done.stderr
    assert done.stdout == ""


def test_what_a_server_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    script = "sleep 600 & echo $! > child; exit 4"
    command = ServerCommand(arguments=["sh", "-c", script], options=(), folder=tmp_path)
    assert run_server(command, lambda: False, lambda: None) == (4, False)
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    # where nobody waits for orphans, they stay as zombies
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    "option",
    [
        "--api-key",
        "--api_key=secret",
        "--served-model-name",
        "--serv",
        "--port=1",
    ],
)
def test_options_that_hide_the_server_are_refused(option: str) -> None:
    check_options(["--max-model-len", "512", "--api-server-count", "2"])
    with pytest.raises(ConfigError, match="after `--`") as refused:
        check_options([option, "x"])
    assert "secret" not in str(refused.value)


def test_whoever_listens_to_all_is_warned(model: Path, tmp_path: Path) -> None:
    options = ["--backend", "vllm", "--host", "0.0.0.0"]
    log = tmp_path / "log"
    with serving(model, log, *options, **fake_vllm(tmp_path)) as served:
        assert "there is no password" in log.read_text()
        assert served.address.url in served.said, "an address that can be typed"


def test_mistakes_are_named(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: x\n")
    for argument, words in (
        (str(run), f"a run without an export: run `prismcap export {run}` first"),
        (str(tmp_path / "nothing"), "no such directory"),
        ("org/name", "a model of the hub is served by `transformers serve org/name` itself"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_export(argument)
    apart = write_model(tmp_path / "apart", weights="adapter")
    with pytest.raises(ConfigError, match="export again without --adapter"):
        read_export(str(apart))
    (model / MARKER).unlink()
    with pytest.raises(ConfigError, match="not an export of prismcap"):
        read_export(str(model))
    with socket.socket() as taken, pytest.raises(ConfigError, match=r"--port .*name another"):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        check_free(Address("127.0.0.1", taken.getsockname()[1]), "--port")
    with pytest.raises(ConfigError, match="--ui-port 8000: the server is there"):
        check_apart(8000, 8000)


def test_vllm_where_there_is_none_or_none_that_fits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address("127.0.0.1", 8000)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="no command `vllm` here"):
        vllm_command(read_export(str(model)), address, (), tmp_path)
    for layout, words in (("custom", "a custom model"), ("blip2", "a BLIP-2"), ("llava", "one linear layer")):
        folder = write_model(tmp_path / layout, format=layout)
        (folder / "config.json").write_text('{"projector_hidden_act": "linear"}')
        with pytest.raises(ConfigError, match=rf"{words}.*--backend transformers"):
            vllm_command(read_export(str(folder)), address, (), tmp_path)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with pytest.raises(ConfigError, match="VLLM_API_KEY is set"):
        vllm_command(read_export(str(model)), address, (), tmp_path)


def test_a_layout_holds_links_and_no_code(model: Path, tmp_path: Path) -> None:
    (model / "modeling.py").write_text("raise SystemExit('this code must not run')")
    lay_out(model, tmp_path / "hub", "x")
    files = {path.name: path for path in (tmp_path / "hub").rglob("*") if path.is_file()}
    assert files.keys() == {"config.json", MARKER, "main"}
    assert files["config.json"].is_symlink() and files["config.json"].samefile(model / "config.json")


@pytest.mark.parametrize(
    ("name", "served"),
    [("my_run-1.5", "my_run-1.5"), ("a--b..c", "a-b.c"), ("-x y/z.", "x-y-z"), ("..", "captioner")],
)
def test_names_are_what_a_hub_allows(name: str, served: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    assert served_name(name) == served
    validate_repo_id(served)


def test_shell_quoting_survives_any_prompt(model: Path) -> None:
    from prismcap.scripts.commands.serve import curl_line

    line = curl_line(read_export(str(model)), Address("::1", 8000))
    words = shlex.split(line)
    assert words[:2] == ["printf", "%s"] and "http://[::1]:8000/v1/chat/completions" in words
