"""One run at a time fills a store of features: two at once would encode the same pictures twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from prismcap.train.distributed import Ranks
from prismcap.train.locks import TakenError, locked

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
# the other ranks wait for the first one's answer in a collective, which has a timeout
ANSWER_AFTER_S = 60.0


def lock_path(folder: Path) -> Path:
    """Beside the store, which holds shards alone."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def filling_alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Wait until no other run is in here with this folder, however long it takes. Collective.

    Where the file system has no locks there is no waiting: what is then done twice is right, and wasted.
    """
    with ExitStack() as held:
        waited = False
        while not ranks.on_first(partial(_try_lock, folder, held, waited)):
            waited = True
        yield


def _try_lock(folder: Path, held: ExitStack, waited: bool) -> bool:
    """Whether the lock is held, or cannot be had at all; after a minute without it, not yet."""
    until_s = time.monotonic() + ANSWER_AFTER_S
    while time.monotonic() < until_s:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock_path(folder)))
        except TakenError as error:
            if not waited:
                waited = True
                log.info("feature cache: %s fills %s; waiting for it", error, folder)
            time.sleep(LOOK_EVERY_S)
        except OSError as error:
            log.info("feature cache: %s cannot be locked (%s)", folder, error)
            return True
        else:
            return True
    return False
