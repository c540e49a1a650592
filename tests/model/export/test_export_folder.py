"""A folder takes another's place whole, and the older one is never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismcap.model.hf.files import whole_folder


@pytest.mark.parametrize("also_back", [False, True])
def test_the_old_export_outlives_a_failed_exchange(
    also_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new folder cannot take its place; in the second case the old one cannot go back either."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "prismcap.json").write_text("{}")
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and (also_back or ".partial-" in self.name):
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="kept in" if also_back else "Input/output"), whole_folder(target):
        pass
    found = list(tmp_path.rglob("prismcap.json"))
    assert len(found) == 1 and found[0].read_text() == "{}"
    assert also_back or [path.name for path in tmp_path.iterdir()] == ["model"]
