"""Prints, as JSON, a loss and gradients with Liger's layers and with eager ones, all on the CPU.

Start it with TRITON_INTERPRET=1: Triton then runs the kernels in Python, line by line. Two things that its
interpreter (3.8) lacks are supplied here: numbers reach a kernel as fp32 scalars, as the compiler hands them
over, and CUDA's rsqrt is Triton's own. `fault` as an argument breaks one kernel, to show that it runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import rms_norm
from torch import Tensor
from transformers.models.llama import modeling_llama
from triton.runtime import interpreter

from prismcap.configs.schema.base import Component
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import KernelConfig
from prismcap.data.schema import Batch
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.kernels import apply_kernels

VOCABULARY = 97
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def supply_what_the_interpreter_lacks(fault: bool) -> None:
    convert = interpreter._implicit_cvt

    def with_floats(value: Any) -> Any:
        if not isinstance(value, float):
            return convert(value)
        handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = with_floats
    rms_norm.rsqrt = (lambda x: 1.01 * tl.rsqrt(x)) if fault else (lambda x: tl.rsqrt(x))


def captioner() -> Captioner:
    config = ModelConfig(
        vision_encoder=Component(name="siglip", config=TOWER),
        connector=Component(name="mlp"),
        llm=Component(name="random", config=LLAMA),
    )
    model = build_captioner(config, seed=0)
    model.llm.requires_grad_(True)
    return model


def packed_rows() -> Batch:
    """Two rows: samples of 5 and 7 tokens, and one of 12."""
    input_ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    positions, segments = torch.arange(12).repeat(2, 1), torch.ones(2, 12, dtype=torch.long)
    positions[0, 5:] = torch.arange(7)
    segments[0, 5:] = 2
    empty = torch.zeros(0, dtype=torch.long)
    return Batch(input_ids, input_ids.clone(), positions, segments, empty.view(0, 4), empty, empty.view(0, 2))


def loss_and_gradients(model: Captioner) -> tuple[float, dict[str, Tensor]]:
    loss = model.train()(packed_rows()).loss_sum
    loss.backward()
    named = model.llm.named_parameters()
    return float(loss.detach()), {name: value.grad for name, value in named if value.grad is not None}


def main() -> None:
    torch.set_num_threads(1)
    supply_what_the_interpreter_lacks(fault="fault" in sys.argv)
    # first: Liger takes the rotary positions of every LLaMA in the process
    expected_loss, expected = loss_and_gradients(captioner())
    liger = captioner()
    # only the kind of device is looked at; everything stays on the CPU
    apply_kernels(liger, KernelConfig(liger=True), torch.device("cuda"))
    loss, gradients = loss_and_gradients(liger)
    assert expected.keys() == gradients.keys()
    found = {
        "kernels": [module._get_name() for module in liger.llm.modules() if "Liger" in module._get_name()],
        "rotary": modeling_llama.apply_rotary_pos_emb.__name__,
        "losses": [expected_loss, loss],
        "gradients": {
            name: float((gradients[name] - value).norm() / value.norm()) for name, value in expected.items()
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
