"""scripts/demo.sh with stand-ins for `prismcap`, pip and apt: what it runs, in which order, what again."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prismcap.configs.load import load_config

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fake_demo"
COPIED = ("pyproject.toml", "setup.py", "constraints.txt", "scripts/demo.sh", "scripts/environment.sh")
# all that the scripts call; the machine's own apt-get and prismcap are out of reach
TOOLS = ("bash", "cat", "cksum", "dirname", "env", "grep", "touch")
OPENMOJI = ("stages.*.data.mix.*.objects=openmoji", "evaluation.splits.*.source.objects=openmoji")

Demo = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what the script needs of the repository, with an environment of stand-ins."""
    root = tmp_path / "clone"
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    tools, environment = tmp_path / "bin", root / ".venv" / "bin"
    for folder, names in ((tools, ("id", "apt-get")), (environment, ("prismcap", "python"))):
        folder.mkdir(parents=True)
        for name in names:
            shutil.copy(FAKES / name, folder / name)
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    (tools / "python3").symlink_to(Path(sys.executable).resolve())
    (root / ".venv" / ".prismcap-installed").write_text(stamp(root, "demo"))
    return root


def stamp(root: Path, extras: str) -> str:
    """The line that make_environment leaves behind."""
    files = b"".join((root / name).read_bytes() for name in ("pyproject.toml", "setup.py", "constraints.txt"))
    cksum = subprocess.run(["cksum"], input=files, capture_output=True, check=True).stdout.decode().strip()
    return f"{extras} {sys.version_info[:3]} {cksum}\n"


