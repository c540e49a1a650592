"""The tensors of released files, dealt out by name: into directories of weights, or kept for the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prismcap.model.convert.checkpoint import read_tensors
from prismcap.model.convert.shards import ShardWriter, account_for
from prismcap.model.hf.files import write_json

KEPT = "connector"
LLM, VISION = "llm", "vision_encoder"  # directories of weights
LEFT_OUT = "left out"  # the part of what is known and not needed
# tables that older versions of transformers saved, and that are made from the config
TABLES = (".rotary_emb.inv_freq", ".position_ids")
Route = Callable[[str], tuple[str, str] | None]
Convert = Callable[[str, str, Tensor], Mapping[str, Tensor]]


def as_they_are(part: str, name: str, value: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG001
    """A Convert that changes nothing."""
    return {name: value}


class Parts:
    """`read` the files, then `finish`. `kept`: the connector's tensors, by its own names.

    owner: whose layout it is, for messages.
    """

    def __init__(self, source: Path, folder: Path, owner: str) -> None:
        self.source, self.folder, self.owner = source, folder, owner
        self.kept: dict[str, Tensor] = {}
        self._writers: dict[str, ShardWriter] = {}
        self._unknown: list[str] = []

    def read(self, files: Iterable[Path], route: Route, convert: Convert = as_they_are) -> None:
        """One file after the other.

        route: a name of theirs to a part and a name there: KEPT, or a directory of `folder`, or LEFT_OUT;
        None for what the layout does not know. convert: what one tensor becomes there. Raises ConfigError
        for damaged files, and for pickles of more than tensors.
        """
        for file in files:
            dealt: dict[str, dict[str, Tensor]] = {}
            for name, value in read_tensors(file, lambda name: self._is_wanted(name, route)).items():
                found = route(name)
                assert found is not None
                part, new_name = found
                dealt.setdefault(part, {}).update(convert(part, new_name, value))
            for part, tensors in dealt.items():
                if part == KEPT:
                    self.kept |= {name: value.clone() for name, value in tensors.items()}
                else:
                    self._writers.setdefault(part, ShardWriter(self.folder / part)).write(tensors)

    def _is_wanted(self, name: str, route: Route) -> bool:
        if name.endswith(TABLES):
            return False
        found = route(name)
        if found is None:
            self._unknown.append(name)
        return found is not None and found[0] != LEFT_OUT

    def has(self, part: str) -> bool:
        """Whether the files held something of a directory."""
        return part in self._writers

    def finish(self, models: Mapping[str, nn.Module]) -> None:
        """Hold each directory against the model that will load it, without values.

        Raises ConfigError naming what is unknown, missing, too much or of another shape: unknown names are
        the files' own, the others the models', behind their directory's.
        """
        found: dict[str, torch.Size] = {}
        expected: dict[str, torch.Size] = {}
        for part, writer in self._writers.items():
            writer.finish()
            found |= {f"{part}: {name}": shape for name, shape in writer.shapes.items()}
        for part, model in models.items():
            shapes = {name: value.shape for name, value in model.state_dict().items()}
            tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
            # a tied head may stand in the files a second time, and may not
            if tied and f"{part}: lm_head.weight" not in found:
                shapes.pop("lm_head.weight", None)
            expected |= {f"{part}: {name}": shape for name, shape in shapes.items()}
        account_for(found, expected, self._unknown, self.source, self.owner)

    def write_config(self, part: str, values: Mapping[str, Any]) -> None:
        """config.json of a directory, with the dtype of its weights (fp32 where they have several)."""
        dtypes = set(self._writers[part].dtypes.values())
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        write_json(self.folder / part / "config.json", {**values, "dtype": str(dtype).removeprefix("torch.")})
