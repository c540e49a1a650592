"""The best weights of a stage so far, in `<stage>/best/`, a checkpoint of weights alone.

A run that goes on from a checkpoint must find the best of the steps up to it. So, as long as no checkpoint
is as new as the best, the one before it stays too, as `<stage>/best-before/`.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prismcap.model.weights import save_weights
from prismcap.train.checkpoint import (
    DamagedError,
    Manifest,
    discard,
    save_checkpoint,
    step_folders,
    step_of,
    verify,
)
from prismcap.train.distributed import Ranks
from prismcap.train.engines._contract import Engine

log = logging.getLogger(__name__)

BEST, BEFORE = "best", "best-before"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Best:
    """Where a stage was best, by which figure, and its value there."""

    step: int
    figure: str
    value: float


class BestWeights:
    """Keeps the weights of the step at which a figure was best; of equal ones, the earlier.

    step: from which the stage goes on; what an earlier, killed run kept of later ones is void. Made and
    called on every rank.
    """

    def __init__(
        self,
        stage_dir: Path,
        figure: str,
        higher_is_better: bool,
        manifest: Callable[[int], Manifest],
        ranks: Ranks,
        step: int = 0,
        needed_bytes: int = 0,
    ) -> None:
        """manifest: that of the weights as they are after a step. needed_bytes: see save_checkpoint."""
        self.stage_dir = stage_dir
        self.figure = figure
        self.higher_is_better = higher_is_better
        self.manifest = manifest
        self.ranks = ranks
        self.needed_bytes = needed_bytes
        self.found: Best | None = ranks.on_first(lambda: _found_before(stage_dir, step))

    def offer(self, step: int, value: float | None, engine: Engine) -> bool:
        """Keep the weights that the engine has after `step`, if `value` is the best so far; whether it is.

        `value` counts on rank 0; nothing and what is not finite is never the best. Collective. Raises
        SaveError.
        """
        best = self.ranks.on_first(lambda: self._if_better(step, value))
        if best is None:
            return False
        weights = engine.gathered_state()

        def write(folder: Path) -> None:
            if self.ranks.is_first:
                save_weights(folder / WEIGHTS, weights)

        self.ranks.on_first(self._make_room)
        manifest = replace(self.manifest(step), best=asdict(best))
        save_checkpoint(self.stage_dir, BEST, manifest, write, self.ranks, self.needed_bytes)
        self.found = best
        return True

    def _if_better(self, step: int, value: float | None) -> Best | None:
        if value is None or not math.isfinite(value):
            return None
        sign = 1 if self.higher_is_better else -1
        if self.found is not None and sign * value <= sign * self.found.value:
            return None
        return Best(step, self.figure, value)

    def _make_room(self) -> None:
        """A best that some checkpoint is as new as may be what a resumed run needs: it stays beside."""
        if self.found is None:
            return
        checkpoints = step_folders(self.stage_dir)
        if checkpoints and step_of(checkpoints[-1]) >= self.found.step:
            discard(self.stage_dir / BEFORE)
            os.rename(self.stage_dir / BEST, self.stage_dir / BEFORE)
        else:
            discard(self.stage_dir / BEST)

    def copy_weights(self, folder: Path) -> None:
        """Put the best weights into a folder. Collective. Raises DamagedError when they are not whole."""
        self.ranks.on_first(lambda: self._copy_weights(folder))

    def _copy_weights(self, folder: Path) -> None:
        verify(self.stage_dir / BEST)
        shutil.copyfile(self.stage_dir / BEST / WEIGHTS, folder / WEIGHTS)

    def settle(self) -> None:
        """The stage has ended: no run will go on within it. Collective."""
        self.ranks.on_first(lambda: discard(self.stage_dir / BEFORE))


def _found_before(stage_dir: Path, step: int) -> Best | None:
    """The best up to `step` that an earlier start of the run has left, put in its place."""
    for folder in (stage_dir / BEST, stage_dir / BEFORE):
        if not folder.is_dir():
            continue
        try:
            manifest = verify(folder)
        except DamagedError as error:
            log.warning("%s. These best weights are damaged, and passed over.", error)
            discard(folder)
            continue
        if manifest.best is None or manifest.step > step:
            discard(folder)
            continue
        if folder.name == BEFORE:
            os.rename(folder, stage_dir / BEST)
        return Best(**manifest.best)
    return None
