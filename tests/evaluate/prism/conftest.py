"""A small Prism run of stand-in components."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prismcap.configs.schema.prism import PrismConfig

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fakes_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(HERE))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "prism_fakes"]:
        del sys.modules[name]


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., PrismConfig]:
    """A config whose keys the arguments replace; `perceiver` and `reasoner` are options of the fakes `seeing`
    and `reading`, which count in perceiver.log and reasoner.log."""

    def make(
        benchmark: dict[str, Any] | None = None,
        perceiver: dict[str, Any] | None = None,
        reasoner: dict[str, Any] | None = None,
        **keys: Any,
    ) -> PrismConfig:
        values = {
            "name": "fake",
            "output_dir": str(tmp_path / "runs"),
            "benchmarks": {"plain": {"name": "prism_fakes.benchmark", **(benchmark or {})}},
            "perceivers": {
                "seeing": {
                    "name": "prism_fakes.perceiver",
                    "log": str(tmp_path / "perceiver.log"),
                    **(perceiver or {}),
                }
            },
            "reasoners": {
                "reading": {
                    "name": "prism_fakes.reasoner",
                    "log": str(tmp_path / "reasoner.log"),
                    **(reasoner or {}),
                }
            },
            "local": {"batch_size": 1},
            **keys,
        }
        return PrismConfig.model_validate(values)

    return make


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[str], list[str]]:
    """What a fake was asked since the last look: lines of NAME.log."""

    def lines(name: str) -> list[str]:
        path = tmp_path / f"{name}.log"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    return lines
