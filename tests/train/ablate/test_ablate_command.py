"""`prismcap ablate` on the command line, with stand-ins for what draws the results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ablation_axes import SECOND, axis
from click.testing import CliRunner, Result

from prismcap.configs.schema.ablation import AblationConfig
from prismcap.scripts.cli import cli
from prismcap.scripts.commands import ablate as command
from prismcap.train.ablate.expand import ablation_folder, expand
from prismcap.train.ablate.launch import Outcome
from prismcap.train.ablate.status import Status, write_status
from prismcap.train.ablate.units import plan_units

RUNS = "prismcap.evaluate"


def prismcap(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def file(make_ablation: Any, tmp_path: Path) -> Path:
    make_ablation({"second": axis(**SECOND)})
    return tmp_path / "abl.yaml"


@pytest.fixture
def config(file: Path) -> AblationConfig:
    from prismcap.configs.load import load_ablation

    return load_ablation(file)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What collects and draws, in order."""
    called: list[str] = []

    def collect(folder: Path, seed: int = 0) -> dict[str, Any]:  # noqa: ARG001
        called.append(f"collect {folder.name}")
        return {}

    def draw_ablation(folder: Path, out: Path | None = None) -> Path:
        called.append(f"draw {folder.name}")
        return out or folder / "report.html"

    parts = {"ablation": None, "ablation.collect": collect, "report.ablation_page": draw_ablation}
    for name, function in parts.items():
        module = ModuleType(f"{RUNS}.{name}")
        if function is not None:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return called


def outcomes(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> list[Any]:
    """Units are not run; returns what was wanted of them."""
    wanted: list[Any] = []

    def run(config: Any, plan: Any, folder: Any, units: Any, retry: bool) -> Outcome:  # noqa: ARG001
        wanted.append((units, retry))
        return outcome

    monkeypatch.setattr(command, "run", run)
    return wanted


def test_a_dry_run_says_all_and_writes_nothing(file: Path, config: AblationConfig) -> None:
    done = prismcap("ablate", file, "seeds=[0, 1]", "--dry-run")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:3] == ["cell", "second", "seed"]
    assert ["second.low-seed.0", "low", "0", "-"] in lines
    assert ["second.high-seed.1", "high", "1", "stages.instruct.train.connector.lr=0.02"] in lines
    [first] = [line for line in lines if line and line[0].startswith("shared/") and "0" in line][:1]
    assert first[1:] == ["0", "-", "align", "4", "-", "-"]
    assert ["cells/second.low-seed.0", "1", "align", "of", first[0], "instruct", "7", "-", "-"] in lines
    # 2 x 4 + 4 x 7, and 4 x 11
    assert "4 cells and 2 shared beginnings in 2 waves; 36 steps, 44 without sharing" in done.stdout
    assert not ablation_folder(config).exists()


def test_steps_of_epochs_are_counted_where_the_data_is_there(file: Path) -> None:
    epochs = ["stages.align.schedule={epochs: 2}", "stages.instruct.schedule={epochs: 1}"]
    text = json.dumps(["stages.instruct.data.mix.0.path=nowhere.json", *epochs])
    done = prismcap("ablate", file, f"set={text}", "--dry-run")
    # 23 rows, six a step: 46 samples are 8 steps
    assert re.search(r"shared/\S+ +0 +- +align +8 ", done.stdout), done.output
    assert "? steps, ? without sharing" in done.stdout


