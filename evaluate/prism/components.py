"""Perceivers and reasoners of a config: built one at a time, so that only one holds its weights."""

from __future__ import annotations

import gc
import sys

from prismcap.configs.registry import component_options
from prismcap.configs.schema.prism import Decoding, LocalConfig, PrismConfig
from prismcap.evaluate.perceivers._contract import Perceiver, PerceiverContext
from prismcap.evaluate.reasoners._contract import Reasoner, ReasonerContext


def build_perceiver(config: PrismConfig, name: str, decoding: Decoding, device: str) -> Perceiver:
    """A perceiver of the config; its weights are loaded at its first request."""
    module, options = component_options("perceiver", config.perceivers[name], f"perceivers.{name}")
    context = PerceiverContext(name, decoding, device, config.local.batch_size)
    built: Perceiver = module.build(options, context)
    return built


def build_reasoner(config: PrismConfig, name: str, decoding: Decoding, device: str) -> Reasoner:
    """A reasoner of the config; its weights are loaded at its first request."""
    module, options = component_options("reasoner", config.reasoners[name], f"reasoners.{name}")
    context = ReasonerContext(name, decoding, device, config.local.batch_size, config.seed)
    built: Reasoner = module.build(options, context)
    return built


def set_threads(local: LocalConfig) -> None:
    """What `local.num_threads` says, before a model works. Without it torch decides."""
    if local.num_threads is not None:
        import torch

        torch.set_num_threads(local.num_threads)


def free_memory() -> None:
    """After the last reference to a component is gone: its weights make room for the next one's."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
