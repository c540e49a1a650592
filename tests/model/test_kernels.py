"""Compiled layers are equal to eager ones; what a machine cannot do is refused with the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.configs.schema.run import ModelConfig
from prismcap.configs.schema.stage import GroupConfig, KernelConfig, LoraConfig
from prismcap.data.schema import Batch, Encoded
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.generate import generate
from prismcap.model.kernels import apply_kernels, decoder_layers
from prismcap.model.trainable import prepare_stage

MakeConfig = Callable[..., ModelConfig]
MakeSample = Callable[..., Encoded]
Pack = Callable[..., Batch]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
COMPILE, LIGER = KernelConfig(compile=True), KernelConfig(liger=True)
LORA = LoraConfig(rank=2, target_modules=("q_proj", "down_proj"))
TRAIN: dict[str, dict[Any, GroupConfig]] = {
    "align": {"connector": GroupConfig(lr=1e-2)},
    "full": {"connector": GroupConfig(lr=1e-2), "llm": GroupConfig(lr=1e-2)},
    "lora": {"connector": GroupConfig(lr=1e-2), "llm": GroupConfig(lr=1e-2, lora=LORA)},
}


@pytest.fixture
def batches(make_sample: MakeSample, pack: Pack) -> list[Batch]:
    """Rows, samples and lengths that differ; the last has one long sample and goes under a mask."""
    samples = [make_sample(f"s{i}", i % 2, 16, prompt=2 + i, answer=3 + i, seed=i) for i in range(8)]
    tile = torch.randn(4, 3, 16, 16)
    long = make_sample("long", 0, 16, prompt=30, answer=25, seed=9)
    short = [make_sample(f"t{i}", 0, 16, prompt=1, answer=2, seed=i) for i in range(3)]
    return [
        pack([samples[:2], samples[2:4]], tile[:2]),
        pack([samples[:3], samples[3:6]], tile[:3]),
        pack([samples[4:]], tile[:2]),
        pack([[long, *short], samples[:2]], tile[:1]),
    ]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def ready(config: ModelConfig, train: str, *, compiled: bool, checkpointing: bool) -> Captioner:
    captioner = build_captioner(config)
    prepare_stage(captioner, TRAIN[train])
    if checkpointing:
        captioner.enable_gradient_checkpointing()
    if compiled:
        apply_kernels(captioner, COMPILE, CPU)
    return captioner.train()


def results(captioner: Captioner, batches: list[Batch]) -> list[dict[str, Tensor]]:
    found = []
    for batch in batches:
        captioner.zero_grad()
        loss_sum = captioner(batch).loss_sum
        loss_sum.backward()
        gradients = {name: value.grad for name, value in captioner.named_parameters() if value.requires_grad}
        found.append({"loss": loss_sum.detach(), **gradients})
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("train", TRAIN)
def test_compiled_is_eager(
    model_config: MakeConfig, batches: list[Batch], train: str, checkpointing: bool
) -> None:
    eager = ready(model_config(), train, compiled=False, checkpointing=checkpointing)
    compiled = ready(model_config(), train, compiled=True, checkpointing=checkpointing)
    assert [name for name, _ in eager.named_parameters()] == [name for name, _ in compiled.named_parameters()]
    expected, found = results(eager, batches), results(compiled, batches)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(ours[name], value, atol=1e-5 * max(1.0, scale), rtol=1e-5, msg=name)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    # a few ways through a layer (attention, rows of one, what requires a gradient); the same batches in
    # another order compile nothing more
    assert 1 <= graphs <= 8
    results(compiled, batches[::-1])
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_generation_runs_uncompiled(model_config: MakeConfig, make_sample: MakeSample) -> None:
    captioner = build_captioner(model_config())
    prompts = [make_sample(f"p{i}", 0, 16, prompt=3 + i, seed=i) for i in range(3)]
    expected = generate(captioner, prompts, max_new_tokens=6)
    apply_kernels(captioner, COMPILE, CPU)
    assert generate(captioner, prompts, max_new_tokens=6) == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_without_a_compiler_the_config_is_refused(
    model_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = build_captioner(model_config())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"compile: true needs a C\+\+ compiler.*no-such-compiler"):
        apply_kernels(captioner, COMPILE, CPU)
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(captioner.llm))


def test_every_layer_is_compiled_and_nothing_else(model_config: MakeConfig) -> None:
    captioner = build_captioner(model_config())
    apply_kernels(captioner, KernelConfig(), CPU)
    assert not any(module._compiled_call_impl for module in captioner.modules())
    apply_kernels(captioner, COMPILE, CPU)
    compiled = [module for module in captioner.modules() if module._compiled_call_impl is not None]
    assert compiled == list(captioner.llm.model.layers)


def test_compile_and_liger_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="take one"):
        KernelConfig(compile=True, liger=True)


def test_liger_is_refused_on_a_cpu_and_where_it_is_not_installed(
    model_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = build_captioner(model_config())
    with pytest.raises(ConfigError, match=r"liger: true needs a GPU.*cpu"):
        apply_kernels(captioner, LIGER, CPU)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(MissingExtraError, match=r"liger-kernel.*\[gpu\]"):
        apply_kernels(captioner, LIGER, GPU)


def test_liger_takes_the_layers_and_leaves_the_loss(
    model_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a stand-in; tests/gpu has the package itself, test_liger_interpreted.py its kernels."""
    handed: list[dict[str, Any]] = []
    package, transformers, patch = (
        ModuleType(f"liger_kernel{end}") for end in ("", ".transformers", ".transformers.monkey_patch")
    )
    transformers._apply_liger_kernel_to_instance = lambda **kw: handed.append(kw)  # type: ignore[attr-defined]
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": print}  # type: ignore[attr-defined]
    for module in (package, transformers, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    captioner = build_captioner(model_config())
    apply_kernels(captioner, LIGER, GPU)
    assert handed == [{"model": captioner.llm, "cross_entropy": False, "fused_linear_cross_entropy": False}]
    captioner.llm.config.model_type = "unheard_of"
    with pytest.raises(ConfigError, match="unheard_of"):
        apply_kernels(captioner, LIGER, GPU)
