"""A plan in words and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import Precision
from prismcap.data.schema import DataError
from prismcap.model.trainable import GROUPS, group_of
from prismcap.train.flops import FlopModel
from prismcap.train.plan.duration import (
    Duration,
    Lengths,
    duration,
    flops_per_sample,
    lengths_of_data,
    lengths_of_mix,
    lengths_of_published,
)
from prismcap.train.plan.gpus import Gpu
from prismcap.train.plan.memory import PARTS, StageMemory, configured_sharding
from prismcap.train.plan.static import Sharding
from prismcap.train.precision import with_precision
from prismcap.train.settle import with_row_tokens

COLUMN = 11
NAMES = 22


@dataclass(frozen=True)
class Machine:
    """Where the run is to go. mfu: in place of the GPU's own."""

    gpu: Gpu
    num_gpus: int
    mfu: float | None = None


def plan_lines(config: RunConfig, machine: Machine, length_mixes: Mapping[str, str]) -> Iterator[str]:
    """The plan of every stage, line by line. length_mixes: by stage; other stages are read from their data.

    Raises ConfigError for a stage that is not there, or a model whose config cannot be had.
    """
    for name in length_mixes:
        if name not in config.stages:
            raise ConfigError(f"--lengths {name}=…: no such stage; there are {', '.join(config.stages)}")
    gpu = machine.gpu
    config = with_row_tokens(with_precision(config, gpu.fastest_precision), "cuda")
    yield f"{config.name} on {machine.num_gpus} x {gpu.name} ({gpu.memory_bytes / 1e9:.1f} GB each)"
    total = 0.0
    for name in config.stages:
        memory = StageMemory(config.model, config.stages[name])
        yield ""
        yield from _memory_lines(name, memory, machine)
        if memory.stage.kind == "contrastive":
            yield "time: not counted for contrastive stages"
            continue
        try:
            lengths, problem = _lengths(name, config, memory, length_mixes)
        except (ConfigError, DataError) as error:
            yield f"time: unknown, its data cannot be read ({error})."
            yield f"      Say what it is like: --lengths {name}=stage1_pairs, allava_captions or mix665k"
            continue
        if problem is not None:
            yield f"time: its data cannot be read ({problem}); published data of that name stand in"
        took = stage_duration(memory, lengths, machine)
        total += took.gpu_hours
        yield from _time_lines(took, lengths, machine, memory.stage.precision)
    yield f"\ntotal: {total:.1f} GPU-hours"


def _lengths(
    name: str, config: RunConfig, memory: StageMemory, mixes: Mapping[str, str]
) -> tuple[Lengths, Exception | None]:
    """And why they are not those of the data themselves, where nobody asked for others."""
    if name in mixes:
        return lengths_of_mix(mixes[name], memory.captioner, config.stages[name]), None
    try:
        return lengths_of_data(name, config, memory.captioner), None
    except (ConfigError, DataError) as error:
        try:
            return lengths_of_published(memory.captioner, config.stages[name]), error
        except DataError:
            raise error from None  # the data themselves are what is missing


def stage_duration(memory: StageMemory, lengths: Lengths, machine: Machine) -> Duration:
    """How long the stage takes on the machine."""
    stage = memory.stage
    per_sample = flops_per_sample(FlopModel.of(memory.captioner), lengths, bool(stage.feature_cache))
    return duration(stage, per_sample, lengths, machine.gpu, machine.num_gpus, machine.mfu)


def _memory_lines(name: str, memory: StageMemory, machine: Machine) -> Iterator[str]:
    stage, num_gpus = memory.stage, machine.num_gpus
    configured = configured_sharding(stage, num_gpus)
    columns = [Sharding(zero, num_gpus, bucket_size=configured.bucket_size) for zero in (None, 0, 1, 2, 3)]
    columns = [configured if column.zero_stage == configured.zero_stage else column for column in columns]
    of_pairs = stage.kind == "contrastive"
    if of_pairs:
        columns = [configured]  # DeepSpeed does not train such stages
    yield f"stage {name}: {_trained(memory)}; {stage.precision}"
    rows = f"{stage.batch.rows_per_micro_batch} x {stage.batch.row_tokens} tokens a micro-batch"
    if of_pairs:
        rows = f"{stage.batch.rows_per_micro_batch} pairs a micro-batch"
    yield f"memory of one GPU in GB, {rows} (* the config's engine)"
    heads = [f"{column.name}{'*' if column == configured else ''}" for column in columns]
    yield _row("", heads)
    found = [memory.of(column) for column in columns]
    for part in PARTS:
        yield _row(f"  {part}", [f"{item.parts()[part] / 1e9:.2f}" for item in found])
    usable = machine.gpu.usable_bytes
    yield _row("  total", [f"{item.total / 1e9:.2f}{'' if item.total <= usable else ' !'}" for item in found])
    yield _row(
        f"  most {'pairs' if of_pairs else 'rows'} that fit",
        [str(memory.most_rows(column, usable)) for column in columns],
    )
    if any(item.total > usable for item in found):
        yield f"  ! more than the {usable / 1e9:.1f} GB that are usable"
    if configured.offload_optimizer:
        yield f"  offloaded to the host: {memory.of(configured).static.host / 1e9:.2f} GB for each GPU"


def _trained(memory: StageMemory) -> str:
    counts = dict.fromkeys(GROUPS, 0)
    for key, value in memory.captioner.named_parameters():
        counts[group_of(key)] += value.numel() if value.requires_grad else 0
    named = [f"{group} {count:,}" for group, count in counts.items() if count]
    return f"{' + '.join(named)} of {memory.sizes.total:,} weights train"


def _row(name: str, values: list[str]) -> str:
    return f"{name:<{NAMES}}" + "".join(f"{value:>{COLUMN}}" for value in values)


def _time_lines(took: Duration, lengths: Lengths, machine: Machine, precision: Precision) -> Iterator[str]:
    gpu, rate = machine.gpu, machine.gpu.flops_per_s(precision)
    mean = sum(lengths.tokens) / len(lengths.tokens)
    yield (
        f"time: {took.num_steps:,} steps of {took.step_s:.2f} s = {took.hours:.1f} h, "
        f"{took.gpu_hours:.1f} GPU-hours"
    )
    mfu, why = (machine.mfu, "as given") if machine.mfu else (gpu.mfu, gpu.mfu_source)
    yield (
        f"  {lengths.num_samples:,} samples of {mean:.0f} tokens ({lengths.origin}), "
        f"{took.flops_per_sample / 1e12:.1f} TFLOP each; MFU {mfu:.2f} of {rate / 1e12:.0f} TFLOP/s "
        f"assumed ({why})"
    )
