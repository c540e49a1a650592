"""`prismcap bench train|data|generate|loss`: speed and memory against references in the same run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from prismcap.configs.errors import ConfigError, nearest

T = TypeVar("T")
DEFAULT_STAGES: tuple[Literal["align", "instruct"], ...] = ("instruct",)

out_option = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write."
)
repeats_option = click.option(
    "--repeats", type=click.IntRange(min=1), help="Measured steps of each contender.  [default: 3; quick: 2]"
)
precision_option = click.option(
    "--dtype",
    "precision",
    type=click.Choice(["bf16", "fp32"]),
    help="bf16 is autocast over fp32 weights.  [default: the faster one here; of `loss`: fp32]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of each child process.  [default: as many as there are cores]",
)
quick_option = click.option("--quick", is_flag=True, help="Tiny sizes, for a look in seconds.")
size_option = click.option(
    "--size",
    type=click.Choice(["tiny", "smollm2"]),
    help="Shape of the LLM.  [default: smollm2; quick: tiny]",
)
visual_option = click.option(
    "--visual-tokens", type=click.IntRange(min=1), help="Of a picture.  [default: 576; quick: 64]"
)


@click.group()
def bench() -> None:
    """Measure speed and memory against references in the same run."""


@bench.command()
@click.option(
    "--mix", "mixes", multiple=True, help="Length mix; may be given several times.  [default: mix665k]"
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(["align", "instruct"]),
    help="Connector alone, or connector and LLM; may be given several times.  [default: instruct]",
)
@click.option(
    "--contenders",
    default="ours,llava,llava_tuned",
    show_default=True,
    help="From ours, ours_compiled, llava (a), llava_tuned (a+).",
)
@click.option("--rows", help="Padded micro-batches to choose from.  [default: 1,2,4,8; quick: 1,4]")
@click.option("--samples", type=click.IntRange(min=1), help="Of an optimiser step.  [default: 16; quick: 8]")
@click.option(
    "--row-tokens", type=click.IntRange(min=8), default=2048, show_default=True, help="Of our packing."
)
@click.option(
    "--compile/--no-compile",
    "try_compile",
    default=None,
    help="Let (a+) try torch.compile.  [default: on; quick: off]",
)
@size_option
@visual_option
@precision_option
@threads_option
@repeats_option
@quick_option
@out_option
def train(mixes: tuple[str, ...], stages: tuple[Literal["align", "instruct"], ...], **options: Any) -> None:
    """Our training step against LlavaForConditionalGeneration, on the same samples and weights.

    Takes minutes for each mix and stage (a run alone on the machine, please); --quick takes seconds.
    """
    from prismcap.train.bench.cases import TrainCase
    from prismcap.train.bench.table import train_report
    from prismcap.train.bench.train import CONTENDERS, Plan, check_case, run_case

    quick = options["quick"]
    plan = Plan(
        contenders=_names("--contenders", options["contenders"], CONTENDERS),
        repeats=_repeats(options),
        rows=_numbers("--rows", options["rows"] or ("1,4" if quick else "1,2,4,8")),
        try_compile=not quick if options["try_compile"] is None else options["try_compile"],
    )
    cases = [
        TrainCase.model_validate(
            {
                "mix": mix,
                "stage": stage,
                "samples_per_step": options["samples"] or (8 if quick else 16),
                "row_tokens": options["row_tokens"],
                **_model(options),
            }
        )
        for mix in mixes or ("mix665k",)
        for stage in stages or DEFAULT_STAGES
    ]
    for case in cases:
        check_case(case)  # a mistake is named before minutes of work
    outcomes = []
    for case in cases:
        outcome = _measured(partial(run_case, case, plan, _say))
        click.echo(train_report(outcome) + "\n")
        outcomes.append(vars(outcome))
        _write(options["out"], "train", outcomes)


@bench.command()
@click.option("--mix", default="mix665k", show_default=True, help="Length mix.")
@click.option("--row-tokens", default="1024,2048,4096", show_default=True, help="Row lengths to compare.")
@click.option(
    "--max-tokens", default=1024, show_default=True, type=click.IntRange(min=8), help="Of a sample."
)
@click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Of a step.")
@size_option
@visual_option
@precision_option
@threads_option
@repeats_option
@quick_option
@out_option
def rows(mix: str, row_tokens: str, max_tokens: int, samples: int, **options: Any) -> None:
    """Our training step at several row lengths: what `batch.row_tokens: 0` should be on this device."""
    from prismcap.train.bench.cases import TrainCase
    from prismcap.train.bench.rows import rows_report, run_rows
    from prismcap.train.bench.train import check_case

    lengths = _numbers("--row-tokens", row_tokens)
    case = TrainCase.model_validate(
        {"mix": mix, "samples_per_step": samples, "row_tokens": max(lengths), "max_tokens": max_tokens}
        | _model(options)
    )
    check_case(case)
    outcome = _measured(partial(run_rows, case, lengths, _repeats(options)))
    click.echo(rows_report(outcome))
    _write(options["out"], "rows", vars(outcome))


@bench.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option("--stage", help="Stage whose loader is measured; the first one if not given.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=1), help="Measured steps.")
@click.option(
    "--step-time-s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long a training step would take.",
)
@click.option(
    "--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="Of the measured steps."
)
@out_option
def data(
    config: str,
    overrides: tuple[str, ...],
    stage: str | None,
    steps: int,
    step_time_s: float,
    repeats: int,
    out: Path | None,
) -> None:
    """Loader throughput for CONFIG, and the share of time that a training step would wait for data."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked
    from prismcap.configs.load import load_config
    from prismcap.train.bench.data import measure, report

    run = load_config(config, overrides)
    name = stage or next(iter(run.stages))
    if name not in run.stages:
        raise ConfigError(f"{config}: no stage is called {name!r}.{nearest(name, run.stages)}")
    figures = measure(run, name, steps, step_time_s, repeats)
    click.echo(report(f"{run.name} · {name}", figures))
    _write(out, "data", vars(figures) | {"config": config, "overrides": list(overrides), "stage": name})


