"""Floating point operations of a step: matrix products and convolutions, a multiply-add counting as two.

Two counts. `model`: what the stage's mathematics ask for, whatever computes it: real tokens only, attention
over what a token may see, nothing twice; of frozen parts no gradient of their weights, and a gradient of
their inputs only where something before them trains. Over time and the device's rate it is MFU. `executed`:
what runs here: padding, whole squares of attention, recomputation. Over time and rate it is HFU. (Both names:
arXiv 2204.02311, appendix B; attention is counted there without its causal half, here `model` has only it.)

Encoder, connector, LLM and head are each run once on tensors without values, under torch's own counter, with
the graph that training builds: so any architecture, any mix of frozen and trained weights, and LoRA count
right. What depends on the batch (tokens, tiles, sample lengths, supervised positions) multiplies these costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface

from prismcap.data.schema import Batch
from prismcap.model.attention import SEGMENTS, is_flattened
from prismcap.model.captioner import Captioner
from prismcap.model.lora import counted_as_lora
from prismcap.model.loss import num_chunks
from prismcap.model.segment_attention import LONGEST_OF_PRODUCTS, group_bounds

PARTS = ("vision_encoder", "connector", "llm", "attention", "head")
_PROBE = "prismcap_flop_probe"


@dataclass(frozen=True)
class BatchShape:
    """What of a micro-batch its operations depend on.

    rows, row_tokens: B and T, padding included. segments: the length of every sample. targets: supervised
    positions. tiles: image tiles; with cached_features the encoder does not run.
    """

    rows: int
    row_tokens: int
    segments: tuple[int, ...]
    targets: int
    tiles: int
    cached_features: bool = False


def shape_of(batch: Batch) -> BatchShape:
    """The shape of a packed batch."""
    rows, row_tokens = batch.input_ids.shape
    segment_ids = batch.segment_ids.cpu()
    keys = torch.arange(rows)[:, None] * (row_tokens + 1) + segment_ids
    _, lengths = torch.unique_consecutive(keys[segment_ids > 0], return_counts=True)
    return BatchShape(
        rows=rows,
        row_tokens=row_tokens,
        segments=tuple(lengths.tolist()),
        targets=batch.num_target_tokens,
        tiles=len(batch.tile_image),
        cached_features=batch.features is not None,
    )


@dataclass(frozen=True)
class Flops:
    """Operations by part (PARTS); llm: the layers' matrix products, without the head and attention's own."""

    model: Mapping[str, float]
    executed: Mapping[str, float]

    @property
    def total_model(self) -> float:
        return sum(self.model.values())

    @property
    def total_executed(self) -> float:
        return sum(self.executed.values())

    def __add__(self, other: Flops) -> Flops:
        return Flops(_added(self.model, other.model), _added(self.executed, other.executed))


def _added(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {part: first[part] + second[part] for part in PARTS}


@dataclass(frozen=True)
class Cost:
    """Operations of one unit: forward, backward, and what gradient checkpointing runs again."""

    forward: float
    backward: float
    repeated: float = 0.0

    @property
    def model(self) -> float:
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        return self.forward + self.backward + self.repeated


@dataclass(frozen=True)
class FlopModel:
    """What a captioner costs as it stands, made ready by prepare_stage, checkpointing on or off.

    encoder and connector: per tile. llm: per position. attention: per pair of positions, all layers and
    heads. scores_again: per pair, in the layers whose attention has a backward pass. head: per supervised
    position. implementation: of the LLM's attention. compiled: by kernels.apply_kernels, after which all
    samples are one group of attention.
    """

    implementation: str
    vocabulary: int
    trains_encoder: bool
    scores_again: float
    encoder: Cost
    connector: Cost
    llm: Cost
    attention: Cost
    head: Cost
    compiled: bool = False

    @classmethod
    def of(cls, captioner: Captioner) -> FlopModel:
        """Count every part, without computing anything (weights may be on "meta"). Before apply_kernels and
        before the engine is built: ZeRO-3 leaves weights without a shape.

        Raises RuntimeError for a model whose forward pass looks at values.
        """
        llm = captioner.llm
        implementation, checkpointed = llm.config._attn_implementation, llm.is_activation_checkpointing
        with _restored(captioner):
            captioner.disable_gradient_checkpointing()
            plain, once = _trials(captioner)
            again, calls = dict(plain), once
            if checkpointed:
                captioner.enable_gradient_checkpointing()
                again, calls = _trials(captioner)
        # every layer calls the probe of attention in the forward pass, and then again where it is repeated
        attention = sum(call.forward for call in calls) + sum(call.backward for call in calls[: len(once)])
        plain["attention"] = Cost(sum(call.forward for call in once), sum(call.backward for call in once))
        again["attention"] = Cost(attention, 0.0)
        costs = {part: replace(plain[part], repeated=again[part].model - plain[part].model) for part in PARTS}
        return cls(
            implementation=implementation,
            vocabulary=int(llm.get_output_embeddings().out_features),
            trains_encoder=captioner.trains_encoder,
            scores_again=sum(call.forward for call in once if call.backward) / 2,
            encoder=costs["vision_encoder"],
            connector=costs["connector"],
            llm=costs["llm"],
            attention=costs["attention"],
            head=costs["head"],
        )

    def micro_batch(self, shape: BatchShape) -> Flops:
        """Forward and backward of one micro-batch."""
        encoded = 0 if shape.cached_features else shape.tiles
        # without a picture, one blank tile goes through the connector, and through an encoder that trains
        encoder_runs = encoded if shape.tiles else int(self.trains_encoder)
        pairs = sum(length * (length + 1) / 2 for length in shape.segments)
        chunked = num_chunks(shape.targets, self.vocabulary) > 1
        return Flops(
            model={
                "vision_encoder": self.encoder.model * encoded,
                "connector": self.connector.model * shape.tiles,
                "llm": self.llm.model * sum(shape.segments),
                "attention": self.attention.model * pairs,
                "head": self.head.model * shape.targets,
            },
            executed={
                "vision_encoder": self.encoder.executed * encoder_runs,
                "connector": self.connector.executed * max(1, shape.tiles),
                "llm": self.llm.executed * shape.rows * shape.row_tokens,
                "attention": self._attention_executed(shape, pairs),
                "head": (self.head.executed + chunked * self.head.forward) * shape.targets,
            },
        )

    def _attention_executed(self, shape: BatchShape, pairs: float) -> float:
        cost = self.attention.executed
        # a fused kernel makes the scores, one of the two forward products, again in its backward pass
        fused = cost + self.scores_again
        if is_flattened(self.implementation):
            return fused * pairs
        if self.implementation == SEGMENTS:
            # a batch without samples runs each of its rows as one
            lengths = sorted(shape.segments or (shape.row_tokens,) * shape.rows, reverse=True)
            bounds = group_bounds(lengths, 0.0) if self.compiled else group_bounds(lengths)
            groups = [(lengths[first], end - first) for first, end in pairwise(bounds)]
            return sum(
                (cost if longest <= LONGEST_OF_PRODUCTS else fused) * num_samples * longest**2
                for longest, num_samples in groups
            )
        return (cost if self.implementation == "eager" else fused) * shape.rows * shape.row_tokens**2

    def step(self, shapes: Iterable[BatchShape]) -> Flops:
        """The sum over micro-batches."""
        nothing = dict.fromkeys(PARTS, 0.0)
        return sum((self.micro_batch(shape) for shape in shapes), Flops(nothing, nothing))


@contextmanager
def _restored(captioner: Captioner) -> Iterator[None]:
    """Shapes alone are computed, in the mode that trains, the LLM's attention by the probe and the encoder's
    in plain products; afterwards modes, checkpointing and attention are as before."""
    llm = captioner.llm
    implementation, checkpointed = llm.config._attn_implementation, llm.is_activation_checkpointing
    modes = {module: module.training for module in captioner.modules()}
    AttentionInterface.register(_PROBE, _probe_attention)
    try:
        llm.config._attn_implementation = _PROBE
        captioner.train()
        # a captioner of shapes (model/shapes.py) has a mode of its own, and two of them do not mix
        mode = getattr(next(captioner.parameters()), "fake_mode", None)
        mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
        with mode, sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), counted_as_lora(captioner):
            yield
    finally:
        llm.config._attn_implementation = implementation
        captioner.disable_gradient_checkpointing()
        if checkpointed:
            captioner.enable_gradient_checkpointing()
        for module, mode in modes.items():
            module.training = mode


def _trials(captioner: Captioner) -> tuple[dict[str, Cost], list[Cost]]:
    """Every part run once, for one tile or one position; and what each call of attention noted."""
    encoder, connector, llm = captioner.vision_encoder, captioner.connector, captioner.llm
    head, embeddings = llm.get_output_embeddings(), llm.get_input_embeddings()
    size, width = encoder.image_spec.size_px, embeddings.embedding_dim
    device, dtype = captioner.device, next(connector.parameters()).dtype
    tile = torch.zeros(1, 3, size, size, device=device, dtype=dtype)
    before_connector = captioner.trains_encoder
    features = torch.zeros(1, encoder.features_per_tile, encoder.hidden_size, device=device, dtype=dtype)
    features.requires_grad_(before_connector)
    pictures = torch.zeros(1, 1, width, device=device, requires_grad=before_connector or _trains(connector))
    # a value, and not a shape alone: some rotary embeddings look for the largest position
    position = torch.tensor([[0]], device=device)
    # as training makes them: checkpointing an LLM with LoRA lets its embeddings require a gradient
    token = embeddings(position) + pictures
    trained = token.requires_grad or _trains(llm.base_model)
    hidden = torch.zeros(1, width, device=device, dtype=dtype, requires_grad=trained)
    probe: list[Cost] = []
    inputs = {
        "attention_mask": torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device),
        "position_ids": position,
        "flop_probe": probe,
    }

    def layers() -> Tensor:
        output: Tensor = llm.base_model(inputs_embeds=token, use_cache=False, **inputs).last_hidden_state
        return output

    costs = {
        "vision_encoder": _trial(lambda: captioner.encode_images(tile), encoder),
        "connector": _trial(lambda: connector(features), connector),
        "llm": _trial(layers, llm.base_model),
        "head": _trial(lambda: head(hidden), head),
    }
    return costs, probe


def _trial(run: Callable[[], Tensor], module: nn.Module) -> Cost:
    with FlopCounterMode(display=False) as forward:
        output = run()
    if not output.requires_grad:
        return Cost(forward.get_total_flops(), 0.0)
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters]
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return Cost(forward.get_total_flops(), backward.get_total_flops())


def _probe_attention(
    _: nn.Module,
    query_BATF: Tensor,
    key_BGTF: Tensor,
    value_BGTF: Tensor,
    *__: Any,
    flop_probe: list[Cost],
    **___: Any,
) -> tuple[Tensor, None]:
    """In place of attention: notes the products of one layer, per pair of positions, and lets gradients
    through to what they would reach."""
    unit = 2 * query_BATF.shape[1] * query_BATF.shape[3]
    needed = [heads.requires_grad for heads in (query_BATF, key_BGTF, value_BGTF)]
    # the gradients of query, key and value, and that of the weights, which the first two are made from
    flop_probe.append(Cost(2.0 * unit, float(unit * (sum(needed) + (needed[0] or needed[1])))))
    shared = query_BATF.shape[1] // key_BGTF.shape[1]
    mixed = query_BATF + (key_BGTF + value_BGTF).repeat_interleave(shared, dim=1)
    return mixed.transpose(1, 2), None


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
