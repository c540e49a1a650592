"""The command line with wrong arguments: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prismcap.scripts.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["config", "show", "demo/scene"], "Did you mean 'demo/scenes'"),
        (["config", "show", "demo/scenes", "seed"], "key.sub=value"),
        (["config", "show", "demo/scenes", "modle.llm.name=x"], "unknown key"),
        (["train", "demo/scenes", "--resum", "auto"], "--resume"),
        (["export", "no/such/run"], "no/such/run"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["report", "no/such/run"], "no/such/run"),
        (["caption", "no/such/model", "x.png"], "no/such/model"),
        (["serve", "no/such/model"], "no/such/model"),
        (["data", "inspect", "no/such/config"], "no/such/config"),
        (["fetch", "nothing"], "nothing"),
        (["convert", "internlm2", "no/such/model", "x"], "no/such/model/config.json"),
        (["import", "lava", "no/such/file", "x"], "Did you mean 'llava'"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_show_prints_what_validate_accepts() -> None:
    shown = run("config", "show", "demo/scenes", "seed=5")
    assert shown.returncode == 0, shown.stderr
    assert "seed: 5" in shown.stdout


def test_every_preset_validates() -> None:
    done = run("config", "validate")
    assert done.returncode == 0, done.stderr
    assert "demo/scenes: valid" in done.stdout
