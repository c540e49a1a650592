"""Training under torchrun: `torchrun --nproc-per-node N -m prismcap.scripts.train CONFIG [OVERRIDES]…`."""

from __future__ import annotations

import sys

import click

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.scripts.commands.train import train


def main() -> None:
    """As `prismcap train`; a user's mistake is one clear message and exit code 2."""
    try:
        train()
    except (ConfigError, MissingExtraError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
