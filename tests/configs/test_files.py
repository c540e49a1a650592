"""Files that are there whole: texts that UTF-8 cannot spell."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from prismcap.configs.files import replace_text

HALF = "cut \ud83d"  # half an emoji


def test_half_a_surrogate_pair_becomes_its_escape(tmp_path: Path) -> None:
    path = tmp_path / "text"
    replace_text(path, f"{HALF} é")
    assert path.read_bytes() == "cut \\ud83d é".encode()


def test_json_and_yaml_with_half_a_pair_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "text"
    values = {HALF: [HALF, f"\\{HALF}", "\ude00\\", "é😀"]}
    replace_text(path, json.dumps(values, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf-8")) == values
    replace_text(path, yaml.safe_dump(values, allow_unicode=True))
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == values
