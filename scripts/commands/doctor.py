"""`prismcap doctor`: would this run work, before it is started."""

from __future__ import annotations

import click


@click.command()
@click.argument("config")
@click.argument("overrides", nargs=-1)
def doctor(config: str, overrides: tuple[str, ...]) -> None:
    """Check CONFIG with OVERRIDES (key.sub=value) as far as can be without training it.

    Shows samples and their masks, what trains, the first loss and gradients; runs the largest micro-batch
    through the engine; saves and loads a checkpoint and an export; looks at memory and disk. Exit code 1 when
    something is wrong. For several processes:
    torchrun --nproc-per-node N -m prismcap.scripts.cli doctor CONFIG …
    """
    import logging
    import os
    import sys

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from prismcap.configs.load import load_config
    from prismcap.data.schema import DataError
    from prismcap.scripts.exporting import dry_export
    from prismcap.train.allocator import keep_freed_memory
    from prismcap.train.distributed import process_group
    from prismcap.train.doctor.checkup import check_run
    from prismcap.train.doctor.findings import errors

    loaded = load_config(config, overrides)
    if loaded.num_threads is not None:
        torch.set_num_threads(loaded.num_threads)
    keep_freed_memory()
    with process_group() as ranks:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        say = click.echo if ranks.is_first else _silent
        try:
            findings = check_run(loaded, ranks, say, sys.stdout.isatty(), dry_export(_silent))
        except DataError as error:
            raise click.ClickException(str(error)) from error
        wrong = [finding for part in ranks.gather(errors(findings)) for finding in part]
        warned = sum(finding.level == "warning" for finding in findings)
        say(f"{len(findings)} checks, {warned} warnings, {len(wrong)} errors.")
    if wrong:
        raise SystemExit(1)


def _silent(_: str) -> None:
    return
