"""scripts/gpu_acceptance.sh and what it runs: claims, their results, and the table that they fill."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prismcap.configs.errors import ConfigError
from prismcap.scripts import acceptance
from prismcap.scripts.acceptance import BEGIN, END, FAILED, NOT_RUN, PASSED, run_files, table, write_table

ROOT = Path(__file__).parents[2]
HEAD = "import os, time\nimport pytest\npytestmark = pytest.mark.gpu\n"
FILES = {
    "test_good.py": f'''"""Good claims."""
{HEAD}
def test_a(record_property):
    record_property("claim", "two is even | always")
    record_property("measured", "0.1 of 1")
@pytest.mark.parametrize("x", [1])
def test_b(x):
    pytest.skip("no such package")
def test_c():
    assert 1 == 2
''',
    "test_killed.py": f'"""A kernel that kills its process."""\n{HEAD}\ndef test_a():\n    os._exit(7)\n',
    "test_hangs.py": f'"""A kernel that hangs."""\n{HEAD}\ndef test_a():\n    time.sleep(60)\n',
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: x\n")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in FILES]


def test_every_claim_gets_its_result_whatever_becomes_of_its_process(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    claims = run_files(files, file_s=8.0)
    assert [(claim.text, claim.result, claim.measured) for claim in claims] == [
        ("two is even | always", PASSED, "0.1 of 1"),
        ("test_b[1]", NOT_RUN, "no such package"),
        ("test_c", FAILED, ""),
        ("A kernel that kills its process", FAILED, "pytest ended with 7"),
        ("A kernel that hangs", FAILED, "not done after 8 s"),
    ]
    shown = capsys.readouterr()
    assert "run on a GPU  two is even | always (0.1 of 1)" in shown.out
    assert "assert 1 == 2" in shown.err


def test_time_that_is_used_up_is_not_given_again(files: list[Path]) -> None:
    (claim,) = run_files(files[2:], total_s=0.5)
    assert (claim.result, claim.measured) == (FAILED, "not done after 1 s")


def test_the_table_goes_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{BEGIN}\nold\n{END}\nafter\n")
    claims = [
        acceptance.Claim("a | b", PASSED, "1 %", Path("tests/gpu/test_x.py")),
        acceptance.Claim("c", NOT_RUN, "no\npackage", Path("tests/gpu/test_x.py")),
    ]
    for _ in range(2):
        write_table(path, table(claims, "2030-01-02", "one X9"))
    lines = path.read_text().splitlines()
    assert lines[:3] == ["before", "", BEGIN] and lines[-2:] == [END, "after"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[2] == [
        "a / b",
        "run on a GPU, 2030-01-02",
        "1 %",
        "`tests/gpu/test_x.py`",
    ]
    assert rows[3][:3] == ["c", "never run", "no package"]
    assert "one X9" in path.read_text() and "old" not in path.read_text()
    path.write_text("no marks")
    with pytest.raises(ConfigError, match="must stand around the table"):
        write_table(path, "x")


def gpu_claims() -> list[tuple[str, str]]:
    """(claim, file) of every test of tests/gpu that has a case on a GPU, in order."""
    found = []
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                takes = [argument.arg for argument in node.args.args]
                if "gpu" in marks or "device" in takes:
                    docstring = ast.get_docstring(node)
                    assert docstring, node.name
                    found.append((docstring.partition("\n")[0], path.relative_to(ROOT).as_posix()))
    return found


def test_the_readme_lists_every_claim() -> None:
    text = (ROOT / "README.md").read_text()
    lines = text.partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    listed = [(row[0], row[-1].strip("`")) for row in rows[1:]]
    assert listed == gpu_claims(), "add or remove rows of README's table (a new claim has never run)"


def marks_gpu(path: Path) -> bool:
    """Whether `pytest.mark.gpu` stands in the code of a file (strings do not count)."""
    tree = ast.walk(ast.parse(path.read_text()))
    return any(isinstance(node, ast.Attribute) and ast.unparse(node).endswith("mark.gpu") for node in tree)


def test_what_needs_a_gpu_lies_where_the_script_looks() -> None:
    # by what is written: collecting the whole suite takes a minute
    folder = ROOT / "tests" / "gpu"
    marked = {path for path in (ROOT / "tests").rglob("*.py") if marks_gpu(path)}
    assert folder / "conftest.py" in marked
    assert not [path for path in marked if path.parent != folder]


def test_without_a_gpu_the_script_says_so_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("gpu_acceptance.sh", "environment.sh"):
        (tmp_path / "scripts" / name).write_bytes((ROOT / "scripts" / name).read_bytes())
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found' >&2\nexit 6\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts" / "gpu_acceptance.sh")],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert "No GPU here" in done.stderr and done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_gpu_its_program_says_so_too() -> None:
    readme = (ROOT / "README.md").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "prismcap.scripts.acceptance"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "torch sees no GPU" in done.stderr
    assert (ROOT / "README.md").read_bytes() == readme
