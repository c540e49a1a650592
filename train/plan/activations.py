"""How much memory one forward and backward pass takes beside weights, gradients and optimiser.

Counted, not computed: a captioner of shapes (build.shape_captioner) runs the code of training, and every
tensor is followed from its making to its end.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prismcap.configs.schema.stage import Precision
from prismcap.data.schema import Batch
from prismcap.model.captioner import Captioner
from prismcap.model.kernels import decoder_layers
from prismcap.model.precision import autocast

# even numbers: some models take turns between two kinds of attention
LAYERS_RUN = (2, 4)
VISION, LLM, LOGITS = "vision", "activations", "logits"


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive, by the part that was at work when they were made.

    `peak` is how they were divided when they were most. Memory that several tensors share counts once;
    `outside` (weights, gradients) does not count. What a kernel takes and gives back within is not seen.
    """

    def __init__(self, outside: Iterable[Tensor]) -> None:
        super().__init__()
        self.part = LLM
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._known = {tensor.untyped_storage()._cdata for tensor in outside}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.add(result)
        elif isinstance(result, list | tuple):
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self.add(value)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count its memory until it ends, unless that is known."""
        storage = tensor.untyped_storage()
        key, part, size = storage._cdata, self.part, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now[part] += size
        weakref.finalize(storage, self._remove, key, part, size)
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    def _remove(self, key: int, part: str, size: int) -> None:
        self._known.discard(key)
        self.now[part] -= size


def activation_bytes(captioner: Captioner, batch: Batch, precision: Precision) -> Counter[str]:
    """Peak of one micro-batch by part (vision, activations of the LLM, logits), its own tensors included.

    As in the second micro-batch of a step, when all gradients are there. The captioner is prepared for its
    stage (trainable.prepare_stage). Works on real tensors alike; the gradients are gone afterwards.
    Of an LLM whose layers are all alike, few are run: each further one adds the same.
    """
    layers = repeated_layers(captioner.llm)
    if layers is None or len(layers) <= LAYERS_RUN[1]:
        return _peak(captioner, batch, precision)
    few, more = (_peak_of_some(captioner, layers, num, batch, precision) for num in LAYERS_RUN)
    rest = len(layers) - LAYERS_RUN[1]
    step = LAYERS_RUN[1] - LAYERS_RUN[0]
    parts = more.keys() | few.keys()
    return Counter({part: more[part] + (more[part] - few[part]) * rest // step for part in parts})


def repeated_layers(llm: Any) -> nn.ModuleList | None:
    """The list of the LLM's layers if all have tensors of the same shapes, else None."""
    layers = decoder_layers(llm)
    for module in llm.modules():
        if isinstance(module, nn.ModuleList) and list(module) == layers:
            kinds = {tuple((key, value.shape) for key, value in layer.named_parameters()) for layer in module}
            return module if len(kinds) == 1 else None
    return None


def _peak_of_some(
    captioner: Captioner, layers: nn.ModuleList, num: int, batch: Batch, precision: Precision
) -> Counter[str]:
    whole = layers._modules
    layers._modules = dict(list(whole.items())[:num])
    try:
        return _peak(captioner, batch, precision)
    finally:
        layers._modules = whole


def _peak(captioner: Captioner, batch: Batch, precision: Precision) -> Counter[str]:
    captioner.train()
    trained = [parameter for parameter in captioner.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    outside = [*captioner.parameters(), *captioner.buffers(), *gradients]
    live = LiveBytes(outside)
    with live, _parts(captioner, live):
        for item in fields(batch):
            value = getattr(batch, item.name)
            if isinstance(value, Tensor):
                live.part = VISION if item.name in ("tiles", "features") else LLM
                live.add(value)
        live.part = LLM
        with autocast(captioner.device, precision):
            loss = captioner(batch).loss_sum
        loss.backward()
    for parameter in trained:
        parameter.grad = None
    return live.peak


@contextmanager
def _parts(captioner: Captioner, live: LiveBytes) -> Iterator[None]:
    """Tell `live` which part is at work: by hooks in the forward pass, by the gradient of the hidden states
    in the backward pass, where the logits' comes first."""

    def enter(part: str) -> Any:
        def hook(*_: Any) -> None:
            live.part = part

        return hook

    def leave_llm(_: Any, __: Any, output: Any) -> None:
        live.part = LOGITS
        hidden_BTH = output.last_hidden_state
        if hidden_BTH.requires_grad:
            hidden_BTH.register_hook(enter(LLM))

    handles = [captioner.llm.base_model.register_forward_hook(leave_llm)]
    for module in (captioner.vision_encoder, captioner.connector):
        handles.append(module.register_forward_pre_hook(enter(VISION)))
        handles.append(module.register_forward_hook(enter(LLM)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
