"""Five steps with each engine that is asked for, on as many ranks as were started; rank 0 writes results.

Usage: engines_on_ranks.py CONFIG OUT JOBS, JOBS being JSON: name -> {"overrides": [...]} and perhaps
"fault": a mistake of ours, see `planted`; "bad": what is wrong with step 2, see `bad_step`; "reload": saved
and loaded before step 3; "full_disk": the rank that cannot write a checkpoint before step 2;
"chunk_bytes": the logits that the loss makes at once.
"""

from __future__ import annotations

import gc
import json
import math
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from prismcap.configs.load import load_config
from prismcap.model import loss
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner, Output
from prismcap.model.kernels import apply_kernels
from prismcap.model.trainable import prepare_stage
from prismcap.model.weights import save_weights
from prismcap.train.checkpoint import Manifest, SaveError, save_checkpoint, step_name, verify
from prismcap.train.distributed import Ranks, process_group
from prismcap.train.doctor.checkup import check_before_stage
from prismcap.train.engines._contract import BadStepError
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


def infinite_gradient(loss_sum: torch.Tensor) -> torch.Tensor:
    loss_sum.register_hook(lambda gradient: gradient * math.inf)
    return loss_sum


FAULTS = {
    "nan_loss": lambda loss_sum: loss_sum * math.nan,
    "inf_loss": lambda loss_sum: loss_sum + math.inf,  # with a finite gradient
    "inf_gradient": infinite_gradient,
    "spike": lambda loss_sum: loss_sum,  # its limit alone makes it one
}


def bad_step(how: str, engine: Any, batches: Any, ranks: Ranks) -> dict[str, Any]:
    """A step whose first micro-batch on the last rank is bad, and then skipped. "pass": skipped as such."""
    if how == "pass":
        engine.advance()
        return {}
    forward = Captioner.forward
    first = batches[0].sample_ids if ranks.rank == ranks.world_size - 1 else None

    def broken(self: Captioner, batch: Any) -> Output:
        output = forward(self, batch)
        if batch.sample_ids == first:
            output.loss_sum = FAULTS[how](output.loss_sum)
        return output

    before, error = engine.gathered_state(), None
    with mock.patch.object(Captioner, "forward", broken):
        try:
            engine.train_step(batches, 1e-6 if how == "spike" else math.inf)
        except BadStepError as caught:
            error = caught
    after = engine.gathered_state()
    engine.advance()
    found = [(type(error).__name__, str(error), *(error.sample_ids if error else ())), list(first or ())]
    return {
        "found": ranks.gather(found),
        "unchanged": all(value.equal(after[key]) for key, value in before.items()),
    }


def full_disk(rank: int, engine: Any, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """A checkpoint of which one rank can write nothing (by a limit of the system), then one that all can."""

    def save(step: int) -> str:
        manifest = Manifest(STAGE, step, ranks.world_size, "any", {}, {})
        try:
            save_checkpoint(folder, step_name(step), manifest, engine.save, ranks)
        except SaveError as error:
            return str(error)
        return ""

    save(1)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
    errors = ranks.gather(save(2))
    left = sorted(path.name for path in folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    return {
        "errors": errors,
        "left": left,
        "again": ranks.gather(save(2)),
        "whole": [ranks.on_first(partial(verify, folder / step_name(step))).step for step in (1, 2)],
    }


def work(name: str, job: dict[str, Any], config_path: str, out: Path, ranks: Ranks) -> dict[str, Any]:
    captioner, loader, engine = start(config_path, job["overrides"], ranks)
    counts, micro, pictures, losses, norms, accuracies = [], [], [], [], [], []
    more: dict[str, Any] = {}
    shared = Path(ranks.on_first(lambda: tempfile.mkdtemp(dir=out)))
    if job.get("look"):
        config = load_config(config_path, [*job["overrides"], f"output_dir={out}"])
        check_before_stage(config, STAGE, engine, captioner, ranks, lambda text: more.update(said=text))
    for step in range(STEPS):
        batches = loader.load(step).micro_batches
        counts.append(ranks.gather(sum(batch.num_target_tokens for batch in batches)))
        micro.append(ranks.gather(len(batches)))
        pictures.append(ranks.gather(any(batch.tiles is not None for batch in batches)))
        if step == 2 and "full_disk" in job:
            more |= full_disk(job["full_disk"], engine, shared, ranks)
        if step == 2 and "bad" in job:
            more |= bad_step(job["bad"], engine, batches, ranks)
            continue
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
    return steps | {"pictures": pictures, "evaluated": evaluated, **more}


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
