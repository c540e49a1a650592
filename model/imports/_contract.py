"""What an import is: released weights in their own layout, read into what configs of this project name.

A layout is one file of this folder: `class Options(Section)`, its `key=value` on the command line, and
`build(options, source, folder) -> Imported`. It writes what is large into `folder`, a shard at a time:
`folder/llm` and `folder/vision_encoder`, directories that those components load. What is small comes back as
the weights of one stage. scripts/importing.py makes a run's folder of both, as training leaves one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.data import Geometry


@dataclass(frozen=True)
class ImportedRun:
    """A captioner in words, and the weights of its last stage.

    model: the config's `model`. vision_encoder and llm without a `path` lie in the folder, under these names.
    weights: by the captioner's parameter names. train: the stage's `train`, which means exactly `weights`;
    its rates are those of the original's last stage. prompt: what captioning asks by default.
    """

    model: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, Tensor]
    train: Mapping[str, Mapping[str, Any]]
    template: Mapping[str, Any]
    geometry: Geometry
    prompt: str | None = None


@dataclass(frozen=True)
class Imported:
    """run: None where the files hold parts of a captioner alone. notes: what a user should know, a sentence
    each."""

    run: ImportedRun | None
    notes: Sequence[str] = ()


def of_connector(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The connector's tensors by the captioner's names."""
    return {f"connector.{name}": value for name, value in tensors.items()}


def require(value: str | None, key: str, what: str) -> str:
    """An option that this source needs. Raises ConfigError saying what it is."""
    if value is None:
        raise ConfigError(f"{key}=… is needed: {what}")
    return value
