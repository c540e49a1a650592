"""Synthetic Prism runs, drawn once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from prism_runs import prism_run

from prismcap.evaluate.report.prism_page import draw_prism

sys.path.append(str(Path(__file__).parents[1]))  # test_report: how a page is parsed
sys.path.append(str(Path(__file__).parents[1] / "ablation"))  # ablation_folder
sys.path.append(str(Path(__file__).parents[2] / "scripts"))  # webdriver


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 perceivers, 3 reasoners and 120 questions of 6 abilities, with its page."""
    folder = prism_run(tmp_path_factory.mktemp("prism") / "scenes_run")
    draw_prism([folder], folder / "report.html")
    return folder