def test_what_is_done_is_collected_and_drawn(
    file: Path, config: AblationConfig, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = outcomes(monkeypatch, Outcome({}))
    done = prismcap("ablate", file)
    assert done.exit_code == 0, done.output
    folder = ablation_folder(config)
    assert wanted == [(None, False)] and drawn == ["collect abl", "draw abl"]
    assert f"Report: {folder / 'report.html'}" in done.stdout
    plan = plan_units(config, expand(config))
    assert [cell["id"] for cell in json.loads((folder / "plan.json").read_text())["cells"]] == [
        cell.id for cell in plan.cells
    ]
    # the resolved config is the same ablation, from any folder
    again = prismcap("ablate", folder / "ablation.yaml", "--report-only")
    assert again.exit_code == 0 and len(wanted) == 1 and drawn[2:] == ["collect abl", "draw abl"]


def test_what_failed_is_named_with_its_log_and_the_rest_is_drawn(
    file: Path, config: AblationConfig, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = "cells/second.low-seed.0"
    failed = Outcome({unit: Status(unit, "failed", "x", error="so many words\nError: no such data")})
    outcomes(monkeypatch, failed)
    done = prismcap("ablate", file, "--retry-failed")
    assert done.exit_code == 1 and drawn == ["collect abl", "draw abl"]
    log = ablation_folder(config) / "logs" / "cells__second.low-seed.0.log"
    assert f"{unit}: Error: no such data" in done.stderr and str(log) in done.stderr


@pytest.mark.usefixtures("drawn")
def test_a_refused_config_leaves_the_plan_as_it_was(
    file: Path, config: AblationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = outcomes(monkeypatch, Outcome({}))
    prismcap("ablate", file)
    folder, unit = ablation_folder(config), "cells/second.low-seed.0"
    written = {name: (folder / name).read_bytes() for name in ("plan.json", "ablation.yaml")}
    (folder / unit / "instruct" / "final").mkdir(parents=True)
    write_status(folder, Status(unit, "done", "another.none"))
    refused = prismcap("ablate", file, "question=What else?")
    assert "was trained with another config" in str(refused.exception) and len(wanted) == 1
    assert {name: (folder / name).read_bytes() for name in written} == written


def test_one_unit_alone_draws_nothing(file: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = outcomes(monkeypatch, Outcome({}))
    unit = "cells/second.low-seed.0"
    assert prismcap("ablate", file, "--unit", unit).exit_code == 0
    assert wanted == [([unit], False)] and drawn == []
    wrong = prismcap("ablate", file, "--unit", "cells/second.lo-seed.0")
    assert "Did you mean 'cells/second.low-seed.0'" in str(wrong.exception)


def test_a_stopped_ablation_says_how_to_go_on(
    file: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    outcomes(monkeypatch, Outcome({}, signal.SIGINT))
    done = prismcap("ablate", file)
    assert done.exit_code == 130 and drawn == [] and "start the same command" in done.stdout


def test_slurm_gets_what_is_left(
    file: Path, config: AblationConfig, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prismcap.train.ablate import slurm

    monkeypatch.setattr(slurm, "submit", lambda script: f"would submit {script}")
    done = prismcap("ablate", file, "launch.name=slurm")
    assert done.exit_code == 0, done.output
    script = ablation_folder(config) / "slurm" / "submit.sh"
    assert f"would submit {script.resolve()}" in done.stdout and script.is_file() and drawn == []


def test_wrong_uses_are_refused(file: Path) -> None:
    assert "exclude each other" in prismcap("ablate", file, "--dry-run", "--report-only").output
    nothing = prismcap("ablate", file, "--report-only")
    assert "no ablation has been run here yet" in str(nothing.exception)
    assert "not an ablation: prismcap train" in str(prismcap("ablate", "demo/scenes").exception)


def test_config_shows_and_validates_ablations(file: Path) -> None:
    shown = prismcap("config", "show", file, "seeds=[4]")
    assert shown.exit_code == 0 and "seeds:\n- 4\n" in shown.stdout
    assert prismcap("config", "validate", file).stdout == f"{file}: valid\n"
    values = json.loads(file.read_text())
    values["axes"]["second"]["levels"]["high"] = ["stages.instruct.tain=1"]
    file.write_text(json.dumps(values))
    done = prismcap("config", "validate", file)
    assert done.exit_code == 2 and "axes.second.levels.high: stages.instruct.tain: unknown key" in done.stderr
    assert "trains nothing" in str(prismcap("config", "show", file, "--deepspeed").exception)


def test_until_names_a_stage(world: Path) -> None:
    done = prismcap("train", world / "config.yaml", "--until", "aling")
    assert "--until aling:" in str(done.exception) and "Did you mean 'align'" in str(done.exception)
