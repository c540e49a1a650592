"""Five steps with each engine that is asked for, on as many ranks as were started; rank 0 writes results.

Usage: engines_on_ranks.py CONFIG OUT JOBS, JOBS being JSON: name -> {"overrides": [...], "fault": "",
"chunk_bytes": ...}, the last being the logits that the loss makes at once.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prismcap.configs.load import load_config
from prismcap.model import loss
from prismcap.model.build import build_captioner
from prismcap.model.kernels import apply_kernels
from prismcap.model.trainable import prepare_stage
from prismcap.model.weights import save_weights
from prismcap.train.distributed import Ranks, process_group
from prismcap.train.run import build_engine, stage_loader

STEPS = 5
STAGE = "instruct"


def start(config_path: str, overrides: list[str], ranks: Ranks) -> tuple[Any, Any, Any]:
    config = load_config(config_path, overrides)
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages[STAGE].train, seed=config.seed)
    captioner.to(ranks.device)
    apply_kernels(captioner, config.stages[STAGE].kernels, ranks.device)
    engine = build_engine(config, STAGE, captioner, STEPS, ranks)
    return captioner, stage_loader(config, STAGE, captioner, ranks), engine


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Faults that a test of equality must see."""
    from prismcap.train import step as steps
    from prismcap.train.engines import deepspeed as deepspeed_engine
    from prismcap.train.engines import torch as torch_engine

    def mean_of_means(micro_batches: Any, ranks: Ranks) -> Any:
        """Every rank divides by its own count."""
        agreed = steps.agree(micro_batches, ranks)
        own = sum(batch.num_target_tokens for batch in micro_batches)
        return steps.AgreedStep(agreed.micro_batches, own * ranks.world_size)

    attribute, value = {
        "": ("undo_averaging", lambda ranks: ranks.world_size),
        "averaging_kept": ("undo_averaging", lambda _: 1),
        "mean_of_means": ("agree", mean_of_means),
    }[fault]
    with (
        mock.patch.object(torch_engine, attribute, value),
        mock.patch.object(deepspeed_engine, attribute, value),
    ):
        yield


def work(name: str, job: dict[str, Any], config_path: str, out: Path, ranks: Ranks) -> dict[str, Any]:
    captioner, loader, engine = start(config_path, job["overrides"], ranks)
    counts, micro, losses, norms, accuracies = [], [], [], [], []
    shared = Path(ranks.on_first(lambda: tempfile.mkdtemp(dir=out)))
    for step in range(STEPS):
        batches = loader.load(step).micro_batches
        counts.append(ranks.gather(sum(batch.num_target_tokens for batch in batches)))
        micro.append(ranks.gather(len(batches)))
        result = engine.train_step(batches)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        accuracies.append(result.accuracy)
        if job.get("reload") and step == 2:
            engine.save(shared)
            ranks.barrier()
            engine.close()
            del captioner, engine
            gc.collect()
            captioner, loader, engine = start(config_path, job["overrides"], ranks)
            engine.load(shared)
    evaluated = 0.0
    if not job.get("fault"):
        with engine.eval_context():
            batch = replace(loader, rank=0, world_size=1).load(0).micro_batches[0]
            evaluated = float(captioner(batch.to(ranks.device)).loss_sum)
    state = engine.gathered_state()
    if ranks.is_first:
        save_weights(out / f"{name}.safetensors", state)
    engine.close()
    steps = {"losses": losses, "norms": norms, "accuracies": accuracies, "counts": counts, "micro": micro}
    return steps | {"evaluated": evaluated}


def main() -> None:
    torch.set_num_threads(1)
    config_path, out, jobs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    with process_group() as ranks:
        results = {}
        for name, job in jobs.items():
            chunk_bytes = job.get("chunk_bytes", loss.LOGITS_CHUNK_BYTES)
            with (
                planted(job.get("fault", "")),
                mock.patch.object(loss, "LOGITS_CHUNK_BYTES", chunk_bytes),
            ):
                results[name] = work(name, job, config_path, out, ranks)
        if ranks.is_first:
            (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