@bench.command()
@click.option("--prompts", type=click.IntRange(min=1), default=16, show_default=True, help="In the batch.")
@click.option("--new-tokens", type=click.IntRange(min=1), help="Of each text.  [default: 32; quick: 8]")
@size_option
@visual_option
@precision_option
@threads_option
@repeats_option
@quick_option
@out_option
def generate(prompts: int, new_tokens: int | None, **options: Any) -> None:
    """Generation in a batch against one prompt at a time: tokens/s and their ratio."""
    from prismcap.train.bench.cases import GenerateCase
    from prismcap.train.bench.pairs import generate_report, run_generate

    quick = options["quick"]
    case = GenerateCase.model_validate(
        {
            "num_prompts": prompts,
            "max_new_tokens": new_tokens or (8 if quick else 32),
            **_model(options),
        }
    )
    outcome = _measured(partial(run_generate, case, _repeats(options)))
    click.echo(generate_report(outcome))
    _write(options["out"], "generate", vars(outcome))


@bench.command()
@click.option("--vocabulary", type=click.IntRange(min=2), help="[default: 92,544; quick: 1,000]")
@click.option(
    "--hidden", type=click.IntRange(min=1), default=512, show_default=True, help="Width of the model."
)
@click.option("--positions", type=click.IntRange(min=2), help="[default: 2,048; quick: 256]")
@click.option(
    "--supervised", type=click.FloatRange(0, 1, min_open=True), default=0.2, show_default=True, help="Share."
)
@precision_option
@threads_option
@repeats_option
@quick_option
@out_option
def loss(
    vocabulary: int | None, hidden: int, positions: int | None, supervised: float, **options: Any
) -> None:
    """Our loss against cross entropy over all logits: time and peak memory."""
    from prismcap.train.bench.cases import LossCase
    from prismcap.train.bench.pairs import loss_report, run_loss

    quick = options["quick"]
    case = LossCase(
        vocabulary=vocabulary or (1_000 if quick else 92_544),
        hidden=hidden,
        positions=positions or (256 if quick else 2_048),
        supervised_share=supervised,
        precision=options["precision"] or "fp32",
        num_threads=_threads(options["threads"]),
    )
    outcome = _measured(partial(run_loss, case, _repeats(options)))
    click.echo(loss_report(outcome))
    _write(options["out"], "loss", vars(outcome))


def _measured(run: Callable[[], T]) -> T:
    from prismcap.train.bench.race import BenchError

    try:
        return run()
    except BenchError as error:
        raise click.ClickException(str(error)) from error


def _say(text: str) -> None:
    click.echo(text, err=True)


def _threads(given: int | None) -> int:
    if given is not None:
        return given
    # what this process may use, not what the machine has
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fastest_precision() -> str:
    from prismcap.train.distributed import pick_device
    from prismcap.train.precision import fastest_precision

    return fastest_precision(pick_device())


def _repeats(options: Mapping[str, Any]) -> int:
    return int(options["repeats"] or (2 if options["quick"] else 3))


def _model(options: Mapping[str, Any]) -> dict[str, Any]:
    quick = options["quick"]
    return {
        "size": options["size"] or ("tiny" if quick else "smollm2"),
        "precision": options["precision"] or _fastest_precision(),
        "visual_tokens": options["visual_tokens"] or (64 if quick else 576),
        "num_threads": _threads(options["threads"]),
    }


def _names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise ConfigError(f"{option} {text}: no contender is called {name!r}.{nearest(name, known)}")
    return names


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} {text}: numbers from 1 on, separated by commas, are expected")
    return tuple(sorted({int(part) for part in parts}))


def _write(path: Path | None, kind: str, results: object) -> None:
    """The figures, and what they were made with."""
    if path is None:
        return
    from datetime import UTC, datetime

    from prismcap.evaluate.versions import versions
    from prismcap.train.files import write_json

    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"bench": kind, "command": ["prismcap", *sys.argv[1:]], **about, "results": results})
