"""How deep in its group a parameter lies, by its name and its place in the module."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from prismcap.configs.errors import ConfigError

# transformers: layers.3, layer.3, h.3; timm: blocks.3, stages.1.blocks.0, blocks.2.1, layer3.0
_LAYER = re.compile(r"\.(?:layers?|blocks?|stages?|h)\.?(\d+)(?:\.(?:blocks\.)?(\d+))?\.")


def layer_of(name: str) -> tuple[int, ...] | None:
    """The number of the layer that a parameter belongs to; two where stages hold blocks."""
    found = _LAYER.search(f".{name}")
    return tuple(int(number) for number in found.groups() if number) if found else None


def layers_below_top(names: Sequence[str], trained: Collection[str], where: str) -> dict[str, int]:
    """For every name how many layers it lies below the highest that trains.

    names: all of one group, in the order of the module. What stands before the first layer there (embeddings,
    a stem) counts as one layer more, below it; what stands after belongs to the last one (norms, a head).
    Raises ConfigError for names without numbered layers.
    """
    layers = {name: layer for name in names if (layer := layer_of(name)) is not None}
    if not layers:
        raise ConfigError(f"{where}: the parameters have no numbered layers ({', '.join(names[:3])}, …)")
    order = {layer: depth for depth, layer in enumerate(sorted(set(layers.values())), start=1)}
    depths: dict[str, int] = {}
    outside = 0
    for name in names:
        depths[name] = order[layers[name]] if name in layers else outside
        if name in layers:
            outside = len(order)
    top = max(depths[name] for name in trained)
    return {name: top - depth for name, depth in depths.items()}
