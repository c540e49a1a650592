"""The doctor on several ranks, with the same data and with another copy on each; rank 0 writes results.

Usage: doctor_on_ranks.py CONFIG COPIES OUT; COPIES/rows-RANK.json. OUT/results.json: the number of errors on
each rank, and what a training says that is started with other copies.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.train.distributed import process_group
from prismcap.train.doctor.checkup import check_run
from prismcap.train.doctor.findings import DoctorError, errors
from prismcap.train.run import run_training


def main() -> None:
    torch.set_num_threads(1)
    config_path, copies, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

    def config(copy: Path | None, name: str) -> RunConfig:
        overrides = [f"output_dir={out}", f"name={name}"]
        if copy is not None:
            # the same config on every rank, as on two nodes: only what lies at the path differs
            own = out / f"node-{os.environ['RANK']}"
            own.mkdir(exist_ok=True)
            (own / "rows.json").write_text(copy.read_text())
            os.chdir(own)
            root = Path(config_path).parent
            overrides.append(f"stages.*.data.mix=[{{name: llava_json, path: rows.json, image_root: {root}}}]")
        return load_config(config_path, overrides)

    with process_group() as ranks:
        results: dict[str, object] = {}
        same = check_run(config(None, "same"), ranks, print)
        results["same"] = ranks.gather(len(errors(same)))
        other = config(copies / f"rows-{ranks.rank}.json", "other")
        found = [finding for finding in check_run(other, ranks, print) if "data" in finding.what]
        results["other_data"] = ranks.gather(min(1, len(errors(found))))
        try:
            run_training(other, ranks=ranks)
        except DoctorError as error:
            results["training"] = str(error)
        if ranks.is_first:
            (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
