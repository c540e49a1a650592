"""What each DeepSpeed engine that is asked for holds in its second step, on every rank, as JSON.

Usage: engine_bytes.py CONFIG OUT JOBS, JOBS being JSON: name -> overrides. OUT/bytes.json: name -> for each
rank {"weights", "gradients", "optimizer"}, in bytes of distinct memory: the most of what is there before each
micro-batch but the first, and before DeepSpeed's own step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prismcap.configs.load import load_config
from prismcap.model.build import build_captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks, process_group
from prismcap.train.run import build_engine, stage_loader

STAGE = "instruct"


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    found = (tensor.untyped_storage() for tensor in tensors if tensor.numel())
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def held(captioner: Any, optimizer: Any, zero_stage: int) -> dict[str, int]:
    """By part; memory that is a weight's does not count again."""
    parameters = list(captioner.parameters())
    own = [getattr(parameter, "ds_tensor", parameter).data for parameter in parameters]
    weights = storages([*own, *captioner.buffers()])
    inner = getattr(optimizer, "optimizer", optimizer)
    state = [value for entry in inner.state.values() for value in tensors_in(entry)]
    masters = {
        1: lambda: optimizer.single_partition_of_fp32_groups,
        2: lambda: optimizer.single_partition_of_fp32_groups,
        3: lambda: optimizer.fp32_partitioned_groups_flat,
    }.get(zero_stage, list)()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if zero_stage in (1, 2):
        gradients += tensors_in([optimizer.averaged_gradients, optimizer.all_grad_tensors])
    elif zero_stage == 3:
        gradients.append(optimizer.grad_partitions_flat_buffer)
    rest = storages([*state, *masters])
    return {
        "weights": sum(weights.values()),
        "gradients": sum(size for key, size in storages(gradients).items() if key not in weights),
        "optimizer": sum(size for key, size in rest.items() if key not in weights),
    }


def work(config_path: str, overrides: list[str], ranks: Ranks) -> list[dict[str, int]]:
    config = load_config(config_path, overrides)
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages[STAGE].train, seed=config.seed)
    hold_frozen(captioner, config.stages[STAGE].precision)
    engine: Any = build_engine(config, STAGE, captioner, 5, ranks)
    zero_stage = engine.options.zero_stage
    loader = stage_loader(config, STAGE, captioner, ranks)
    engine.train_step(loader.load(0).micro_batches)
    seen: list[dict[str, int]] = []
    step = engine.engine.step

    def look(*_: Any) -> None:
        seen.append(held(captioner, engine.engine.optimizer, zero_stage))

    def look_and_step() -> None:
        look()
        step()

    engine.engine.step = look_and_step
    handle = captioner.register_forward_pre_hook(look)
    engine.train_step(loader.load(1).micro_batches)
    handle.remove()
    engine.close()
    return ranks.gather({part: max(parts[part] for parts in seen[1:]) for part in seen[0]})


def main() -> None:
    torch.set_num_threads(1)
    config_path, out, jobs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    with process_group() as ranks:
        results = {name: work(config_path, overrides, ranks) for name, overrides in jobs.items()}
        if ranks.is_first:
            (out / "bytes.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
