"""One QLoRA stage on a CPU, a stand-in for bitsandbytes on the path: qlora.py CONFIG.json OUT.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig, LoraConfig
from prismcap.data.schema import Batch
from prismcap.model import quantize
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.lora import lora_modules
from prismcap.model.trainable import (
    finish_stage,
    load_trainable_state,
    prepare_stage,
    trainable_parameters,
    trainable_state,
)


def stage(**options: Any) -> dict[Any, GroupConfig]:
    lora = LoraConfig(rank=2, alpha=8, target_modules=("q_proj", "down_proj"), **options)
    return {"connector": GroupConfig(lr=1e-2), "llm": GroupConfig(lr=1e-2, lora=lora)}


def text_batch(vocabulary: int) -> Batch:
    ids = torch.randint(3, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    return Batch(
        input_ids=ids,
        labels=ids.clone(),
        position_ids=torch.arange(12).expand(2, -1),
        segment_ids=torch.ones_like(ids),
        spans=torch.zeros(0, 4, dtype=torch.long),
        tile_image=torch.zeros(0, dtype=torch.long),
        image_sizes=torch.zeros(0, 2, dtype=torch.long),
    )


def train(captioner: Captioner, batch: Batch) -> list[float]:
    captioner.train()
    parameters = trainable_parameters(captioner)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = captioner(batch).loss_sum
        loss.backward()
        losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad()
    captioner.eval()
    return losses


def rounded(weight: Tensor) -> Tensor:
    return bitsandbytes.functional.dequantize_4bit(*bitsandbytes.functional.quantize_4bit(weight))


def main(config: ModelConfig) -> dict[str, Any]:
    quantize.nf4_device = lambda _: torch.device("cpu")
    captioner = build_captioner(config)
    batch = text_batch(captioner.llm.config.vocab_size)
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    start = captioner.logits(batch).detach()
    prepare_stage(captioner, stage(quantize="nf4"))
    captioner.to(torch.device("cpu"))
    quantized = captioner.logits(batch).detach()
    small = [
        name for name, module in captioner.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]
    wrapped = lora_modules(captioner)
    result: dict[str, Any] = {
        "quantized": sorted(name.removesuffix(".base_layer") for name in small),
        "wrapped": sorted(wrapped),
        "by_peft_for_4bit": all(isinstance(module, PeftLinear4bit) for module in wrapped.values()),
        "trained": sorted(trainable_parameters(captioner)),
        "rounding": float((quantized - start).abs().max()),
        "losses": train(captioner, batch),
    }
    unmerged = captioner.logits(batch).detach()
    state = {name: value.clone() for name, value in trainable_state(captioner).items()}
    finish_stage(captioner)
    after = captioner.state_dict()
    result["merged_apart"] = float((captioner.logits(batch) - unmerged).abs().max())
    result["learned"] = float((unmerged - quantized).abs().max())
    result["same_names"] = list(after) == list(before)
    result["formula_apart"] = formula_apart(before, after, state, result["quantized"])
    other = build_captioner(config)
    prepare_stage(other, stage(quantize="nf4"))
    load_trainable_state(other, state)
    finish_stage(other)
    result["reloaded"] = all(torch.equal(value, after[name]) for name, value in other.state_dict().items())
    return result


def formula_apart(
    before: dict[str, Tensor], after: dict[str, Tensor], state: dict[str, Tensor], quantized: list[str]
) -> float:
    """How far the weights are from W rounded to nf4, plus 8/2 B A where there are adapters."""
    largest = 0.0
    for name, weight in before.items():
        if name.startswith("connector."):
            continue
        layer = name.removesuffix(".weight")
        expected = rounded(weight) if layer in quantized else weight
        if f"{layer}.lora_A.default.weight" in state:
            down, up = (state[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            expected = expected + 4 * up @ down
        largest = max(largest, float((after[name] - expected).abs().max()))
    return largest


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = main(ModelConfig.model_validate_json(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