@pytest.fixture
def demo(clone: Path) -> Demo:
    """Runs the script of the copy, with FAKE_… settings as keyword arguments."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(clone / "scripts" / "demo.sh"), *arguments],
            cwd=clone.parent,
            env=environment(clone) | settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def environment(clone: Path) -> dict[str, str]:
    return {
        "PATH": str(clone.parent / "bin"),
        "HOME": str(clone.parent),
        "PYTHON": sys.executable,
        "FAKE_OUT": str(clone.parent),
        "FAKE_TIMES": "1",
    }


def taken(clone: Path) -> list[list[str]]:
    """The arguments of each `prismcap` since the last look."""
    log = clone.parent / "commands.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def names(commands: list[list[str]]) -> list[str]:
    return [command for command, *_ in commands]


def test_the_whole_path_in_order_and_the_report_named_at_its_end(demo: Demo, clone: Path) -> None:
    done = demo()
    assert (done.returncode, done.stderr) == (0, "")
    assert taken(clone) == [
        ["fetch", "smollm2", "efficientnet"],
        ["fetch", "stamps"],
        ["train", "demo/scenes", "--resume", "auto"],
        ["export", "checkpoints/demo"],
        ["evaluate", "checkpoints/demo", "--missing"],
        ["caption", "checkpoints/demo/model", "checkpoints/demo/pictures", "--limit", "6"],
        ["report", "checkpoints/demo"],
    ]
    report = clone / "checkpoints" / "demo" / "report.html"
    assert report.is_file() and done.stdout.splitlines()[-1].endswith(str(report))
    assert not (clone.parent / "python.txt").exists(), "the environment is there: nothing is installed"


def test_run_again_it_repeats_neither_export_nor_evaluation(demo: Demo, clone: Path) -> None:
    assert demo().returncode == 0
    first = taken(clone)
    assert demo().returncode == 0
    again = taken(clone)
    assert names(again) == ["fetch", "fetch", "train", "caption", "report"]
    assert all(command in first for command in again)


@pytest.mark.parametrize(
    ("failing", "ran", "then"),
    [
        ("fetch smollm2", ["fetch"], ["export", "evaluate", "caption", "report"]),
        ("train", ["fetch", "fetch", "train"], ["export", "evaluate", "caption", "report"]),
        ("export", ["fetch", "fetch", "train", "export"], ["export", "evaluate", "caption", "report"]),
        (
            "evaluate",
            ["fetch", "fetch", "train", "export", "evaluate"],
            ["evaluate", "caption", "report"],
        ),
        (
            "caption",
            ["fetch", "fetch", "train", "export", "evaluate", "caption"],
            ["caption", "report"],
        ),
        (
            "report",
            ["fetch", "fetch", "train", "export", "evaluate", "caption", "report"],
            ["caption", "report"],
        ),
    ],
)
def test_stopped_anywhere_it_goes_on_from_there(
    demo: Demo, clone: Path, failing: str, ran: list[str], then: list[str]
) -> None:
    stopped = demo(FAKE_FAIL=failing)
    assert stopped.returncode != 0 and "Done." not in stopped.stdout
    assert names(taken(clone)) == ran, "nothing runs after what failed"
    done = demo()
    assert done.returncode == 0, done.stderr
    assert names(taken(clone)) == ["fetch", "fetch", "train", *then]
    assert (clone / "checkpoints" / "demo" / "report.html").is_file()


def test_newer_weights_are_exported_and_measured(demo: Demo, clone: Path) -> None:
    assert demo().returncode == 0
    taken(clone)
    run = clone / "checkpoints" / "demo"
    now = time.time()
    for name, age_s in {
        "model/config.json": 60,
        "metrics.json": 60,
        "instruct/final/manifest.json": 30,
    }.items():
        os.utime(run / name, (now - age_s, now - age_s))
    assert demo().returncode == 0
    assert names(taken(clone)) == ["fetch", "fetch", "train", "export", "evaluate", "caption", "report"]


def test_figures_that_are_not_complete_are_completed(demo: Demo, clone: Path) -> None:
    """As after `prismcap evaluate --limit`, a look."""
    assert demo().returncode == 0
    taken(clone)
    (clone / "checkpoints" / "demo" / "metrics.json").write_text(
        '{\n  "about": {\n    "complete": false\n  }\n}'
    )
    assert demo().returncode == 0
    assert names(taken(clone)) == ["fetch", "fetch", "train", "evaluate", "caption", "report"]


@pytest.mark.parametrize(
    ("settings", "has_apt", "asked_twice"),
    [
        ({"FAKE_UID": "1000"}, True, False),
        ({"FAKE_UID": "0"}, False, False),
        ({"FAKE_UID": "0", "FAKE_APT": "100"}, True, False),
        ({"FAKE_UID": "0"}, True, True),
    ],
    ids=["not root", "no apt-get", "update fails", "still no stamps"],
)
def test_without_the_stamps_the_other_objects_are_offered(
    demo: Demo, clone: Path, settings: dict[str, str], has_apt: bool, asked_twice: bool
) -> None:
    if not has_apt:
        (clone.parent / "bin" / "apt-get").unlink()
    done = demo(FAKE_FAIL="fetch stamps", FAKE_TIMES="9", **settings)
    assert done.returncode == 1
    assert "scripts/demo.sh --objects openmoji" in done.stderr
    stamps = [["fetch", "stamps"]] * (2 if asked_twice else 1)
    assert taken(clone) == [["fetch", "smollm2", "efficientnet"], *stamps], "nothing is trained"
    assert (clone.parent / "apt.txt").exists() is (settings["FAKE_UID"] == "0" and has_apt)


def test_root_fetches_the_package_lists_and_goes_on(demo: Demo, clone: Path) -> None:
    done = demo(FAKE_FAIL="fetch stamps", FAKE_UID="0")
    assert done.returncode == 0, done.stderr
    assert (clone.parent / "apt.txt").read_text() == "update -qq\n"
    assert taken(clone)[1:4] == [["fetch", "stamps"]] * 2 + [["train", "demo/scenes", "--resume", "auto"]]


@pytest.mark.parametrize(
    ("arguments", "preset", "name"),
    [
        (["--quick"], "demo/quick", "demo-quick"),
        (["--objects", "openmoji"], "demo/scenes", "demo-openmoji"),
        (["--quick", "--objects", "openmoji"], "demo/quick", "demo-quick-openmoji"),
        (["--objects", "openmoji", "--quick"], "demo/quick", "demo-quick-openmoji"),
        (["--objects", "tuxpaint"], "demo/scenes", "demo"),
    ],
)
def test_what_is_chosen_reaches_fetching_and_training(
    demo: Demo, clone: Path, arguments: list[str], preset: str, name: str
) -> None:
    """And the config that comes of it is valid, has the run's name, and draws its objects everywhere."""
    done = demo(*arguments)
    assert done.returncode == 0, done.stderr
    commands = taken(clone)
    objects = "openmoji" if "openmoji" in arguments else "tuxpaint"
    fetched = [what for command, *rest in commands for what in rest if command == "fetch"]
    assert set(fetched) == {"smollm2", "efficientnet", "openmoji" if objects == "openmoji" else "stamps"}
    (train,) = (command for command in commands if command[0] == "train")
    assert train[1] == preset and train[-2:] == ["--resume", "auto"]
    overrides = train[2:-2]
    assert overrides == ([f"name={name}", *OPENMOJI] if objects == "openmoji" else [])
    assert ["report", f"checkpoints/{name}"] in commands and f"checkpoints/{name}/report.html" in done.stdout

    config = load_config(preset, overrides)
    assert config.name == name and config.evaluation is not None
    sources = [source for stage in config.stages.values() for source in stage.data.mix]
    sources += [split.source for split in config.evaluation.splits.values()]
    assert len(sources) >= 5
    assert {source.options.get("objects", "tuxpaint") for source in sources} == {objects}


@pytest.mark.parametrize("on_terminal", [True, False])
def test_pip_is_shown_as_it_is_on_a_terminal(clone: Path, on_terminal: bool) -> None:
    """Into a pipe it draws no progress bar; a log is spared what is there already."""
    (clone / ".venv" / ".prismcap-installed").unlink()
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as shown, os.fdopen(writer, "wb") as terminal:
        command = "set -euo pipefail; . scripts/environment.sh; make_environment demo"
        subprocess.run(
            ["bash", "-c", command],
            cwd=clone,
            env=environment(clone),
            stdout=terminal,
            check=True,
            timeout=300,
        )
        text = shown.read(65536).decode()
    installed = f"Collecting y, terminal: {'yes' if on_terminal else 'no'}"
    assert text.count(installed) == 3, text
    assert ("already satisfied" in text) is on_terminal
    assert (clone / ".venv" / ".prismcap-installed").read_text() == stamp(clone, "demo")
    installs = [
        line for line in (clone.parent / "python.txt").read_text().splitlines() if " install " in line
    ]
    assert len(installs) == 3 and all("-c constraints.txt" in line for line in installs)
    assert installs[-1].endswith("-e .[demo]")
