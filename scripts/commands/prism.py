"""`prismcap prism`: perceive, then reason, and know which of the two failed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from prismcap.scripts.groups import NamingGroup

RUN = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=NamingGroup)
def prism() -> None:
    """Measure perception and reasoning apart: a perceiver describes pictures, a reasoner reads that alone."""


@prism.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(["instruct", "perceive", "reason", "score", "report"]),
    help="Only this stage; can be repeated. What it needs of earlier ones must be there.  [default: all]",
)
@click.option("--retry-failed", is_flag=True, help="Ask again, once, for what failed before.")
@click.option("--device", help="cpu, cuda, …, of local models  [default: cuda if there is one]")
def run(
    config: str, overrides: tuple[str, ...], stages: tuple[str, ...], retry_failed: bool, device: str | None
) -> None:
    """Run CONFIG (a YAML file or a preset) after OVERRIDES (key.sub=value).

    Answers are kept in the run's folder as they come: what is known is not asked again, an interrupted run
    goes on, and several processes (torchrun, or the same command twice) share the work.
    """
    from prismcap.configs.load import load_prism
    from prismcap.evaluate.prism.run import REPORT, STAGES, run_dir_of, run_prism
    from prismcap.evaluate.prism.table import results_table
    from prismcap.train.allocator import keep_freed_memory

    keep_freed_memory()
    loaded = load_prism(config, overrides)
    chosen = [stage for stage in STAGES if stage in stages or not stages]
    results = run_prism(
        loaded,
        chosen,
        device=device or _device(),
        retry_failed=retry_failed,
        show_progress=sys.stderr.isatty(),
        is_first=os.environ.get("RANK", "0") == "0",
    )
    run_dir = run_dir_of(loaded)
    if results is not None:
        click.echo(results_table(results))
    if "report" in chosen and os.environ.get("RANK", "0") == "0":
        click.echo(f"Report: {run_dir / REPORT}")


def _device() -> str:
    """The GPU of this process of torchrun's, the first without it; the CPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@prism.command()
@click.argument("config")
@click.argument("benchmark")
@click.argument("out", type=FILE)
@click.argument("overrides", nargs=-1)
def tsv(config: str, benchmark: str, out: Path, overrides: tuple[str, ...]) -> None:
    """Write BENCHMARK of CONFIG with its pictures to OUT, a TSV file that VLMEvalKit reads too."""
    from prismcap.configs.load import load_prism
    from prismcap.evaluate.benchmarks._write_tsv import write_tsv
    from prismcap.evaluate.prism.questions import build_benchmark

    built = build_benchmark(load_prism(config, overrides), benchmark)
    _check_parent(out)
    write_tsv(built, out)
    click.echo(f"{len(built)} questions: {out}")


@prism.command()
@click.argument("run", type=RUN)
@click.option("--benchmark", required=True, help="Name of a benchmark of the run.")
@click.option("--out", type=FILE, required=True, help="JSON file of ids, for the benchmark's ids_file.")
@click.option("--reasoner", "reasoners", multiple=True, help="Only of this one; can be repeated.")
@click.option(
    "--fewer-than",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Keep questions that fewer than so many blind reasoners answer.",
)
def subset(run: Path, benchmark: str, out: Path, reasoners: tuple[str, ...], fewer_than: int) -> None:
    """Write ids of RUN's questions that its reasoners do not answer blind: the paper's filtered subset."""
    from prismcap.evaluate.benchmarks._subset import filtered_subset, write_ids
    from prismcap.evaluate.prism.results import benchmark_of, read_items

    checksum = benchmark_of(run, benchmark)["checksum"]
    found = filtered_subset(read_items(run), benchmark, checksum, fewer_than, reasoners or None)
    _check_parent(out)
    write_ids(out, found)
    click.echo(f"{len(found.ids)} kept ({found.rule}): {out}")


def _check_parent(out: Path) -> None:
    if not out.parent.is_dir():
        raise click.UsageError(f"{out}: there is no folder {out.parent}; make it first")
