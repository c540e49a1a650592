"""A signal ends a run after the step that it is in, with a checkpoint; the resumed run is the whole one."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.scripts.cli import cli
from prismcap.train import signals
from prismcap.train.checkpoint import file_hash, verify
from prismcap.train.distributed import Ranks
from prismcap.train.fit import StepEvent
from prismcap.train.run import run_training
from prismcap.train.signals import SIGNALS, StoppedError, StopRequest

Make = Callable[..., RunConfig]
STEPS = [*(("align", step) for step in range(1, 5)), *(("instruct", step) for step in range(1, 8))]


@pytest.fixture(autouse=True)
def signals_do_what_they_do() -> Iterator[None]:
    """Also in a job in the background, which a shell starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(
        load_config(world / "config.yaml", [f"output_dir={tmp_path_factory.mktemp('whole')}"])
    )


def send(number: int) -> None:
    """To this process and its data workers, as a scheduler does."""
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, number)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGTERM, ("align", 1)),  # two checkpoints are every second step's
        (signal.SIGUSR1, ("instruct", 3)),
        (signal.SIGINT, ("instruct", 4)),
    ],
)
def test_stopped_and_resumed_is_the_whole_run(
    make_config: Make, whole: Path, number: signal.Signals, place: tuple[str, int]
) -> None:
    seen: list[tuple[str, int]] = []

    def note(event: StepEvent) -> None:
        seen.append((event.stage, event.step))
        if len(seen) == STEPS.index(place) + 1:
            send(number)

    before = [signal.getsignal(one) for one in signals.SIGNALS]
    workers = [f"stages.{stage}.data.num_workers=2" for stage in ("align", "instruct")]
    stage, step = place
    with pytest.raises(
        StoppedError, match=rf"stopped by {number.name} after step {step} of \d of stage {stage}"
    ):
        run_training(make_config(*workers), callbacks=[note])
    assert [signal.getsignal(one) for one in signals.SIGNALS] == before
    run_dir = Path(make_config().output_dir) / "tiny"
    assert seen == STEPS[: STEPS.index(place) + 1], "not one step more"
    assert verify(run_dir / stage / f"step-{step:06d}").step == step
    run_training(make_config(*workers), resume="auto", callbacks=[note])
    assert seen == STEPS, "not one step twice"
    for name in ("align/final", "instruct/step-000006", "instruct/final"):
        for path in (whole / name).iterdir():
            if path.name != "manifest.json":
                assert file_hash(run_dir / name / path.name) == file_hash(path), (name, path.name)


def test_a_signal_at_the_end_of_a_stage_waits_for_the_next_one(make_config: Make) -> None:
    def note(event: StepEvent) -> None:
        if (event.stage, event.step) == ("align", 4):
            send(signal.SIGTERM)

    with pytest.raises(StoppedError, match="after step 0 of 7 of stage instruct"):
        run_training(make_config(), callbacks=[note])
    run_dir = Path(make_config().output_dir) / "tiny"
    assert verify(run_dir / "align" / "final").step == 4
    assert not list((run_dir / "instruct").glob("step-*"))


def test_the_second_ctrl_c_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    with stop.noting_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # handed on by a launcher
        assert stop.agreed(Ranks()) == signal.SIGINT
        monkeypatch.setattr(signals, "_SAME_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    other = StopRequest()
    with other.noting_signals():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert other.agreed(Ranks()) == signal.SIGTERM


def test_afterwards_signals_do_what_they_did() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest().noting_signals():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_what_is_ignored_stays_so_and_threads_have_no_signals() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.noting_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.agreed(Ranks()) is None
    finally:
        signal.signal(signal.SIGINT, before)
    asked: list[Any] = []

    def elsewhere() -> None:
        other = StopRequest()
        with other.noting_signals():
            asked.append(other.agreed(Ranks()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert asked == [None]


def long_run(out: Path) -> list[str]:
    """Overrides: of so many steps that only a signal ends it."""
    schedule = "stages.align.schedule={max_steps: 100000, name: constant}"
    more = ["stages.align.checkpoint.every_steps=100000", "stages.align.data.num_workers=1"]
    return [f"output_dir={out}", schedule, *more]


class Job:
    """`prismcap train` of a long run in processes of its own."""

    def __init__(self, world: Path, out: Path, *launcher: str) -> None:
        command = [*launcher, "prismcap.scripts.train", str(world / "config.yaml"), *long_run(out)]
        self.log = out / "tiny" / "log.jsonl"
        self.process = subprocess.Popen(
            [sys.executable, *command, "--resume", "auto", "--no-dry-export"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def num_steps(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def wait_for_steps(self, more: int) -> None:
        start = self.num_steps()
        while self.num_steps() < start + more:
            assert self.process.poll() is None, self.process.communicate()[0][-5000:]
            time.sleep(0.05)

    def ranks(self) -> list[int]:
        """Process ids of the launcher's children."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self, number: int, to: int) -> tuple[int, str]:
        """Exit code and output after a signal to a process."""
        os.kill(to, number)
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output


def stop_here(world: Path, out: Path, last_step: int, *overrides: str) -> Path:
    """The long run, in this process, up to a step."""

    def note(event: StepEvent) -> None:
        if event.step == last_step:
            send(signal.SIGTERM)

    config = load_config(world / "config.yaml", [*long_run(out), *overrides])
    with pytest.raises(StoppedError):
        run_training(config, callbacks=[note])
    return out / config.name


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def newest_step(out: Path) -> int:
    folders = sorted((out / "tiny" / "align").glob("step-*"))
    return verify(folders[-1]).step


def test_the_command_ends_with_a_checkpoint_and_says_how_to_go_on(world: Path, tmp_path: Path) -> None:
    job = Job(world, tmp_path, "-m")
    job.wait_for_steps(2)
    found, output = job.end(signal.SIGTERM, job.process.pid)
    assert found == 0, output
    assert re.search(r"Run tiny: stopped by SIGTERM after step \d+ of 100000 .*--resume auto", output)
    assert newest_step(tmp_path) == job.num_steps()


def test_after_ctrl_c_a_script_that_called_the_command_ends_too(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise StoppedError(signal.SIGINT, "align", 2, 4)

    monkeypatch.setattr("prismcap.train.run.run_training", stopped)
    done = CliRunner().invoke(cli, ["train", str(world / "config.yaml"), f"output_dir={tmp_path}"])
    assert done.exit_code == 130
    assert "stopped by SIGINT after step 2 of 4 of stage align" in done.output


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
def test_two_ranks_go_on_and_stop_when_one_is_signalled_or_the_launcher(world: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    # begun by one rank, gone on with by two: the same steps
    one = stop_here(world, tmp_path, 6, "name=one")
    tiny = stop_here(world, tmp_path, 3)
    job = Job(world, tmp_path, *torchrun)
    job.wait_for_steps(3)
    found, output = job.end(signal.SIGUSR1, max(job.ranks()))
    assert found == 0, output
    assert "stopped by SIGUSR1" in output
    assert losses(tiny)[:6] == pytest.approx(losses(one), rel=1e-4)
    first = newest_step(tmp_path)
    assert first == job.num_steps()

    # torchrun hands SIGTERM on to every rank and its workers, waits for them, and itself ends with an error
    job = Job(world, tmp_path, *torchrun)
    job.wait_for_steps(2)
    found, output = job.end(signal.SIGTERM, job.process.pid)
    assert "stopped by SIGTERM" in output and "SignalException" in output, output
    assert "forcefully exiting" not in output
    records = [json.loads(line) for line in job.log.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, newest_step(tmp_path) + 1))
    assert len(records) > first
