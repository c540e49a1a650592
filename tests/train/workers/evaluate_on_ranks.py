"""Whole runs on as many ranks as were started, evaluated while they train where their config says so.

Usage: evaluate_on_ranks.py CONFIG OUT SOURCES JOBS. SOURCES: a folder of modules with data sources. JOBS is
JSON: name -> overrides. Writes what each rank said in each evaluation to OUT/results.json, by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.evaluate.live import LiveEvaluation
from prismcap.train.distributed import Ranks, process_group
from prismcap.train.evaluations import Measure
from prismcap.train.run import run_training


class Noting:
    """The command's `measure_of`, which notes the texts that were gathered. The figure is made of their
    lengths: it goes up and down where a tiny model is right in nothing."""

    def __init__(self) -> None:
        self.said: list[list[list[str]]] = []

    def __call__(self, config: RunConfig, stage: str, ranks: Ranks) -> Measure:
        live = LiveEvaluation.of(config, stage)

        def gather(said: Any) -> Any:
            parts = ranks.gather(said)
            self.said.append([[text for text, _ in part] for part in parts])
            return parts

        def measure(captioner: Any) -> Any:
            figures = live.figures(captioner, ranks.rank, ranks.world_size, gather)
            letters = sum(len(text) for part in self.said[-1] for text in part)
            return {name: {**figure, "rate": letters % 7 / 7} for name, figure in figures.items()}

        return measure


def main() -> None:
    torch.set_num_threads(1)
    config_path, out, sources, jobs = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    sys.path.insert(0, sources)
    with process_group() as ranks:
        results = {}
        for name, overrides in jobs.items():
            noting = Noting()
            run_training(load_config(config_path, overrides), ranks=ranks, measure_of=noting)
            results[name] = noting.said
        if ranks.is_first:
            (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
