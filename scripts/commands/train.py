"""`prismcap train CONFIG`: every stage of a config, in this process or in those that torchrun started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prismcap.train.distributed import Ranks
    from prismcap.train.run import BeforeStage, BeforeTraining


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
@click.option(
    "--resume",
    default="never",
    show_default=True,
    metavar="auto|never|PATH",
    help="auto: go on with what the run's folder holds. never: it must hold no run. PATH: a step-… folder.",
)
@click.option("--until", metavar="STAGE", help="The last stage to train; the others are left for later.")
@click.option(
    "--dry-export/--no-dry-export",
    default=True,
    help="Save and reload an export before the first step.  [default: on]",
)
@click.option(
    "--doctor/--no-doctor",
    default=True,
    help="Check data, masks, memory and disk before the first step.  [default: on]",
)
def train(
    config: str,
    overrides: tuple[str, ...],
    resume: str,
    until: str | None,
    dry_export: bool,
    doctor: bool,
) -> None:
    """Train every stage of CONFIG (a YAML file or a preset) with OVERRIDES (key.sub=value).

    Ctrl-C, SIGTERM and SIGUSR1 end the run after the step it is in, with a checkpoint; any end is safe: go
    on with --resume auto. For several processes:
    torchrun --nproc-per-node N -m prismcap.scripts.train CONFIG …
    """
    import os
    import sys

    # loader workers are forked after the tokenizer was used; its own threads would not survive that
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from prismcap.configs.errors import ConfigError, nearest
    from prismcap.configs.load import load_config
    from prismcap.data.schema import DataError
    from prismcap.scripts.evaluating import measure_of
    from prismcap.train.allocator import keep_freed_memory
    from prismcap.train.checkpoint import SaveError
    from prismcap.train.distributed import process_group
    from prismcap.train.engines._contract import BadStepError
    from prismcap.train.run import run_training
    from prismcap.train.signals import StoppedError

    loaded = load_config(config, overrides)
    if until is not None and until not in loaded.stages:
        raise ConfigError(f"--until {until}: {config} has no such stage.{nearest(until, loaded.stages)}")
    keep_freed_memory()
    with process_group() as ranks:
        before_training, before_stage = _hooks(ranks, dry_export, doctor)
        try:
            run_dir = run_training(
                loaded,
                resume,
                before_training=before_training,
                before_stage=before_stage,
                ranks=ranks,
                measure_of=measure_of,
                last_stage=until,
            )
        except (DataError, BadStepError, SaveError) as error:
            raise click.ClickException(str(error)) from error
        except StoppedError as stopped:
            if ranks.is_first:
                click.echo(f"Run {loaded.name}: {stopped}")
            sys.exit(stopped.exit_code)
        except OSError as error:
            raise click.ClickException(
                f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}; earlier "
                "checkpoints are intact: make room (or mend what is named) and go on with --resume auto"
            ) from error
        if ranks.is_first:
            click.echo(f"Trained: {run_dir}")


def _hooks(ranks: Ranks, dry_export: bool, doctor: bool) -> tuple[list[BeforeTraining], list[BeforeStage]]:
    """What looks at a run before it trains and before each stage; it speaks through the log of rank 0."""
    import logging
    import sys
    from functools import partial

    from prismcap.scripts.evaluating import check_evaluations
    from prismcap.scripts.exporting import dry_export as dry_export_hook
    from prismcap.train.doctor.checkup import check_before_stage, check_before_training

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("prismcap").setLevel(logging.INFO if ranks.is_first else logging.ERROR)
    before_training: list[BeforeTraining] = [check_evaluations]
    before_stage: list[BeforeStage] = []
    if dry_export:
        before_training.append(dry_export_hook(logging.getLogger("prismcap.export").info))
    if doctor:
        say = logging.getLogger("prismcap.doctor").info
        colour = sys.stderr.isatty()
        before_training.append(partial(check_before_training, ranks=ranks, say=say, colour=colour))
        before_stage.append(partial(check_before_stage, ranks=ranks, say=say))
    return before_training, before_stage
