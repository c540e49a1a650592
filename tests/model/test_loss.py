"""The loss in chunks equals cross entropy over all logits at once, for every kind of head, in less memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional

from prismcap.model import loss as loss_module
from prismcap.model.loss import num_chunks, token_loss

WIDTH, VOCABULARY, TARGETS = 16, 50, 23
MEMORY = Path(__file__).parent / "workers" / "loss_memory.py"


class Tied(nn.Module):
    """Embedding and head of one weight: the chunks' gradients join those of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.embedding.weight


def plain() -> nn.Module:
    return nn.Sequential()


def build(kind: str) -> nn.Module:
    """A module with `embedding` and `lm_head`."""
    torch.manual_seed(0)
    model = Tied()
    if kind != "tied":
        model.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=kind == "bias")
    if kind == "frozen":
        model.lm_head.requires_grad_(False)
    if kind == "lora":
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"]), model)
        nn.init.normal_(model.lm_head.lora_B["default"].weight)  # at zero, half the gradients would be zero
        model.embedding.requires_grad_(True)
    return model


def inputs(num_targets: int = TARGETS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (num_targets,), generator=generator)
    return ids, torch.randint(0, VOCABULARY, (num_targets,), generator=generator)


def results(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor, nn.Module], tuple[Tensor, Tensor]],
    num_targets: int = TARGETS,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The loss, the count, and the gradient of a third of it with respect to every weight that trains."""
    ids, target = inputs(num_targets)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        loss_sum, num_correct = loss(model.embedding(ids), target, model.lm_head)
    (loss_sum / 3).backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert "embedding.weight" in found
    return found | {"loss": loss_sum.detach(), "num_correct": num_correct}


def reference(hidden: Tensor, target: Tensor, lm_head: nn.Module) -> tuple[Tensor, Tensor]:
    logits = lm_head(hidden)
    return (
        functional.cross_entropy(logits.float(), target, reduction="sum"),
        (logits.argmax(-1) == target).sum(),
    )


@pytest.fixture(params=[1, 2, 5, TARGETS])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many chunks, and several blocks in each."""
    monkeypatch.setattr(
        loss_module, "LOGITS_CHUNK_BYTES", -(-TARGETS * VOCABULARY * 4 // request.param)
    )
    monkeypatch.setattr(loss_module, "_BLOCK_BYTES_CPU", 2 * VOCABULARY * 4)
    assert num_chunks(TARGETS, VOCABULARY) == request.param
    yield request.param


@pytest.mark.parametrize("kind", ["plain", "bias", "tied", "lora", "frozen"])
def test_chunks_are_equal_to_the_whole(kind: str, chunks: int) -> None:
    expected, found = results(build(kind), reference), results(build(kind), token_loss)
    assert expected.keys() == found.keys()
    assert len(found) == 3 + {"plain": 1, "bias": 2, "tied": 0, "lora": 2, "frozen": 0}[kind]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_chunks_are_equal_to_the_whole_under_autocast(chunks: int) -> None:
    bf16 = torch.bfloat16
    expected, found = (results(build("bias"), loss, dtype=bf16) for loss in (reference, token_loss))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-2, rtol=2e-2)
    # the loss itself is made in fp32 of bf16 logits either way
    torch.testing.assert_close(found["loss"], expected["loss"], atol=1e-4, rtol=1e-5)


def test_correct_tokens_are_counted(chunks: int) -> None:
    model, (ids, target) = build("plain"), inputs()
    with torch.no_grad():
        hidden = model.embedding(ids)
        target[::2] = model.lm_head(hidden).argmax(-1)[::2]
        _, num_correct = token_loss(hidden, target, model.lm_head)
        expected = reference(hidden, target, model.lm_head)[1]
    assert num_correct == expected >= 12


def test_no_target_gives_no_loss_and_gradients_of_zero(chunks: int) -> None:
    found = results(build("bias"), token_loss, num_targets=0)
    assert found["loss"] == 0 and found["num_correct"] == 0
    assert all(value.abs().sum() == 0 for value in found.values())


def test_the_head_is_called_once_and_left_as_it_was(chunks: int) -> None:
    """ZeRO-3 gathers weights in the hooks of a module, and all ranks must run them equally often."""
    model, (ids, target), calls = build("plain"), inputs(), []
    model.lm_head.register_forward_hook(lambda *_: calls.append("after"))
    loss_sum, _ = token_loss(model.embedding(ids), target, model.lm_head)
    loss_sum.backward()
    assert calls == ["after"]
    assert "forward" not in vars(model.lm_head)
    # also when it fails, and when the head had a forward of its own
    own = model.lm_head.forward = lambda hidden: functional.linear(hidden, model.lm_head.weight)
    with pytest.raises(IndexError):
        token_loss(model.embedding(ids), target + VOCABULARY, model.lm_head)
    assert vars(model.lm_head)["forward"] is own


def test_a_second_backward_is_refused_not_wrong() -> None:
    model, (ids, target) = build("plain"), inputs()
    loss_sum, _ = token_loss(model.embedding(ids), target, model.lm_head)
    loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already differentiated"):
        loss_sum.backward()


def peak_mb(num_targets: int, *, in_chunks: bool = True) -> float:
    """Peak memory of a forward and backward pass above weights and the head's gradient, in its own process."""
    done = subprocess.run(
        [sys.executable, str(MEMORY), str(num_targets), "chunks" if in_chunks else "whole"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def test_memory_stays_low_with_a_large_vocabulary() -> None:
    # 2,048 positions, a fifth of them supervised, 92,544 tokens: the logits alone are 152 MB
    assert peak_mb(410) < 300


@pytest.mark.slow
def test_memory_is_bounded_when_all_positions_are_supervised() -> None:
    # one chunk of logits and the gradient of one more chunk's weights beside the sum of them
    bound = loss_module.LOGITS_CHUNK_BYTES / 1e6 + 92_544 * 512 * 4 / 1e6 + 60
    assert peak_mb(2048) < bound < 758 < peak_mb(2048, in_chunks=False)
