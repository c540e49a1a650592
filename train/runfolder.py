"""The folder of a run: can it be written, is it ours alone, and does what is there fit the config."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.configs.files import replace_text
from prismcap.configs.load import to_yaml
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.train.best import BEFORE, BEST
from prismcap.train.checkpoint import (
    FINAL,
    MANIFEST,
    UNFINISHED,
    DamagedError,
    Manifest,
    read_manifest,
    remove_unfinished,
    step_folders,
    step_of,
    verify,
)
from prismcap.train.distributed import Ranks
from prismcap.train.locks import TakenError, locked
from prismcap.train.sinks.jsonl import EVALUATIONS
from prismcap.train.sinks.jsonl import NAME as LOG_NAME

LOCK = ".lock"
CONFIG = "config.yaml"
# what may change between a run and its going on: it changes no weight
IGNORED = (
    "data.num_workers",
    "data.max_rejected_share",
    "optimizer.max_skipped_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "evaluate.max_share",
)
# keys that checkpoints may be older than, and what was done before there were any: none, but for these
LATER_KEYS = {"image_newline": False, "warmup_start_ratio": 0.0}


def run_folder(config: RunConfig) -> Path:
    return Path(config.output_dir).expanduser() / config.name


@contextmanager
def open_run(config: RunConfig, resume: str, ranks: Ranks) -> Iterator[Path]:
    """The run's folder, locked and checked, with its config.yaml. Collective.

    resume: `never` wants a folder without a run, `auto` goes on with what is there, a path names the
    checkpoint to go on from. Raises ConfigError when the folder cannot be written, is in use, or holds
    work of another config.
    """
    with ExitStack() as stack:
        run_dir = ranks.on_first(lambda: _open(config, resume, stack))
        yield run_dir


def _open(config: RunConfig, resume: str, stack: ExitStack) -> Path:
    run_dir = run_folder(config)
    stack.enter_context(_locked(run_dir))
    _check_writable(run_dir)
    remove_unfinished(run_dir)
    if resume == "never":
        _check_holds_no_run(run_dir, config)
    elif resume != "auto":
        adopt(Path(resume), run_dir, config)
    for stage in config.stages:
        remove_unfinished(run_dir / stage)
        check_same(config, run_dir / stage)
    replace_text(run_dir / CONFIG, to_yaml(config))
    return run_dir


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(run_dir / LOCK))
        except TakenError as error:
            raise ConfigError(
                f"{run_dir}: another process trains into this folder ({error}). "
                "Wait for it, or give this run another name (name=…)."
            ) from error
        except OSError as error:
            raise unwritable(run_dir, error) from error
        yield


def _check_writable(run_dir: Path) -> None:
    probe = run_dir / f".probe-{os.getpid()}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise unwritable(run_dir, error) from error


def unwritable(run_dir: Path, error: OSError) -> ConfigError:
    """What to say of a folder in output_dir."""
    return ConfigError(
        f"output_dir: {run_dir} cannot be written ({error.strerror or error}). "
        "Set output_dir=… to a folder of yours."
    )


def _check_holds_no_run(run_dir: Path, config: RunConfig) -> None:
    """What else lies there, such as a page of `prismcap data inspect`, is in nobody's way."""
    if any((run_dir / name).exists() for name in (CONFIG, LOG_NAME, *config.stages)):
        raise ConfigError(
            f"{run_dir} already holds a run. Go on with it: --resume auto. Or start another one: name=…"
        )


def comparable(config: RunConfig, stage: str) -> dict[str, Any]:
    """What must be equal to go on with a stage, flat: `stages.align.schedule.epochs` -> 1."""
    values: dict[str, Any] = {"seed": config.seed}
    values |= flat(config.model.model_dump(mode="json"), "model")
    own = flat(config.stages[stage].model_dump(mode="json", exclude=_changes_no_weight(config.stages[stage])))
    values |= {f"stages.{stage}.{key}": value for key, value in own.items() if key not in IGNORED}
    return values


