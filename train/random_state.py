"""The random generators of a rank, as they are at one moment: kept in memory for a step that is to leave no
trace, and as JSON in a checkpoint."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prismcap.train.files import write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RandomState:
    """Python's, NumPy's and torch's generators; `cuda` is None without a GPU."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    cuda: Tensor | None

    @classmethod
    def take(cls) -> RandomState:
        """As they are now."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(random.getstate(), tuple(np.random.get_state()), torch.get_rng_state(), cuda)

    def put_back(self) -> None:
        """Set the generators to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)


def save_random_state(folder: Path, rank: int) -> None:
    """The state of one rank, as JSON. Raises OSError."""
    state = RandomState.take()
    kind, keys, *rest = state.numpy
    values: dict[str, Any] = {
        "python": state.python,
        "numpy": [kind, keys.tolist(), *rest],
        "torch": bytes(state.torch.tolist()).hex(),
    }
    if state.cuda is not None:
        values["cuda"] = bytes(state.cuda.tolist()).hex()
    write_json(folder / f"random-{rank:05d}.json", values)


def load_random_state(folder: Path, rank: int) -> None:
    """The reverse. A rank that did not exist when the checkpoint was written keeps its own state."""
    path = folder / f"random-{rank:05d}.json"
    if not path.is_file():
        log.warning("%s: no random state for rank %d; dropout will differ from the saved run", folder, rank)
        return
    values = json.loads(path.read_text(encoding="utf-8"))
    version, internal, gauss = values["python"]
    kind, keys, *rest = values["numpy"]
    RandomState(
        python=(version, tuple(internal), gauss),
        numpy=(kind, np.array(keys, dtype=np.uint32), *rest),
        torch=_bytes_tensor(values["torch"]),
        cuda=_bytes_tensor(values["cuda"]) if "cuda" in values else None,
    ).put_back()


def _bytes_tensor(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
