"""A checkpoint is written, the weights move on, and the checkpoint brings them back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from prismcap.configs.schema.run import RunConfig
from prismcap.data.schema import Batch
from prismcap.train import checkpoint as checkpoints
from prismcap.train.checkpoint import Manifest, SaveError
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.findings import Finding, error, ok
from prismcap.train.engines._contract import Engine
from prismcap.train.files import megabytes
from prismcap.train.random_state import save_random_state
from prismcap.train.runfolder import comparable, run_folder


def check_reload(config: RunConfig, name: str, engine: Engine, batch: Batch, ranks: Ranks) -> Finding:
    """Save, verify, take a step on `batch`, load, compare: the engine is as it was. Collective. The files are
    gone afterwards."""
    place = ranks.on_first(lambda: _make_folder(run_folder(config)))
    try:
        saved = {key: value.clone() for key, value in engine.gathered_state().items()}
        step = engine.step
        manifest = Manifest(
            name, step, ranks.world_size, config.stages[name].engine.name, comparable(config, name), {}
        )
        try:
            folder = checkpoints.save_checkpoint(
                place,
                checkpoints.step_name(step),
                manifest,
                lambda aside: _write(engine, aside, ranks),
                ranks,
            )
        except SaveError as problem:
            return error(
                f"{name}: a checkpoint cannot be written: {problem}", "Make room, or set output_dir=…"
            )
        ranks.on_first(lambda: checkpoints.verify(folder))
        engine.train_step([batch])
        engine.load(folder)
        loaded = engine.gathered_state()
        wrong = [key for key, value in saved.items() if not torch.equal(value, loaded[key])]
        size = ranks.on_first(
            lambda: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        )
    finally:
        ranks.on_first(lambda: shutil.rmtree(place, ignore_errors=True))
    if wrong or engine.step != step:
        what = (
            f"{len(wrong)} tensors differ, such as {wrong[0]}" if wrong else f"step {engine.step}, not {step}"
        )
        return error(f"{name}: a reloaded checkpoint is not what was saved: {what}", "Resume would go wrong.")
    return ok(f"{name}: a checkpoint of {megabytes(size)} was saved, verified and loaded again")


def _write(engine: Engine, folder: Path, ranks: Ranks) -> None:
    engine.save(folder)
    save_random_state(folder, ranks.rank)


def _make_folder(run_dir: Path) -> Path:
    """Of a name that a run clears away, should this process be killed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{checkpoints.UNFINISHED}doctor-", dir=run_dir))