def _changes_no_weight(stage: StageConfig) -> set[str]:
    """Evaluations leave the weights as they are, unless the stage ends with the best ones."""
    return {"evaluate"} if stage.evaluate is None or stage.evaluate.best is None else set()


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted keys."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, item in items:
        result |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return result


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: 1 then, 2 now` for each key that differs; none and not there say the same."""
    return [
        f"{key}: {saved.get(key, 'not there')!r} then, {now.get(key, 'not there')!r} now"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]


def check_same(config: RunConfig, stage_dir: Path) -> None:
    """Raise ConfigError naming the keys in which a checkpoint of the stage differs from the config."""
    for folder in (stage_dir / FINAL, *reversed(step_folders(stage_dir))):
        if not (folder / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(folder)
        except DamagedError:
            continue  # passed over, with a warning, when checkpoints are looked for
        _check_manifest(manifest, config, folder)


def _check_manifest(manifest: Manifest, config: RunConfig, folder: Path) -> None:
    now = comparable(config, manifest.stage)
    changed = differences(_before_there_were(now) | _in_todays_words(manifest.config), now)
    stages = stages_up_to(manifest.stage, config)
    if manifest.stages and list(manifest.stages) != stages:
        # an empty one is of a checkpoint from before it was written down
        changed.append(f"stages: {', '.join(manifest.stages)} then, {', '.join(stages)} now")
    if changed:
        raise ConfigError(
            f"{folder} was trained with another config; it cannot go on with this one:\n  "
            + "\n  ".join(changed)
            + "\nSet these back, or start another run with name=…"
        )


def _in_todays_words(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Before features could be kept in fp8, `feature_cache: true` was written down as such, and was bf16."""
    return {
        key: "bf16" if key.endswith(".feature_cache") and value is True else value
        for key, value in saved.items()
    }


def _before_there_were(now: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of before some keys existed was trained with, for those among the keys of `now`."""
    return {key: LATER_KEYS[end] for key in now if (end := key.rpartition(".")[2]) in LATER_KEYS}


def stages_up_to(stage: str, config: RunConfig) -> list[str]:
    """The names of the stages before `stage`, and its own."""
    names = list(config.stages)
    return names[: names.index(stage) + 1]


def adopt(checkpoint: Path, run_dir: Path, config: RunConfig) -> None:
    """Make `checkpoint` (…/<run>/<stage>/step-N) the point from which `auto` goes on in `run_dir`.

    From another run's folder, it and the stages before it are copied into an empty one. In the run's
    own folder it must be the newest work: nothing is thrown away. Raises ConfigError.
    """
    if not (checkpoint / MANIFEST).is_file():
        raise ConfigError(
            f"--resume {checkpoint}: no checkpoint there. Give auto, never, or a step-… folder."
        )
    manifest = verify(checkpoint)
    if manifest.stage not in config.stages or checkpoint.name == FINAL:
        raise ConfigError(
            f"--resume {checkpoint}: not a step-… folder of one of the stages {', '.join(config.stages)}"
        )
    _check_manifest(manifest, config, checkpoint)
    stages = list(config.stages)
    before = stages[: stages.index(manifest.stage)]
    origin = checkpoint.resolve().parent.parent
    if origin == run_dir.resolve():
        newer = _newer(run_dir, stages[len(before) :], manifest.step)
        if newer:
            raise ConfigError(
                f"--resume {checkpoint}: {newer[0]} is newer, and would be overwritten. "
                "Take --resume auto, or branch off into a new run with name=…"
            )
        return
    _check_holds_no_run(run_dir, config)
    # all of it aside first: a copy that is cut short would be taken for a run of its own
    aside = run_dir / f"{UNFINISHED}{checkpoint.name}"
    for stage in before:
        verify(origin / stage / FINAL)
        _check_manifest(read_manifest(origin / stage / FINAL), config, origin / stage / FINAL)
        shutil.copytree(origin / stage / FINAL, aside / stage / FINAL)
    shutil.copytree(checkpoint, aside / manifest.stage / checkpoint.name)
    for name in (BEST, BEFORE):
        # whichever is of a step up to the checkpoint's stands; the stage looks when it goes on
        if (origin / manifest.stage / name).is_dir():
            shutil.copytree(origin / manifest.stage / name, aside / manifest.stage / name)
    for name in (LOG_NAME, EVALUATIONS):
        if (origin / name).is_file():
            shutil.copy(origin / name, aside / name)
    for path in list(aside.iterdir()):
        os.rename(path, run_dir / path.name)
    aside.rmdir()


def _newer(run_dir: Path, stages: list[str], step: int) -> list[Path]:
    """Steps of the checkpoint's stage after it, its final, and whatever later stages hold."""
    own = [folder for folder in step_folders(run_dir / stages[0]) if step_of(folder) > step]
    later = [folder for stage in stages[1:] for folder in step_folders(run_dir / stage)]
    finals = [run_dir / stage / FINAL for stage in stages if (run_dir / stage / FINAL).exists()]
    return own + finals + later
