"""Without an optional package: an error that names the extra which installs it."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.errors import MissingExtraError
from prismcap.configs.registry import component_module
from prismcap.data.fetch.openmoji import emoji_names, read_emoji
from prismcap.evaluate.report.page import write_report
from prismcap.evaluate.statistics.paired import mcnemar
from prismcap.scripts.cli import main
from prismcap.scripts.serving.backends import check_transformers_server
from prismcap.scripts.serving.page import check_page

ROOT = Path(__file__).parents[2]
# none of these is read before the package is found missing
UNREAD: Any = None


def write_run(folder: Path) -> Path:
    """As much of a run as a report takes."""
    (folder / "config.yaml").write_text("name: bare\nstages: {align: {}}\n")
    (folder / "log.jsonl").write_text(json.dumps({"stage": "align", "step": 1, "loss": 2.0}) + "\n")
    return folder


def engine(_: Path) -> None:
    module = component_module("engine", "deepspeed")
    module.build(module.Options(), UNREAD, UNREAD, 1, UNREAD)


def sink(name: str) -> Callable[[Path], object]:
    return lambda folder: component_module("sink", name).build(UNREAD, folder)


def drawings(folder: Path) -> None:
    next(read_emoji(folder / "wheel", {}))


# module, package, extra, what needs it
CASES: list[tuple[str, str, str, Callable[[Path], object]]] = [
    ("deepspeed", "deepspeed", "deepspeed", engine),
    ("wandb", "wandb", "wandb", sink("wandb")),
    ("tensorboard", "tensorboard", "tensorboard", sink("tensorboard")),
    ("scipy", "scipy", "eval", lambda _: mcnemar([True], [False])),
    ("matplotlib", "matplotlib", "eval", lambda folder: write_report(write_run(folder))),
    ("emoji", "emoji", "demo", lambda _: emoji_names()),
    ("resvg_py", "resvg-py", "demo", drawings),
    *[
        (name, name, "serve", lambda _: check_transformers_server())
        for name in ("fastapi", "openai", "uvicorn")
    ],
    ("gradio", "gradio", "ui", lambda _: check_page()),
]


def hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the import of a module fail, whether it is installed or not."""
    # torch's own half of TensorBoard stays in sys.modules once something has imported it
    within = (f"{module}.", f"torch.utils.{module}")
    loaded = [name for name in sys.modules if name.startswith(within)]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    for name in {module, *(name for name in loaded if name.startswith(f"{module}."))}:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(("module", "package", "extra", "use"), CASES, ids=[case[0] for case in CASES])
def test_the_error_names_package_and_extra(
    module: str,
    package: str,
    extra: str,
    use: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(module, monkeypatch)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install .*\[{extra}\]"):
        use(tmp_path)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert package in [re.split(r"[<>=!~]", needed)[0] for needed in extras[extra]], "it does install it"


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("matplotlib", ["report", "RUN"], "'matplotlib'.*pip install .*\\[eval\\]"),
        ("emoji", ["fetch", "openmoji"], "'emoji'.*pip install .*\\[demo\\]"),
    ],
)
def test_a_command_says_what_to_install_and_ends_with_2(
    module: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hide(module, monkeypatch)
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
    run_dir = str(write_run(tmp_path))
    arguments = [run_dir if argument == "RUN" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["prismcap", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert re.match(f"Error: .*{words}", said.err) and "Traceback" not in said.err
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "cache").exists()
