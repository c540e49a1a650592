"""Models of shapes without values: built, run forward and backward, and counted, without weights or memory.

torch's FakeTensorMode knows shape, dtype and device of every result and computes none of them. What the
model decides by value are only positions in the batch (segments, spans, targets): those stay real tensors,
so that the very code of training runs. build.shape_captioner makes such a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def shapes_only() -> Iterator[FakeTensorMode]:
    """Inside, new tensors have shapes and no values, and builders read configs where they would read weights.

    What was made inside keeps its nature outside. Run it outside: there, tensors of positions have values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def is_shapes_only() -> bool:
    """Whether no weights are to be read here: inside of shapes_only."""
    return active_fake_mode() is not None
