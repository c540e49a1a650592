"""A judged evaluation of tiny files and a judge on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "clients"))  # faulty_server
sys.path.append(str(Path(__file__).parents[2] / "scripts"))  # webdriver

from prismcap.configs.schema.judged import JudgedConfig

Make = Callable[..., JudgedConfig]


@pytest.fixture
def make_config(tmp_path: Path) -> Make:
    """url: of the judge; none: people alone. Other keywords replace keys of the config."""

    def make(
        protocol: dict[str, Any], answers: dict[str, str], url: str | None = None, **keys: Any
    ) -> JudgedConfig:
        judge = {"name": "openai", "url": url, "model": "m", "max_retries": 0, "timeout_s": 20}
        values = {
            "name": "judged",
            "output_dir": str(tmp_path / "runs"),
            "protocol": protocol,
            "answers": answers,
            "judge": judge if url is not None else None,
            **keys,
        }
        return JudgedConfig.model_validate(values)

    return make


@pytest.fixture
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
