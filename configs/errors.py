"""The errors that a user's configuration can cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Names the file, the key path, the value and what would be right."""


class DataError(ValueError):
    """Bad input data; the message names file, row, key and value, and what would be right."""


class MissingExtraError(ImportError):
    """An optional package is needed. Says which extra installs it."""

    def __init__(self, package: str, extra: str, purpose: str, locked: bool = True) -> None:
        """locked: whether the extra can be had at the versions of constraints.txt."""
        lock = "-c constraints.txt " if locked else ""
        super().__init__(
            f"{purpose} needs the package {package!r}. In the clone of this repository: "
            f"pip install {lock}-e '.[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' where one of the known names is close, else the list of them all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Valid: {', '.join(names)}." if names else ""
