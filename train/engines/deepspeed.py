"""DeepSpeed ZeRO 0-3 under torchrun. The only file that imports deepspeed, and that knows its habits:

- It divides by its accumulation steps (`scale_wrt_gas=False` stops that) and by the number of ranks
  (undone in `undo_averaging`); it decides by a counter when a step is complete (overridden).
- It clips, and finds gradients that are not finite, inside `step()`; weights and moments then stay as they
  were, and what it had accumulated is dropped. To drop a step for another reason we make its gradient nan.
- A rank that raises within its save leaves the others waiting in its barriers: errors are kept until after.
- With `precision: bf16` it turns the weights themselves to bf16 and keeps fp32 masters of what
  trains in its shards; what is saved as weights are the masters.
- Its checkpoints are pickles. They are loaded only from a run's own folder after every file matched
  the manifest, which guards against damage, not against malice.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from prismcap.configs.errors import MissingExtraError
from prismcap.configs.schema.base import Section
from prismcap.configs.schema.stage import Precision, StageConfig
from prismcap.data.schema import Batch, DataError
from prismcap.model.captioner import Captioner, Output
from prismcap.model.precision import autocast
from prismcap.model.trainable import trainable_parameters
from prismcap.train.distributed import TIMEOUT, Ranks
from prismcap.train.encode_ahead import with_features
from prismcap.train.engines._contract import StepResult
from prismcap.train.files import write_json
from prismcap.train.optim import (
    build_optimizer,
    learning_rates,
    lr_factor,
    parameter_groups,
    set_learning_rates,
)
from prismcap.train.step import (
    accuracy,
    agree,
    check_gradient,
    checked_loss,
    kept_or_nan,
    mean_loss,
    without_target,
)

SHARDS = "zero"
STEP = "engine.json"
# with less free, a write that failed has failed for lack of space
NO_SPACE_BYTES = 16 * 2**20


class Options(Section):
    """ZeRO 1 shards the optimiser, 2 the gradients too, 3 the weights too."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = Field(default=False, description="optimiser state and step in CPU memory")
    bucket_size: int = Field(default=200_000_000, ge=1, description="elements reduced at once")
    hpz_partition_size: int = Field(
        default=1, ge=1, description="ZeRO++ hpZ: ranks of a node, to shard a second copy of the weights over"
    )

    @model_validator(mode="after")
    def _offload_needs_shards(self) -> Options:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1 or more")
        if self.hpz_partition_size > 1 and self.zero_stage != 3:
            raise ValueError("hpz_partition_size needs zero_stage 3: below it every rank has all weights")
        return self


def build(
    options: Options, captioner: Captioner, stage: StageConfig, total_steps: int, ranks: Ranks
) -> DeepSpeedEngine:
    return DeepSpeedEngine(options, captioner, stage, total_steps, ranks)


def undo_averaging(ranks: Ranks) -> int:
    """DeepSpeed divides the summed gradients by the number of ranks; the loss is scaled up by as much."""
    return ranks.world_size


