"""`python -m prismcap.scripts.acceptance`, as scripts/gpu_acceptance.sh starts it: what only a GPU can show.

Every file of tests/gpu runs in a process of its own, since one bad kernel spoils a process for all that
come after it. A line is printed for each claim, and the table of README.md is written anew.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import click

from prismcap.configs.errors import ConfigError
from prismcap.configs.files import replace_text

TESTS, README = Path("tests/gpu"), Path("README.md")
BEGIN, END = "<!-- scripts/gpu_acceptance.sh writes from here -->", "<!-- to here -->"
PASSED, FAILED, NOT_RUN = "run on a GPU", "FAILED", "never run"
TOTAL_S, FILE_S = 1800.0, 420.0  # half an hour in all; one hanging file must not take it from the others


@dataclass(frozen=True)
class Claim:
    """One test: what it shows, how it ended, what it measured (or why not), and its file."""

    text: str
    result: str
    measured: str
    file: Path


def run_files(files: Sequence[Path], total_s: float = TOTAL_S, file_s: float = FILE_S) -> list[Claim]:
    """Run each file's cases marked `gpu`, printing a line per claim as they end."""
    until_s = time.monotonic() + total_s
    claims: list[Claim] = []
    with TemporaryDirectory() as folder:
        for file in files:
            started_s = time.monotonic()
            junit = Path(folder) / f"{file.stem}.xml"
            found = _run_file(file, junit, min(file_s, max(1.0, until_s - started_s)))
            for claim in found:
                detail = f" ({claim.measured})" if claim.measured else ""
                click.echo(f"{claim.result:>12}  {claim.text}{detail}")
            click.echo(f"{'':>12}  {file}: {time.monotonic() - started_s:.0f} s")
            claims += found
    return claims


def _run_file(file: Path, junit: Path, limit_s: float) -> list[Claim]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    try:
        done = subprocess.run(
            [*command, str(file)], capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return [Claim(first_line(file), FAILED, f"not done after {limit_s:.0f} s", file)]
    claims = read_junit(junit, file) if junit.exists() else []
    if done.returncode != 0:
        click.echo(done.stdout[-8000:] + done.stderr[-4000:], err=True)
    if not claims:
        claims = [Claim(first_line(file), FAILED, f"pytest ended with {done.returncode}", file)]
    return claims


def read_junit(junit: Path, file: Path) -> list[Claim]:
    """The claims of one pytest run. `claim` and `measured` are properties that tests/gpu/conftest.py sets."""
    claims = []
    for case in ElementTree.parse(junit).iter("testcase"):
        said = {item.get("name"): item.get("value", "") for item in case.iter("property")}
        result, measured = PASSED, said.get("measured") or ""
        skipped = case.find("skipped")
        if skipped is not None:
            result, measured = NOT_RUN, skipped.get("message") or ""
        elif case.find("failure") is not None or case.find("error") is not None:
            result = FAILED
        claims.append(Claim(said.get("claim") or case.get("name") or "?", result, measured, file))
    return claims


def first_line(file: Path) -> str:
    """The first line of a file's docstring."""
    return file.read_text(encoding="utf-8").partition("\n")[0].strip('"').rstrip(".")


def table(claims: Iterable[Claim], day: str = "", machine: str = "") -> str:
    """The table as Markdown, with its heading line."""
    head = f"Last run on {day}, on {machine}." if day else "No GPU has run these yet."
    head += " `scripts/test.sh -- -m gpu FILE` runs one file."
    lines = [head, "", "| what | on a GPU | measured | where |", "|---|---|---|---|"]
    for claim in claims:
        file = f"`{claim.file.as_posix()}`"
        result = f"{claim.result}, {day}" if claim.result == PASSED else claim.result
        lines.append("| " + " | ".join(_cell(t) for t in (claim.text, result, claim.measured, file)) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def write_table(path: Path, text: str) -> None:
    """Put the table between its two marks; all else stays. Raises ConfigError when there are no marks."""
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(
            f"{path}: the marks {BEGIN!r} and {END!r} must stand around the table; put them back"
        )
    replace_text(path, f"{before}{BEGIN}\n{text}\n{END}{after}")


def describe_machine() -> str:
    """The GPU and the versions that matter. Raises ConfigError where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here (torch.cuda.is_available()): nothing was run or written")
    return f"one {torch.cuda.get_device_name(0)}, torch {torch.__version__}"


def main() -> None:
    """Run everything, write the table; exit status 1 when a claim failed."""
    machine = describe_machine()
    claims = run_files(sorted(TESTS.glob("test_*.py")))
    write_table(README, table(claims, date.today().isoformat(), machine))
    click.echo(f"Written to {README}.")
    sys.exit(1 if any(claim.result == FAILED for claim in claims) else 0)


if __name__ == "__main__":
    from prismcap.scripts.cli import run

    run(main)
