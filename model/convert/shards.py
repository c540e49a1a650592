"""The weights of a Hugging Face directory, written shard by shard, so that only one is in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prismcap.configs.errors import ConfigError
from prismcap.model.hf.files import write_json


class ShardWriter:
    """`write` a shard after the other, then `finish`. `shapes`, `dtypes`: of all that was written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._shards: list[list[str]] = []
        self._num_bytes = 0

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """One more shard; none for no tensors. Raises ConfigError for a name that an earlier one has, OSError
        when it cannot be written."""
        if not tensors:
            return
        twice = sorted(self.shapes.keys() & tensors.keys())
        if twice:
            raise ConfigError(f"{self.folder.name}: weights that are in two files: {', '.join(twice[:3])}")
        self.folder.mkdir(parents=True, exist_ok=True)
        # copies: safetensors takes no tensors that share memory
        shard = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
        place = self.folder / _aside(len(self._shards))
        try:
            save_file(shard, place, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{place}: the weights cannot be written: {error}") from error
        self._shards.append(list(shard))
        self.shapes |= {name: value.shape for name, value in shard.items()}
        self.dtypes |= {name: value.dtype for name, value in shard.items()}
        self._num_bytes += sum(value.nbytes for value in shard.values())

    def finish(self) -> None:
        """Give the shards their names, and write their index where there are several."""
        count = len(self._shards)
        places: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            numbers = f"-{index + 1:05d}-of-{count:05d}" if count > 1 else ""
            place = f"model{numbers}.safetensors"
            (self.folder / _aside(index)).rename(self.folder / place)
            places |= dict.fromkeys(names, place)
        if count > 1:
            index_values = {"metadata": {"total_size": self._num_bytes}, "weight_map": places}
            write_json(self.folder / "model.safetensors.index.json", index_values)


def _aside(index: int) -> str:
    return f".shard-{index}.safetensors"


def account_for(
    found: Mapping[str, torch.Size],
    expected: Mapping[str, torch.Size],
    unknown: Sequence[str],
    source: Path,
    owner: str,
) -> None:
    """Raises ConfigError unless `found` is exactly `expected` and no name of the files is `unknown`.

    owner: whose layout it is, for the message, which names weights of every kind.
    """
    problems = {
        f"not {owner}'s": unknown,
        "more than the config has": [name for name in found if name not in expected],
        "missing": [name for name in expected if name not in found],
        "of another shape": [
            f"{name} {list(found[name])}, not {list(expected[name])}"
            for name in found.keys() & expected.keys()
            if found[name] != expected[name]
        ],
    }
    told = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}" for what, names in problems.items() if names
    ]
    if told:
        raise ConfigError(f"{source}: the weights are not those of config.json: {'; '.join(told)}")
