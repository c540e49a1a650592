"""`prismcap config show --deepspeed`: what is printed is what DeepSpeed is handed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from torch import nn

from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.scripts.commands.config import show
from prismcap.train.distributed import Ranks
from prismcap.train.engines import deepspeed as engine_module

ZERO3 = ("stages.*.engine.name=deepspeed", "stages.*.engine.zero_stage=3")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(show, ["demo/scenes", *arguments])


class Handed(Exception):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__("this is as far as the test goes")
        self.config = config


class FakeDeepSpeed:
    utils = SimpleNamespace(set_z3_leaf_module=lambda module, flag: None)  # noqa: ARG005

    @staticmethod
    def initialize(*, config: dict[str, Any], **_: Any) -> None:
        raise Handed(config)


class FakeLlm(nn.Linear):
    def get_output_embeddings(self) -> nn.Module:
        return self


class FakeCaptioner(nn.Module):
    def __init__(self, trains: Collection[str]) -> None:
        super().__init__()
        self.connector, self.llm = nn.Linear(2, 2), FakeLlm(2, 2)
        for name, part in self.named_children():
            part.requires_grad_(name in trains)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_what_is_printed_is_what_the_engine_hands_to_deepspeed(
    zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [
        ZERO3[0],
        f"stages.*.engine.zero_stage={zero_stage}",
        "stages.*.precision=bf16",
        "stages.instruct.optimizer.clip_norm=.inf",
    ]
    done = run(*overrides, "--deepspeed")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    monkeypatch.setattr(engine_module, "_import_deepspeed", FakeDeepSpeed)
    monkeypatch.setattr(engine_module, "_ensure_process_group", lambda _: None)
    config = load_config("demo/scenes", overrides)
    assert list(printed) == list(config.stages)
    for name, stage in config.stages.items():
        options = engine_module.Options.model_validate(stage.engine.options)
        with pytest.raises(Handed) as handed:
            engine_module.build(options, FakeCaptioner(stage.train), stage, 10, Ranks())  # type: ignore[arg-type]
        assert printed[name] == handed.value.config
    assert printed["align"]["gradient_clipping"] > 0 and printed["instruct"]["gradient_clipping"] == 0
    assert printed["instruct"]["zero_optimization"]["stage"] == zero_stage


@pytest.mark.parametrize("faster", ["bf16", "fp32"])
def test_an_open_precision_is_printed_as_this_machine_settles_it(
    faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prismcap.train.precision.fastest_precision", lambda _: faster)
    for override, expected in (("auto", faster), ("fp32", "fp32")):
        printed = json.loads(run(*ZERO3, f"stages.*.precision={override}", "--deepspeed").stdout)
        assert [values["bf16"]["enabled"] for values in printed.values()] == 2 * [expected == "bf16"]


def test_deepspeed_reads_what_is_printed() -> None:
    deepspeed = pytest.importorskip("deepspeed")
    for values in json.loads(run(*ZERO3, "--deepspeed").stdout).values():
        read = deepspeed.DeepSpeedConfig(values)
        assert read.zero_optimization_stage == 3
        assert read.gradient_clipping == values["gradient_clipping"]


def test_stages_of_another_engine_are_named_and_left_out() -> None:
    done = run("stages.instruct.engine.name=deepspeed", "--deepspeed")
    assert list(json.loads(done.stdout)) == ["instruct"]
    assert "stages.align.engine.name: torch: left out" in done.stderr
    done = run("--deepspeed")
    assert isinstance(done.exception, ConfigError)
    for words in ("stages.align.engine.name: torch", "stages.instruct", "'stages.*.engine.name=deepspeed'"):
        assert words in str(done.exception)


def test_deepspeed_itself_is_not_imported() -> None:
    code = (
        "import sys\nfrom prismcap.scripts.commands.config import show\n"
        f"show(['demo/scenes', *{ZERO3!r}, '--deepspeed'], standalone_mode=False)\n"
        "print('LOADED', 'deepspeed' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) and done.stderr.strip() == "LOADED False"
