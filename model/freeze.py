"""Which parameters of a group train: all that its forward reads, or those whose names match patterns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from prismcap.configs.errors import ConfigError


def unfreeze(module: nn.Module, only: Sequence[str] | None, unread: Collection[str], where: str) -> None:
    """Let the parameters train that are read and match; the others are left as they are.

    unread: names that forward never reads: they would have no gradient. `where`: the key of the patterns.
    """
    read = {name: value for name, value in module.named_parameters() if name not in unread}
    for name in matching(list(read), only, where):
        read[name].requires_grad_(True)


def matching(names: Sequence[str], only: Sequence[str] | None, where: str) -> list[str]:
    """The names that match a pattern, in their order; all of them without patterns.

    Patterns are those of a shell (fnmatch), case counting: `*` any text, dots too; `?` one character;
    `[0-9]` one of these. Raises ConfigError for a pattern that matches nothing.
    """
    if only is None:
        return list(names)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ConfigError(
                f"{where}: {pattern!r} matches none of the {len(names)} parameters that could train; "
                f"near it: {', '.join(near) or 'none'}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in only)]
