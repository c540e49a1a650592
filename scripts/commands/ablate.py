"""`prismcap ablate CONFIG`: an ablation from its config to its report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prismcap.configs.schema.ablation import AblationConfig
    from prismcap.train.ablate.launch import Outcome
    from prismcap.train.ablate.units import Plan


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print cells, units, shared stages and steps; write nothing.")
@click.option("--retry-failed", is_flag=True, help="Try again, once, what failed before.")
@click.option("--report-only", is_flag=True, help="Run nothing: collect what is there, and draw the page.")
@click.option("--unit", metavar="UNIT", help="Run this unit of plan.json alone, as an array job's task does.")
def ablate(
    config: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    retry_failed: bool,
    report_only: bool,
    unit: str | None,
) -> None:
    """Train and measure the cells of CONFIG (a YAML file or a preset of an ablation) after OVERRIDES.

    Beginnings that cells have equal are trained once. What is done is not run again: after any end, start the
    same command. Ctrl-C and SIGTERM end the runs with a checkpoint. What fails stops nothing else; the exit
    code is then 1.
    """
    from prismcap.configs.errors import ConfigError, nearest
    from prismcap.configs.load import load_ablation
    from prismcap.train.ablate.expand import ablation_folder, expand
    from prismcap.train.ablate.folder import alone, write_plan
    from prismcap.train.ablate.launch import refuse_changed
    from prismcap.train.ablate.overview import overview
    from prismcap.train.ablate.units import plan_units

    if dry_run + report_only + (unit is not None) > 1:
        raise click.UsageError("--dry-run, --report-only and --unit exclude each other")
    loaded = load_ablation(config, overrides)
    folder = ablation_folder(loaded)
    if report_only:
        report(folder)
        return
    plan = plan_units(loaded, expand(loaded, config))
    if unit is not None and unit not in plan.units:
        raise ConfigError(f"--unit {unit}: {config} has no such unit.{nearest(unit, plan.units)}")
    if dry_run:
        for line in overview(loaded, plan, folder):
            click.echo(line)
        return
    if unit is not None:
        write_plan(loaded, plan)
        outcome = run(loaded, plan, folder, [unit], retry_failed)
        name_failed(folder, outcome)
        sys.exit(exit_code(outcome))
    with alone(folder):
        refuse_changed(folder, list(plan.units.values()))
        write_plan(loaded, plan)
        if loaded.launch.name == "slurm":
            submit_jobs(loaded, plan, folder, retry_failed)
            return
        outcome = run(loaded, plan, folder, None, retry_failed)
        name_failed(folder, outcome)
        if outcome.stopped_by is None:
            report(folder)
    sys.exit(exit_code(outcome))


def run(
    config: AblationConfig, plan: Plan, folder: Path, wanted: list[str] | None, retry_failed: bool
) -> Outcome:
    """The units, in this process's children."""
    from prismcap.train.ablate.children import Children
    from prismcap.train.ablate.launch import run_units
    from prismcap.train.ablate.unit_run import UnitRunner

    runner = UnitRunner(folder, plan, config.launch, Children(), click.echo)
    return run_units(runner, wanted, retry_failed)


def submit_jobs(config: AblationConfig, plan: Plan, folder: Path, retry_failed: bool) -> None:
    """Hand what is not done yet to SLURM."""
    from prismcap.train.ablate.launch import pending_units
    from prismcap.train.ablate.slurm import submit, write_jobs

    script = write_jobs(folder, config, pending_units(folder, list(plan.units.values()), retry_failed))
    click.echo(submit(script))


def report(folder: Path) -> None:
    """The table and the page of what is there."""
    from prismcap.configs.errors import ConfigError
    from prismcap.train.ablate.status import PLAN

    if not (folder / PLAN).is_file():
        raise ConfigError(f"{folder}: no ablation has been run here yet (there is no {PLAN})")
    from prismcap.evaluate.ablation.collect import collect
    from prismcap.evaluate.report.ablation_page import draw_ablation

    collect(folder)
    click.echo(f"Report: {draw_ablation(folder)}")


def name_failed(folder: Path, outcome: Outcome) -> None:
    """Say what failed and where more is said of it, and that a stopped ablation can go on."""
    from prismcap.train.ablate.status import log_path

    if outcome.failed:
        click.echo(f"{len(outcome.failed)} failed (after mending what it was: --retry-failed):", err=True)
        for unit, status in outcome.failed.items():
            lines = (status.error or "no word").splitlines()
            click.echo(f"  {unit}: {lines[-1]}\n    {log_path(folder, unit)}", err=True)
    if outcome.stopped_by is not None:
        click.echo(f"Stopped by {outcome.stopped_by.name}. Nothing is lost: start the same command to go on.")


def exit_code(outcome: Outcome) -> int:
    if outcome.stopped_by is not None:
        return 128 + outcome.stopped_by
    return 1 if outcome.failed else 0
