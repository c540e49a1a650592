"""Prints the MB that the loss of N positions needs above the model and the head's own gradient, fp32.

Usage: loss_memory.py N chunks|whole. Vocabulary 92,544 and width 512; `whole` is cross entropy over logits.
"""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn
from torch.nn import functional

from prismcap.model.loss import token_loss

WIDTH, VOCABULARY = 512, 92_544


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def run(num_targets: int, in_chunks: bool, lm_head: nn.Module) -> None:
    hidden = torch.full((num_targets, WIDTH), 0.01, requires_grad=True)
    target = torch.arange(num_targets)
    if in_chunks:
        loss_sum, _ = token_loss(hidden, target, lm_head)
    else:
        loss_sum = functional.cross_entropy(lm_head(hidden), target, reduction="sum")
    loss_sum.backward()


def main() -> None:
    torch.set_num_threads(1)
    # what the first call loads and keeps is not the loss's
    small = nn.Linear(WIDTH, 8)
    token_loss(torch.ones(2, WIDTH), torch.tensor([0, 1]), small)[0].backward()
    with torch.device("meta"):
        lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    lm_head.weight = nn.Parameter(torch.full((VOCABULARY, WIDTH), 0.01))
    before = peak_mb()
    run(int(sys.argv[1]), sys.argv[2] == "chunks", lm_head)
    gradient = lm_head.weight.grad
    assert gradient is not None
    print(peak_mb() - before - gradient.nbytes / 1e6)


if __name__ == "__main__":
    main()
