"""What a plan counts of an LLM whose linear layers are in nf4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.train.plan.memory import StageMemory
from prismcap.train.plan.static import Sharding, static_bytes

# of the conftest's LLaMA, in each of its 7 layers: queries and output, keys and values, the MLP's three
LINEAR = 7 * (2 * 96 * 96 + 2 * 96 * 48 + 3 * 96 * 256)


@pytest.mark.parametrize("zero_stage", [None, 0, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_quantized_layers_take_four_bits_and_their_scales(
    small_model: ModelConfig, make_stage: Callable[..., StageConfig], zero_stage: Any, precision: str
) -> None:
    found = []
    for quantize in (None, "nf4"):
        lora = {"rank": 2, "target_modules": ["q_proj"], "quantize": quantize}
        stage = make_stage(train={"llm": {"lr": 1e-3, "lora": lora}}, precision=precision)
        sizes = StageMemory(small_model, stage).sizes
        found.append((sizes, static_bytes(sizes, stage, Sharding(zero_stage, 1))))
    (plain_sizes, plain), (sizes, static) = found
    assert sizes.quantized == LINEAR and plain_sizes.quantized == 0
    assert (sizes.total, sizes.trained) == (plain_sizes.total, plain_sizes.trained)
    width = 2 if precision == "bf16" and zero_stage == 2 else 4
    # 4 bits, 8 for the scale of each 64 weights, 32 for that of each 256 scales
    assert plain.weights - static.weights == pytest.approx(LINEAR * (width - (4 + 8 / 64 + 2**-9) / 8), abs=1)
    assert (static.gradients, static.optimizer) == (plain.gradients, plain.optimizer)
