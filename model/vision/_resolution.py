"""A tower at another resolution than its checkpoint's: position embeddings interpolated once, at load.

Shape legend: K class token and patches at the new size, D tower width.
"""

from __future__ import annotations

from typing import Any

import torch

from prismcap.configs.errors import ConfigError


@torch.no_grad()
def resize_positions(tower: Any, image_size: int) -> None:
    """Make `image_size` the tower's own: its embeddings, and its config, from which exports are made.

    The new table is that of the tower's `interpolate_pos_encoding` (bicubic), which would make it anew for
    every batch. Raises ConfigError when the patches do not fill `image_size`.
    """
    config, embeddings = tower.config, tower.embeddings
    if image_size == config.image_size:
        return
    patch = config.patch_size
    if image_size % patch:
        lower, upper = image_size // patch * patch, (image_size // patch + 1) * patch
        raise ConfigError(
            f"image_size {image_size} is not divisible by the tower's {patch} px patches: "
            f"take {lower or upper} or {upper}"
        )
    state = embeddings.state_dict()
    name = next(key for key in state if key.startswith("position_embedding"))
    old_patches = (config.image_size // patch) ** 2
    num_class_tokens = state[name].shape[-2] - old_patches
    # only its shape is read
    shaped = state[name].new_empty(1, (image_size // patch) ** 2 + num_class_tokens, config.hidden_size)
    table_1KD = embeddings.interpolate_pos_encoding(shaped, image_size, image_size)
    config.image_size = image_size
    # the one part of a tower that depends on the size: table, position ids, checks of the input
    resized = type(embeddings)(config).to(state[name].dtype)
    state[name] = table_1KD.reshape(resized.state_dict()[name].shape)
    resized.load_state_dict(state)
    tower.embeddings = resized
