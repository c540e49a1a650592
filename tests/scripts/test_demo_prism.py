"""scripts/demo_prism.sh with stand-ins for its programs: when it starts and ends its server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_demo import COPIED, ROOT, stamp

TOOLS = ("bash", "cat", "cksum", "dirname", "env", "grep", "sleep", "tail", "touch")
# answers once a server has said that it is up; whatever else it is asked is fine
PYTHON = """#!/usr/bin/env bash
[[ "${2:-}" != *urllib* ]] || [ -e "$FAKE_OUT/up" ]
"""
SERVER = """#!/usr/bin/env bash
printf '%s\\n' "$PWD $*" >>"$FAKE_OUT/server.txt"
[ -z "${FAKE_BROKEN:-}" ] || { echo "no such model"; exit 3; }
trap 'rm "$FAKE_OUT/up"; exit 0' TERM
touch "$FAKE_OUT/up"
while true; do sleep 0.1; done
"""
PRISMCAP = """#!/usr/bin/env bash
up=no
[ ! -e "$FAKE_OUT/up" ] || up=yes
printf '%s, server up: %s\\n' "$*" "$up" >>"$FAKE_OUT/prismcap.txt"
exit "${FAKE_CODE:-0}"
"""

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Runs the script of a copy whose demo is trained, with FAKE_… settings as keyword arguments."""
    clone, tools = tmp_path / "clone", tmp_path / "bin"
    for name in (*COPIED, "scripts/demo_prism.sh"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    programs = clone / ".venv" / "bin"
    for folder in (tools, programs, tmp_path / "cache" / "models", clone / "checkpoints/demo/instruct/final"):
        folder.mkdir(parents=True)
    (clone / "checkpoints/demo/instruct/final/manifest.json").write_text("{}")
    for name, text in {"python": PYTHON, "transformers": SERVER, "prismcap": PRISMCAP}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in (*TOOLS, "rm"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").symlink_to(Path(sys.executable).resolve())
    (clone / ".venv" / ".prismcap-installed").write_text(stamp(clone, "demo"))

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(clone / "scripts" / "demo_prism.sh"), *arguments],
            env={
                "PATH": str(tools),
                "HOME": str(tmp_path),
                "PYTHON": sys.executable,
                "PRISMCAP_CACHE": str(tmp_path / "cache"),
                "FAKE_OUT": str(tmp_path),
                **settings,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def gone(path: Path) -> bool:
    """Whether the server's sign goes within some seconds."""
    end = time.monotonic() + 20
    while path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not path.exists()


@pytest.mark.parametrize("code", [0, 2])
def test_the_server_is_there_for_the_run_and_ends_with_it(script: Script, tmp_path: Path, code: int) -> None:
    done = script("name=other", FAKE_CODE=str(code))
    assert done.returncode == code, done.stderr
    said = (tmp_path / "prismcap.txt").read_text()
    assert said == "prism run demo/prism name=other, server up: yes\n"
    (started,) = (tmp_path / "server.txt").read_text().splitlines()
    models = tmp_path / "cache" / "models"
    assert started == f"{models} serve smollm2-135m-instruct --host 127.0.0.1 --port 8765"
    assert gone(tmp_path / "up")


def test_a_server_that_ends_is_told_with_its_last_words(script: Script, tmp_path: Path) -> None:
    done = script(FAKE_BROKEN="yes")
    assert done.returncode == 1 and "the server ended" in done.stderr and "no such model" in done.stderr
    assert not (tmp_path / "prismcap.txt").exists()


def test_what_stands_in_its_way_is_named(script: Script, tmp_path: Path) -> None:
    (tmp_path / "up").touch()
    done = script()
    assert done.returncode == 2 and "listens on 127.0.0.1:8765 already" in done.stderr
    os.unlink(tmp_path / "clone/checkpoints/demo/instruct/final/manifest.json")
    done = script()
    assert done.returncode == 2 and "run scripts/demo.sh first" in done.stderr
    assert not (tmp_path / "server.txt").exists()
