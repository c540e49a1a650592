"""The LLM over packed rows: attention in which no sample sees another, and Liger's layers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from prismcap.configs.schema.base import Component
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import KernelConfig
from prismcap.data.schema import IGNORE_INDEX, Batch
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.kernels import apply_kernels

VOCABULARY = 300
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# a head of 64, as most models have: the kernel does not take every width
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
# two rows: where transformers guesses packing from positions, it only does for one
ROWS = ((37, 5, 80, 6), (1, 64, 30))
# samples on both sides of segment_attention.LONGEST_OF_PRODUCTS
LONG_ROWS = ((37, 5, 180, 6), (1, 64, 150, 30))
Measured = Callable[[str], None]


def captioner(implementation: str, device: torch.device) -> Captioner:
    config = ModelConfig(
        vision_encoder=Component(name="siglip", config=TOWER),
        connector=Component(name="mlp"),
        llm=Component(name="random", config=LLAMA, attn_implementation=implementation),
    )
    model = build_captioner(config, seed=0).to(device)
    model.llm.requires_grad_(True)
    return model


def samples(rows: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randint(1, VOCABULARY, (length,), generator=generator) for length in row] for row in rows]


def pack(rows: Sequence[Sequence[Tensor]]) -> Batch:
    """Rows of whole samples, every token but the first of each supervised, padded on the right."""
    length = max(sum(map(len, row)) for row in rows) + 3
    input_ids, positions, segments = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, members in enumerate(rows):
        start = 0
        for number, sample in enumerate(members, start=1):
            part = slice(start, start + len(sample))
            input_ids[row, part] = labels[row, part] = sample
            positions[row, part] = torch.arange(len(sample))
            segments[row, part] = number
            start += len(sample)
    empty = torch.zeros(0, dtype=torch.long)
    return Batch(input_ids, labels, positions, segments, empty.view(0, 4), empty, empty.view(0, 2))


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def loss_and_gradients(
    model: Captioner, batches: Sequence[Batch], in_fp32: bool = False
) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        with nullcontext() if in_fp32 else autocast(model.device):
            output = model(batch.to(model.device))
        output.loss_sum.backward()
        total += float(output.loss_sum.detach())
    names = [(name, weight) for name, weight in model.llm.named_parameters() if weight.grad is not None]
    return total, {name: weight.grad.float().cpu() for name, weight in names}


def packed_implementation(device: torch.device) -> str:
    """FlashAttention on a GPU; on the CPU a mask, which goes through the same comparison."""
    if device.type == "cpu":
        return "sdpa"
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    return "flash_attention_2"


def compare(
    packed: Captioner, alone: Captioner, lengths: Sequence[Sequence[int]], measured: Measured
) -> None:
    """Loss and gradients of `packed` over rows of samples are those of `alone` over one sample at a time."""
    alone.load_state_dict(packed.state_dict())
    rows = samples(lengths)
    loss, gradients = loss_and_gradients(packed, [pack(rows)])
    expected_loss, expected = loss_and_gradients(alone, [pack([[sample]]) for row in rows for sample in row])
    tolerance = 2e-2 if packed.device.type == "cuda" else 1e-4  # bf16 has 8 bits of mantissa
    assert loss == pytest.approx(expected_loss, rel=tolerance / 4)
    largest = apart(gradients, expected)
    measured(f"gradients differ by {largest:.1e} of their norm")
    assert largest < tolerance


def apart(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a weight's gradient, as a share of its norm."""
    assert gradients.keys() == expected.keys() and len(gradients) > 10
    return max(
        float((gradients[name] - value).norm() / value.norm().clamp(min=1e-6))
        for name, value in expected.items()
    )


def test_packed_rows_are_samples_alone(device: torch.device, measured: Measured) -> None:
    """FlashAttention (varlen) over packed rows: loss and gradients of every sample alone"""
    packed = captioner(packed_implementation(device), device)
    compare(packed, captioner("segments", device), ROWS, measured)


def test_segments_are_samples_alone(device: torch.device, measured: Measured) -> None:
    """Attention `segments` over packed rows: loss and gradients of every sample alone under SDPA"""
    compare(captioner("segments", device), captioner("sdpa", device), LONG_ROWS, measured)


def test_no_sample_sees_another(device: torch.device) -> None:
    """FlashAttention (varlen): other neighbours in the row change no bit of a sample's logits"""
    model = captioner(packed_implementation(device), device)
    rows = samples(ROWS)
    other = [[sample if number == 2 else sample.flip(0) for number, sample in enumerate(row)] for row in rows]
    with torch.no_grad(), autocast(device):
        before, after = (model.logits(pack(which).to(device)) for which in (rows, other))
    third = slice(37 + 5, 37 + 5 + 80)
    assert torch.equal(before[0, third], after[0, third])
    assert not torch.equal(before[0, :37], after[0, :37]), "the others did change"


@pytest.mark.gpu
def test_liger_is_equal_to_eager(measured: Measured) -> None:
    """Liger's layers over packed rows, fp32: loss and gradients of eager ones"""
    pytest.importorskip("liger_kernel")
    device = torch.device("cuda")
    batches = [pack(samples(LONG_ROWS))]
    # first: Liger takes the rotary positions of every LLaMA in the process
    expected_loss, expected = loss_and_gradients(captioner("segments", device), batches, in_fp32=True)
    liger = captioner("segments", device)
    apply_kernels(liger, KernelConfig(liger=True), device)
    assert "Liger" in liger.llm.model.norm._get_name()
    loss, gradients = loss_and_gradients(liger, batches, in_fp32=True)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    largest = apart(gradients, expected)
    measured(f"gradients differ by {largest:.1e} of their norm")
    assert 0 < largest < 1e-3
