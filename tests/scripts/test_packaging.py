"""The distribution: every module and YAML is in the wheel, and imports stay light and in one direction."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "data", "model", "train", "evaluate", "scripts")
SHIPPED = {".py", ".yaml", ".json", ".j2", ".txt"}


def sources(suffixes: set[str]) -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def test_the_wheel_holds_every_module_and_preset(tmp_path: Path) -> None:
    # built from a copy: setuptools writes build/ beside the sources, and a stale one hides a missing file
    copy = tmp_path / "source"
    copy.mkdir()
    for path in [*sources(SHIPPED), *map(Path, ("pyproject.toml", "setup.py", "README.md", "LICENSE"))]:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes((ROOT / path).read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    missing = [str(path) for path in sources(SHIPPED) if f"prismcap/{path.as_posix()}" not in inside]
    assert missing == []


def loaded_by(arguments: list[str]) -> set[str]:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['prismcap', *{arguments!r}]\n"
        "try:\n    runpy.run_module('prismcap.scripts.cli', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print('LOADED', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["caption"], ["serve"], ["fetch"], ["config", "show"], ["report"]],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    heavy = {"torch", "transformers", "timm", "deepspeed", "matplotlib", "pydantic"}
    assert not loaded_by([*command, "--help"]) & heavy


def test_only_the_registry_and_the_command_line_import_by_name() -> None:
    allowed = {Path("configs/registry.py"), Path("scripts/cli.py")}
    found = set()
    for path in sources({".py"}):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            imports = isinstance(node, ast.Import | ast.ImportFrom)
            names = {alias.name for alias in node.names} if imports else set()
            if names & {"importlib", "import_module"}:
                found.add(path)
            if isinstance(node, ast.Name) and node.id == "__import__":
                found.add(path)
    assert found <= allowed


def test_the_import_rule_names_every_module_of_the_data_but_the_schema() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (rule,) = [contract for contract in contracts if contract.get("source_modules") == ["prismcap.model"]]
    modules = {module.name for module in pkgutil.iter_modules([str(ROOT / "data")])}
    known = {"schema", "anyres"}  # the second is what Tiling of the schema is made of
    assert {f"prismcap.data.{name}" for name in modules - known} == set(rule["forbidden_modules"])


def test_no_file_or_function_outgrows_the_house() -> None:
    too_long = []
    for path in sources({".py"}):
        text = (ROOT / path).read_text()
        if text.count("\n") > 400:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > (80 if node.name == "train_step" else 60):
                    too_long.append(f"{path}: {node.name} has {length} lines")
    assert too_long == []


def test_config_sections_stay_small() -> None:
    from prismcap.configs.load import RunConfig
    from prismcap.configs.schema.base import Section

    def subclasses(section: type[Section]) -> list[type[Section]]:
        return [section, *(below for child in section.__subclasses__() for below in subclasses(child))]

    assert RunConfig in subclasses(Section)
    # a stage is a list of sections, and the one about evaluation while it trains is the thirteenth
    most = {"StageConfig": 13}
    sections = subclasses(Section)
    assert [c.__name__ for c in sections if len(c.model_fields) > most.get(c.__name__, 12)] == []
