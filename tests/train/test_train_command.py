"""`prismcap train` as it is typed: what it does before the first step unless it is told not to."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from prismcap.scripts.cli import cli


def test_a_plain_run_tries_the_export_and_its_setting_before_the_first_step(
    world: Path, tmp_path: Path
) -> None:
    steps = [f"stages.{stage}.schedule.max_steps=1" for stage in ("align", "instruct")]
    with pytest.MonkeyPatch.context() as patch:
        # pytest's handlers would keep the command from writing its log to stderr
        patch.setattr(logging.getLogger(), "handlers", [])
        arguments = ["train", str(world / "config.yaml"), f"output_dir={tmp_path}", *steps]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and f"Trained: {tmp_path / 'tiny'}" in done.stdout
    lines = done.stderr.splitlines()
    # of the hooks, and of the trainer when a stage begins
    exported, checked, begins = (
        [i for i, line in enumerate(lines) if words in line]
        for words in ("The export reloads and agrees", "the largest micro-batch", "stage align: 1 steps")
    )
    # the largest micro-batch: in the short form, then before each of the two stages
    assert len(exported) == len(begins) == 1 and len(checked) == 3, done.stderr
    assert max(exported[0], checked[0]) < begins[0] < checked[1]
