"""Other kernels for the layers of the LLM: compiled by torch, or Liger's.

Each layer is compiled for itself. All of them are one program, so it is compiled once, in seconds to minutes
instead of the many minutes that thirty unrolled layers take.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.configs.schema.stage import KernelConfig
from prismcap.model.captioner import Captioner


def apply_kernels(captioner: Captioner, config: KernelConfig, device: torch.device) -> None:
    """Change the LLM's layers in place; names and weights stay. After prepare_stage, before the engine.

    Raises ConfigError where the device, the LLM or the machine cannot do it, MissingExtraError without
    liger-kernel.
    """
    if config.compile:
        _compile(captioner.llm)
        captioner.compiled = True
    if config.liger:
        _apply_liger(captioner.llm, device)


def decoder_layers(llm: Any) -> list[GradientCheckpointingLayer]:
    """The repeated blocks of a causal LM of transformers, in order."""
    return [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def uncompiled(llm: Any) -> Iterator[None]:
    """Run compiled layers as they were. Generation needs it: each new length of the cache would be another
    program to compile."""
    compiled = any(layer._compiled_call_impl is not None for layer in decoder_layers(llm))
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def _compile(llm: Any) -> None:
    compiler = os.environ.get("CXX", "g++")  # what torch takes
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"kernels.compile: true needs a C++ compiler, and there is no {compiler}: install g++ (or name "
            "another one in $CXX), or set kernels.compile: false"
        )
    layers = decoder_layers(llm)
    if not layers:
        raise ConfigError(
            f"kernels.compile: true: the layers of {llm.config.model_type} are not known: set it to false"
        )
    for layer in layers:
        # lengths of rows and samples differ from batch to batch
        layer.compile(dynamic=True)


def _apply_liger(llm: Any, device: torch.device) -> None:
    if device.type != "cuda":
        raise ConfigError(
            f"kernels.liger: true needs a GPU (Liger's kernels are written in Triton), this run is on the "
            f"{device.type}: set it to false"
        )
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise MissingExtraError("liger-kernel", "gpu", "kernels.liger: true") from error
    if llm.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"kernels.liger: true: Liger has no kernels for {llm.config.model_type}: set it to false"
        )
    # the loss is this project's own: chunked, and only over supervised positions
    _apply_liger_kernel_to_instance(model=llm, cross_entropy=False, fused_linear_cross_entropy=False)
