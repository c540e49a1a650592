"""Models of shapes without values: built, run forward and backward, and counted, without weights or memory.

torch's FakeTensorMode knows shape, dtype and device of every result and computes none of them. What the
model decides by value are only positions in the batch (segments, spans, targets): those stay real tensors,
so that the very code of training runs. build.shape_captioner makes such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights


@contextmanager
def shapes_only() -> Iterator[FakeTensorMode]:
    """Inside, new tensors have shapes and no values, and builders read configs where they would read weights.

    What was made inside keeps its nature outside. Run it outside: there, tensors of positions have values.
    Nothing is initialised (some of torch's ways ask for values): call tie_weights of a model that ties them.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, no_init_weights(), _converted_in_place():
        yield mode


@contextmanager
def _converted_in_place() -> Iterator[None]:
    """Let Module.to and its like set `data`: torch swaps whole tensors without values, and then refuses to,
    since its own mode refers to them."""
    usual = nn.Module._apply

    def apply(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(convert)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.data = convert(tensor.data)
        return module

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = usual  # type: ignore[method-assign]


def is_shapes_only() -> bool:
    """Whether no weights are to be read here: inside of shapes_only."""
    return active_fake_mode() is not None
