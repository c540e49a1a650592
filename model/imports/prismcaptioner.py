"""PrismCaptioner as released (arXiv 2406.14544; the layout is XTuner's): a peft adapter in `llm_adapter/` and
a projector in `projector/`, on SigLIP-SO400M-384 and InternLM2, neither of which is beside them.

The adapter is of InternLM2's packed layers, the LLM here is InternLM2 as a LLaMA: what the adapter adds to
`wqkv` is taken apart as `prismcap convert internlm2` takes the weight apart. It was trained over an LLM in 4
bits, and is merged into the unrounded one, as the authors' own code does.

The authors' code drops the first feature of the tower, a habit of CLIP's class token; SigLIP has none, so
that 728 of 729 patches are left: `drop_first_patch: true`. New training should not have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, LlamaConfig

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.model.convert.checkpoint import read_json, weight_files
from prismcap.model.convert.internlm2 import to_llama
from prismcap.model.huggingface import local_or_hub, refuse_unconverted
from prismcap.model.imports._adapter import Adapter, Rename, merge
from prismcap.model.imports._contract import Imported, ImportedRun, of_connector
from prismcap.model.imports._directories import lasting, read_config
from prismcap.model.imports._parts import Parts
from prismcap.model.imports._projector import connector_of, route_projector

PROJECTOR = re.compile(r"model\.(.+)")
# `human1` of the authors' prompts
PROMPT = (
    "Describe the fine-grained content of the image, including scenes, objects, relationships, instance "
    "location, and any text present."
)
RATE = 2e-4


class Options(Section):
    """llm: the directory of `prismcap convert internlm2`. vision_encoder: directory or hub name of SigLIP."""

    llm: str
    vision_encoder: str = "google/siglip-so400m-patch14-384"


def build(options: Options, source: Path, folder: Path) -> Imported:
    """Raises ConfigError for another layout, unknown and missing weights, and an LLM not converted."""
    if (source / "visual_encoder_adapter").exists():
        raise ConfigError(f"{source}: holds a visual_encoder_adapter: PrismCaptioner's tower is frozen")
    projector = source / "projector"
    _check_projector(projector)
    parts = Parts(source, folder, "PrismCaptioner")
    parts.read(weight_files(projector), _route)
    refuse_unconverted(options.llm, None)
    merge(Adapter(source / "llm_adapter"), options.llm, parts, _renamed(options.llm))
    return Imported(
        ImportedRun(
            model={
                "vision_encoder": {
                    "name": "siglip",
                    "path": lasting(options.vision_encoder),
                    "drop_first_patch": True,
                },
                "connector": connector_of(parts.kept, projector),
                "llm": {"name": "causal_lm"},
            },
            weights=of_connector(parts.kept),
            train={"connector": {"lr": RATE}},
            template={"name": "internlm2"},
            geometry="pad",
            prompt=PROMPT,
        )
    )


def _check_projector(projector: Path) -> None:
    where = projector / "config.json"
    config = read_json(where)
    for key, expected in (("model_type", "projector"), ("hidden_act", "gelu"), ("bias", True)):
        if config.get(key, expected) != expected:
            raise ConfigError(f"{where}: {key} is {config[key]!r}, expected {expected!r}")


def _route(name: str) -> tuple[str, str] | None:
    return route_projector(PROJECTOR, name)


def _renamed(llm: str) -> Rename:
    """InternLM2's names as LLaMA's, its packed rows apart."""
    config = read_config(AutoConfig, local_or_hub(llm), trust_remote_code=False)
    if not isinstance(config, LlamaConfig):
        raise ConfigError(f"llm={llm}: a {config.model_type}, expected InternLM2 converted to a LLaMA")

    def rename(name: str, value: Tensor) -> Mapping[str, Tensor]:
        return to_llama(name, value, config)

    return rename
