"""demo/siglip's quick form on real pictures and the real LLM: three stages, an export, captions, figures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from prismcap.configs.cache import cache_dir
from prismcap.model.restore import load_trained

NEEDED = {"smollm2": "models/smollm2-135m-instruct/config.json", "stamps": "objects/tuxpaint/index.json"}


def prismcap(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prismcap.scripts.cli", *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path) -> None:
    for name, path in NEEDED.items():
        if not (cache_dir() / path).is_file():
            pytest.skip(f"not fetched: run `prismcap fetch {name}`")
    run = tmp_path / "demo-siglip-quick"
    prismcap("train", "demo/siglip_quick", f"output_dir={tmp_path}")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(record["stage"] for record in log)) == ["contrast", "align", "instruct"]
    contrast = [record for record in log if record["stage"] == "contrast"]
    # ten steps learn nothing yet; that a stage does is seen in tests/train/test_contrastive_run.py
    assert len(contrast) == 10 and all(0 < record["loss"] < math.inf for record in contrast)
    assert log[-1]["loss"] < 0.5 * next(record["loss"] for record in log if record["stage"] == "instruct")

    prismcap("export", run)
    exported = AutoModelForImageTextToText.from_pretrained(run / "model")
    assert type(exported).__name__ == "LlavaForConditionalGeneration"
    captioner, _ = load_trained(run)
    theirs = exported.model.vision_tower.state_dict()
    trained = captioner.vision_encoder.state_dict()
    assert trained and all(torch.equal(theirs[name.removeprefix("tower.")], v) for name, v in trained.items())

    prismcap("evaluate", run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["about"]["complete"] and metrics["about"]["quick"]
    pictures = sorted((run / "pictures").iterdir())
    assert pictures[0].name in prismcap("caption", run / "model", pictures[0])
