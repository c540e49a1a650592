"""A resumed run is the uninterrupted one bit for bit, and a resume that forgets something is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.train.checkpoint import file_hash, verify
from prismcap.train.engines.torch import TorchEngine
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training

Make = Callable[..., RunConfig]
# what the second stage, with dropout in its LoRA, leaves last
LEFT = ("instruct/final/weights.safetensors", "instruct/step-000006/optimizer.safetensors")


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, not to be changed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run_training(load_config(world / "config.yaml", [f"output_dir={folder}"]))


@pytest.fixture(scope="module")
def interrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, ended in its second stage between two checkpoints. Not to be changed."""
    config = load_config(world / "config.yaml", [f"output_dir={tmp_path_factory.mktemp('interrupted')}"])

    def stop(event: StepEvent) -> None:
        if (event.stage, event.step) == ("instruct", 5):
            raise Stop

    with pytest.raises(Stop):
        run_training(config, callbacks=[stop])
    run_dir = Path(config.output_dir) / config.name
    assert (
        verify(run_dir / "instruct" / "step-000004") and not (run_dir / "instruct" / "step-000006").exists()
    )
    return run_dir


def forget(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a resume that leaves one part of a checkpoint unread."""
    if what == "random state":
        monkeypatch.setattr("prismcap.train.run.load_random_state", lambda *_: None)
    elif what == "weights":
        monkeypatch.setattr("prismcap.train.engines.torch.load_trainable_state", lambda *_: None)
    else:
        load = TorchEngine.load

        def without_state(self: TorchEngine, folder: Path) -> None:
            load(self, folder)
            self.optimizer.state.clear()

        monkeypatch.setattr(TorchEngine, "load", without_state)


@pytest.mark.parametrize("forgotten", [None, "random state", "optimiser", "weights"])
def test_a_resume_that_forgets_something_ends_elsewhere(
    uninterrupted: Path,
    interrupted: Path,
    make_config: Make,
    forgotten: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config()
    run_dir = Path(shutil.copytree(interrupted, Path(config.output_dir) / config.name))
    if forgotten is not None:
        forget(forgotten, monkeypatch)
    steps: list[int] = []
    run_training(config, resume="auto", callbacks=[lambda event: steps.append(event.step)])
    assert steps == [5, 6, 7]
    for name in LEFT:
        equal = file_hash(run_dir / name) == file_hash(uninterrupted / name)
        assert equal is (forgotten is None), name
