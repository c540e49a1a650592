"""Tests of the Tux Paint drawings are skipped where these cannot be fetched (they come by apt-get)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismcap.data.scenes import objects


@pytest.fixture(autouse=True)
def skip_without_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the test that asks for the set; tests with another cache folder of their own see the error."""
    fetched = objects.objects_root()
    if (fetched / "tuxpaint" / "index.json").is_file():
        return
    read = objects._read_index

    def read_or_skip(name: str, root: Path) -> dict[str, Any]:
        if name == "tuxpaint" and root == fetched:
            pytest.skip(f"no Tux Paint drawings at {root / name}: run `{objects.FETCH_COMMANDS[name]}`")
        return read(name, root)

    monkeypatch.setattr(objects, "_read_index", read_or_skip)
