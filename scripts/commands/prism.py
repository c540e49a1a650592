"""`prismcap prism`: perceive, then reason, and know which of the two failed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from prismcap.scripts.groups import NamingGroup
from prismcap.scripts.places import check_folder_of, default_device

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
        device=device or default_device(),
        retry_failed=retry_failed,
        show_progress=sys.stderr.isatty(),
        is_first=os.environ.get("RANK", "0") == "0",
    )
    run_dir = run_dir_of(loaded)
    if results is not None:
        click.echo(results_table(results))
    if "report" in chosen and os.environ.get("RANK", "0") == "0":
        click.echo(f"Report: {run_dir / REPORT}")


@prism.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=RUN)
@click.option("--out", type=FILE, help="HTML file to write.  [default: compare-….html beside the first run]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resampled intervals.")
def compare(runs: tuple[Path, ...], out: Path | None, seed: int) -> None:
    """Compare scored RUNs on the questions that they share, and draw them side by side.

    Prints each difference with its interval, McNemar's test, the correction for all that are printed, and
    the smallest difference that could have been found. The same as JSON lies beside the page.
    """
    import json

    from prismcap.configs.files import replace_text
    from prismcap.evaluate.prism.compare import compare_runs, comparison_table
    from prismcap.evaluate.report.prism_page import draw_prism

    compared = compare_runs(runs, seed)
    page = out or runs[0].resolve().parent / f"compare-{'-'.join(run.resolve().name for run in runs)}.html"
    check_folder_of(page)
    replace_text(page.with_suffix(".json"), json.dumps(compared, indent=2, ensure_ascii=False) + "\n")
    click.echo(comparison_table(compared["comparisons"]))
    for benchmark, number in compared["left_out"].items():
        if number:
            click.echo(f"{benchmark}: {number} more pairs were not compared")
    click.echo(f"Page: {draw_prism(runs, page, compared['comparisons'])}")


@prism.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=RUN)
@click.option("--out", type=FILE, required=True, help="JSONL file to write, for a perceiver `file`.")
@click.option("--perceiver", "perceivers", multiple=True, help="Only of this one; can be repeated.")
def fuse(runs: tuple[Path, ...], out: Path, perceivers: tuple[str, ...]) -> None:
    """Join what several perceivers wrote about each question, in one RUN or several; each part says whose it
    is. The config's `{name: file, path: OUT}` then hands it to a reasoner.
    """
    from prismcap.evaluate.prism.fuse import fuse as fuse_runs

    fused = fuse_runs(runs, out, perceivers)
    click.echo(f"{fused.num_written} questions, descriptions of {', '.join(fused.sources)}: {out}")
    if fused.missing:
        click.echo(f"{len(fused.missing)} descriptions failed or are not there, and were left out.")


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
    check_folder_of(out)
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
    from prismcap.configs.errors import DataError, nearest
    from prismcap.evaluate.benchmarks._subset import filtered_subset, write_ids
    from prismcap.evaluate.prism.finished import read_finished

    [scored] = read_finished([run], at_least=1)
    checksum = scored.checksums.get(benchmark)
    if checksum is None:
        hint = nearest(benchmark, scored.checksums)
        raise DataError(f"{run}: no benchmark {benchmark!r} was scored.{hint}")
    rows = (row for rows in scored.cells.values() for row in rows.values())
    found = filtered_subset(rows, benchmark, checksum, fewer_than, reasoners or None)
    check_folder_of(out)
    write_ids(out, found)
    click.echo(f"{len(found.ids)} kept ({found.rule}): {out}")
