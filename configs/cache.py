"""Where fetched data and converted weights lie, and how configs name them."""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT_VARIABLE = "PRISMCAP_CACHE"
PREFIX = "cache:"


def cache_dir() -> Path:
    """$PRISMCAP_CACHE, else ~/.cache/prismcap. Not created here."""
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(value).expanduser() if value else Path.home() / ".cache" / "prismcap"


def resolve_path(value: str | Path) -> Path:
    """`cache:models/x` lies in the cache folder; anything else is an ordinary path.

    A relative path is relative to the working directory, as on any command line.
    """
    text = str(value)
    if text.startswith(PREFIX):
        return cache_dir() / text[len(PREFIX) :].lstrip("/")
    return Path(text).expanduser()