def deepspeed_config(options: Options, stage: StageConfig) -> dict[str, Any]:
    """DeepSpeed's own config, made from the stage alone."""
    zero: dict[str, Any] = {
        "stage": options.zero_stage,
        "reduce_bucket_size": options.bucket_size,
        "allgather_bucket_size": options.bucket_size,
        "overlap_comm": False,
    }
    if options.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": False}
    if options.hpz_partition_size > 1:
        zero["zero_hpz_partition_size"] = options.hpz_partition_size
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    clip = stage.optimizer.clip_norm
    return {
        "train_micro_batch_size_per_gpu": 1,
        # any number above 1 makes CPU offload keep a sum over micro-batches; the number itself is unused
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0 if math.isinf(clip) else clip,
        "zero_optimization": zero,
        "bf16": {"enabled": weights_in_bf16(options, stage)},
        # our optimiser is torch's AdamW, also under offload: DeepSpeed's CPU Adam compiles C++ at first use
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def weights_in_bf16(options: Options, stage: StageConfig) -> bool:
    """Stage 0 shards nothing and keeps no masters: its weights stay fp32, under autocast."""
    return stage.precision == "bf16" and options.zero_stage > 0


class _Autocast(nn.Module):
    """Autocast from the inside: DeepSpeed switches off one that is entered around its forward."""

    def __init__(self, captioner: Captioner, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.captioner = captioner
        self.device = device
        self.precision: Precision = precision

    def forward(self, batch: Batch) -> Output:
        with autocast(self.device, self.precision):
            output: Output = self.captioner(batch)
        return output


class DeepSpeedEngine:
    """See the head of this file."""

    fixed_world_size = True

    def __init__(
        self, options: Options, captioner: Captioner, stage: StageConfig, total_steps: int, ranks: Ranks
    ) -> None:
        deepspeed = _import_deepspeed()
        self.step = 0
        self.captioner = captioner
        captioner.always_encodes = options.zero_stage == 3 and not stage.feature_cache
        self.stage = stage
        self.options = options
        self.total_steps = total_steps
        self.ranks = ranks
        groups = parameter_groups(captioner.named_parameters(), stage.train)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = build_optimizer(groups, stage.optimizer)
        _ensure_process_group(ranks)
        if options.zero_stage == 3:
            # gathered at its call, adapters too: in it the loss runs chunks, not equally many on each rank
            deepspeed.utils.set_z3_leaf_module(captioner.llm.get_output_embeddings(), True)
        wrapped = _Autocast(captioner, ranks.device, stage.precision)
        self.engine, *_ = deepspeed.initialize(
            model=wrapped,
            optimizer=self.optimizer,
            config=deepspeed_config(options, stage),
            dist_init_required=False,
        )
        self._set_lr()

    def _set_lr(self) -> None:
        set_learning_rates(self.optimizer, lr_factor(self.stage.schedule, self.step, self.total_steps))

    def train_step(self, micro_batches: Sequence[Batch], max_loss: float = math.inf) -> StepResult:
        step = agree(micro_batches, self.ranks)
        if step.num_target_tokens == 0:
            self.advance()
            return without_target()
        self.engine.train()
        with autocast(self.ranks.device, self.stage.precision):
            step = with_features(step, self.captioner, self.ranks.device)
        scale = undo_averaging(self.ranks) / step.num_target_tokens
        loss_sums, correct = [], []
        for i, batch in enumerate(step.micro_batches):
            last = i == len(step.micro_batches) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            output = self.engine(batch.to(self.ranks.device, non_blocking=True))
            loss_sums.append(output.loss_sum.detach())
            correct.append(output.num_correct)
            keep = kept_or_nan(output.loss_sum)
            if last and max_loss < math.inf and mean_loss(step, loss_sums, self.ranks) > max_loss:
                keep = keep * math.nan
            self.engine.backward(output.loss_sum * (scale * keep), scale_wrt_gas=False)
        grad_norm = self._optimizer_step()
        loss = checked_loss(step, loss_sums, self.ranks, max_loss)
        share = accuracy(step, [int(value) for value in correct], self.ranks)
        check_gradient(step, grad_norm, self.ranks)
        self.advance()
        return StepResult(loss, grad_norm, step.num_target_tokens, share)

    def _optimizer_step(self) -> float:
        """The norm of the gradient before clipping. Not finite: no step was made, the gradient is dropped."""
        if self.options.zero_stage > 0:
            self.engine.step()
            # without loss scaling, a step that DeepSpeed leaves out as an overflow is a broken gradient
            return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else math.inf
        # here the gradients are whole in every rank, and DeepSpeed neither reports nor checks them
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(grad_norm):
            self.engine.step()
        else:
            self.engine.zero_grad()
        return grad_norm

    def advance(self) -> None:
        self.step += 1
        self._set_lr()

    def learning_rates(self) -> dict[str, float]:
        return learning_rates(self.optimizer)

    def gathered_state(self) -> dict[str, Tensor]:
        """The fp32 masters where there are any. One parameter at a time, to spare memory."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in trainable_parameters(self.captioner).items():
            whole = parameter if self.options.zero_stage == 0 else safe_get_full_fp32_param(parameter)
            if self.ranks.is_first:
                assert whole is not None, name
                state[name] = whole.detach().to("cpu", torch.float32, copy=True)
        return state

    @contextmanager
    def eval_context(self) -> Iterator[None]:
        from deepspeed.runtime.zero import unwrap_model_for_generation

        self.captioner.eval()
        whole: Any = contextlib.nullcontext()
        if self.options.zero_stage == 3:
            # weights are whole and its hooks away: with them a module lets go of its weights after a call and
            # gathers them before the next, for which all ranks would have to run in step
            whole = unwrap_model_for_generation(self.engine)
        try:
            with (
                torch.no_grad(),
                whole,
                autocast(self.ranks.device, self.stage.precision),
            ):
                yield
        finally:
            self.captioner.train()

    def save(self, folder: Path) -> None:
        self.ranks.on_first(lambda: (folder / SHARDS).mkdir(exist_ok=True))
        with _errors_after(self.engine, folder):
            self.engine.save_checkpoint(
                str(folder), tag=SHARDS, save_latest=False, exclude_frozen_parameters=True
            )
        if self.ranks.is_first:
            write_json(folder / STEP, {"step": self.step, "zero_stage": self.options.zero_stage})

    def load(self, folder: Path) -> None:
        loaded, _ = self.engine.load_checkpoint(
            str(folder), tag=SHARDS, load_lr_scheduler_states=False, custom_load_fn=self._load_module
        )
        if loaded is None:
            raise DataError(f"{folder / SHARDS}: DeepSpeed cannot load this checkpoint")
        self.step = int(json.loads((folder / STEP).read_text(encoding="utf-8"))["step"])
        self._set_lr()

    def _load_module(self, src: Mapping[str, Tensor], dst: nn.Module) -> None:
        """Only what trains was saved; DeepSpeed's own way would want every weight, or check none."""
        # tied weights stand under each of their names here
        weights = dst.state_dict(keep_vars=True)
        expected = {name for name, value in weights.items() if value.requires_grad}
        # of the frozen ones DeepSpeed has left out one name alone
        times = Counter(id(value) for value in weights.values())
        tied = {name for name, value in weights.items() if times[id(value)] > 1}
        found = set(src) - (tied - expected)
        if found != expected:
            raise DataError(
                f"the checkpoint's weights are not those of this stage; only in one of both: "
                f"{sorted(found ^ expected)[:5]}"
            )
        # the key list was checked above
        dst.load_state_dict({name: src[name] for name in expected}, strict=False)

    def close(self) -> None:
        self.engine.destroy()
        self.engine = None
        gc.collect()


@contextmanager
def _errors_after(engine: Any, folder: Path) -> Iterator[None]:
    """Within, a write of DeepSpeed's that fails does not raise; the block's end does."""
    writer = engine.checkpoint_engine
    failed: list[OSError] = []

    def save(state_dict: Any, path: str) -> None:
        try:
            type(writer).save(writer, state_dict, path)
        except OSError as error:
            failed.append(error)
        except RuntimeError as error:
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            failed.append(_write_error(error, folder))

    writer.save = save
    # scripts that turn shards into weights: one more write that may fail, and ours are exported otherwise
    engine._copy_recovery_script = lambda save_path: None  # noqa: ARG005
    try:
        yield
    finally:
        del writer.save, engine._copy_recovery_script
    if failed:
        raise failed[0]


def _write_error(error: RuntimeError, folder: Path) -> OSError:
    """torch's zip writer says that a write failed, but not why."""
    full = shutil.disk_usage(folder).free < NO_SPACE_BYTES
    return OSError(errno.ENOSPC if full else errno.EIO, f"torch.save failed: {error}", str(folder))


def _import_deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("deepspeed", "deepspeed", "engine.name: deepspeed") from error
    # it logs every bucket at INFO
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # older names of collectives, said again in every step
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


def _ensure_process_group(ranks: Ranks) -> None:
    """DeepSpeed wants a process group even for one process; ours needs no port."""
    import deepspeed.comm
    import deepspeed.ops

    if ranks.device.type == "cpu":
        # its shared-memory collectives compile C++ at first use, where there is a compiler; gloo will do
        deepspeed.ops.__compatible_ops__ = {}
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # what torchrun would say; DeepSpeed insists
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed(dist_init_required=False)
