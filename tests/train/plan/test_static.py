"""Planned weights, gradients and optimiser state against the bytes that each engine really holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.model.build import build_captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.engines import torch as torch_engine
from prismcap.train.plan.memory import StageMemory, configured_sharding
from prismcap.train.plan.static import Sharding, static_bytes
from prismcap.train.plan.worst_case import worst_batch

MakeStage = Callable[..., StageConfig]


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the memory under the tensors, shared memory once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_torch_engine(
    small_model: ModelConfig,
    make_stage: MakeStage,
    precision: str,
    lora: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = {"lr": 1e-3, "lora": {"rank": 4}} if lora else {"lr": 1e-3}
    stage = make_stage(precision=precision, train={"connector": {"lr": 1e-3}, "llm": llm})
    captioner = build_captioner(small_model)
    prepare_stage(captioner, stage.train)
    hold_frozen(captioner, stage.precision)
    engine = torch_engine.build(torch_engine.Options(), captioner, stage, 10, Ranks())
    gradients: list[int] = []
    clip = engine._clip

    def look() -> float:
        gradients.append(unique_bytes(p.grad for p in captioner.parameters() if p.grad is not None))
        return clip()

    monkeypatch.setattr(engine, "_clip", look)
    engine.train_step([worst_batch(captioner, stage)])
    planned = StageMemory(small_model, stage).of(Sharding(None)).static
    assert planned.weights == unique_bytes([*captioner.parameters(), *captioner.buffers()])
    assert [planned.gradients] == gradients
    states = engine.optimizer.state.values()
    assert planned.optimizer == unique_bytes(value for state in states for value in state.values())
    assert planned.communication == 0


TRAIN = "stages.instruct.train={connector: {lr: 1e-3}, llm: {lr: 1e-3, weight_decay: 0.1}}"
ENGINES = {
    f"zero{zero}_{precision}": [
        TRAIN,
        "stages.instruct.engine.name=deepspeed",
        f"stages.instruct.engine.zero_stage={zero}",
        # on a CPU, ZeRO-3 of DeepSpeed 0.19 fails at a weight that is larger than its bucket
        f"stages.instruct.engine.bucket_size={1_000 if zero < 3 else 100_000}",
        f"stages.instruct.precision={precision}",
    ]
    for zero, precision in ((0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (2, "fp32"), (3, "fp32"))
}


@pytest.fixture(scope="module")
def held(world: Path, torchrun: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each engine holds on each of two ranks; see workers/engine_bytes.py."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("bytes")
    torchrun(2, "engine_bytes.py", str(world / "config.yaml"), str(folder), json.dumps(ENGINES))
    return json.loads((folder / "bytes.json").read_text())


@pytest.mark.parametrize("name", ENGINES)
def test_deepspeed_engines_on_two_ranks(world: Path, held: Any, name: str) -> None:
    config = load_config(world / "config.yaml", ENGINES[name])
    stage = config.stages["instruct"]
    planned = StageMemory(config.model, stage).of(configured_sharding(stage, 2)).static
    # ranks differ in what they hold whole of tensors that two of them share
    most = {part: max(found[part] for found in held[name]) for part in held[name][0]}
    assert most == {
        "weights": planned.weights,
        "gradients": planned.gradients,
        "optimizer": planned.optimizer,
    }


def test_auto_is_not_taken_for_fp32(small_model: ModelConfig, make_stage: MakeStage) -> None:
    for sharding in (Sharding(None), Sharding(2, 8)):
        with pytest.raises(ValueError, match="auto must be settled"):
            StageMemory(small_model, make_stage(precision="auto")).of(sharding)


def test_shares_add_up_over_ranks(small_model: ModelConfig, make_stage: MakeStage) -> None:
    stage = make_stage(precision="bf16")
    sizes = StageMemory(small_model, stage).sizes
    one, many = (static_bytes(sizes, stage, Sharding(3, ranks)) for ranks in (1, 8))
    assert many.weights == pytest.approx(one.weights / 8, rel=0.02)
    assert many.optimizer == pytest.approx(one.optimizer / 8, rel=0.02)
    assert many.gradients == pytest.approx(one.gradients / 8, rel=0.02)
