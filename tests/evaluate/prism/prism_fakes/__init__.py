"""Stand-in components, loaded by their dotted names: with known answers, and each request is counted."""

from __future__ import annotations

import weakref
from typing import Any

# of the components of this process: which are alive while another one "loads its weights"
_alive: weakref.WeakSet[Any] = weakref.WeakSet()
_loaded: weakref.WeakSet[Any] = weakref.WeakSet()
most_loaded_at_once = [0]


def built(component: Any) -> None:
    _alive.add(component)


def loaded(component: Any) -> None:
    """A component works for the first time, as if it loaded its weights."""
    _loaded.add(component)
    most_loaded_at_once[0] = max(most_loaded_at_once[0], len(_loaded))
