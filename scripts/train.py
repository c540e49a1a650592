"""Training under torchrun: `torchrun --nproc-per-node N -m prismcap.scripts.train CONFIG [OVERRIDES]…`."""

from __future__ import annotations

from prismcap.scripts.cli import run
from prismcap.scripts.commands.train import train

if __name__ == "__main__":
    run(train)
