"""Does the largest micro-batch fit: by estimate, then by trial."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from prismcap.configs.schema.stage import StageConfig
from prismcap.data.schema import Batch
from prismcap.model.captioner import Captioner
from prismcap.model.precision import autocast
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.findings import Finding, error, ok, warning
from prismcap.train.engines._contract import NonFiniteError
from prismcap.train.files import megabytes
from prismcap.train.fit import peak_memory_mb
from prismcap.train.plan.memory import Memory

REMEDY = (
    "Lower batch.rows_per_micro_batch or batch.images_per_micro_batch, set gradient_checkpointing: true, or "
    "shard with engine.name=deepspeed (`prismcap plan` shows what fits)."
)
# an estimate this close to the limit may or may not fit
NEARLY_FULL = 0.9


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take: of the GPU, else of the machine or its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(values["MemAvailable"].split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")  # control groups, version 2
    if (group / "memory.max").is_file() and (text := (group / "memory.max").read_text().strip()) != "max":
        limits.append(int(text) - int((group / "memory.current").read_text()))
    return max(0, min(limits))


def check_estimate(name: str, memory: Memory, ranks: Ranks) -> Finding:
    """Against what is free now, the weights being there already. On a CPU, ranks of one machine share it."""
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks.device.type == "cpu" else 1
    free = free_bytes(ranks.device)
    needed = (memory.total - memory.static.weights) * sharers
    parts = ", ".join(f"{part} {megabytes(size)}" for part, size in memory.parts().items() if size)
    text = (
        f"{name}: memory needed beside the weights: {megabytes(needed)}, {megabytes(free)} are free ({parts})"
    )
    if needed > free:
        return error(text, REMEDY)
    if needed > NEARLY_FULL * free:
        return warning(text, REMEDY)
    return ok(text)


def try_largest(name: str, take: Callable[[], object], batch: Batch) -> Finding:
    """Call `take`, which works on the largest micro-batch, and say what memory it took."""
    rows, width = batch.input_ids.shape
    pictures, tiles = len(batch.image_sizes), len(batch.tile_image)
    cut = f" of {tiles} tiles" if tiles > pictures else ""
    what = f"{name}: the largest micro-batch ({rows} x {width} tokens, {pictures} pictures{cut})"
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started_s = time.perf_counter()
    try:
        take()
    except (torch.OutOfMemoryError, MemoryError) as problem:
        return error(f"{what} does not fit: {str(problem).splitlines()[0]}", REMEDY)
    except NonFiniteError as problem:
        return error(f"{what}: {problem.what}", "Train in fp32, or look for weights that are not finite.")
    except RuntimeError as problem:
        if "can't allocate memory" not in str(problem):  # of torch's allocator for the CPU
            raise
        return error(f"{what} does not fit: {str(problem).splitlines()[0]}", REMEDY)
    time_s = time.perf_counter() - started_s
    return ok(f"{what} ran in {time_s:.1f} s, the peak so far is {peak_memory_mb():,.0f} MB")


def forward_and_backward(captioner: Captioner, batch: Batch, stage: StageConfig) -> None:
    """As the torch engine does, but without an optimiser; the gradients are gone afterwards."""
    captioner.train()
    try:
        with autocast(captioner.device, stage.precision):
            loss = captioner(batch.to(captioner.device)).loss_sum
        loss.backward()
    finally:
        captioner.zero_grad(set_to_none=True)
