"""Two runs that need the same features: one encodes them, the other waits and finds them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from held_locks import held_elsewhere

from prismcap.configs.schema.run import RunConfig
from prismcap.data.features import FeatureStore
from prismcap.model.build import build_captioner
from prismcap.train import feature_cache, feature_lock
from prismcap.train.distributed import Ranks
from prismcap.train.feature_cache import fill, open_store
from prismcap.train.feature_lock import filling_alone, lock_path
from prismcap.train.run import stage_loader


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_lock, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(feature_lock, "ANSWER_AFTER_S", 0.1)  # several answers while it waits
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with held_elsewhere(lock_path(store)) as (_, until):
        threading.Timer(0.6, until.close).start()
        begun_s = time.monotonic()
        with filling_alone(store, Ranks()):
            assert time.monotonic() - begun_s > 0.5
    with filling_alone(store, Ranks()):
        pass


def test_where_nothing_can_be_locked_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with filling_alone(tmp_path / "file" / "below" / "store", Ranks()):
        pass


def test_what_the_first_run_stored_is_not_encoded_again(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    captioner = build_captioner(config.model, seed=config.seed)
    mix = stage_loader(config, "align", captioner, Ranks()).mix
    spec = replace(captioner.image_spec, geometry=config.stages["align"].data.geometry)

    def store() -> FeatureStore:
        return open_store(config.model.vision_encoder, captioner.vision_encoder, spec, "fp32")

    def filled(into: FeatureStore, positions: int) -> int:
        return fill(captioner, mix, positions, spec, into, Ranks(), "fp32", batch_size=4)

    @contextmanager
    def first_run_meanwhile(*_: Any) -> Iterator[None]:
        monkeypatch.undo()
        monkeypatch.setenv("PRISMCAP_CACHE", str(other.folder.parents[1]))
        counts.append(filled(other, 12))
        yield

    counts: list[int] = []
    mine, other = store(), store()
    monkeypatch.setattr(feature_cache, "filling_alone", first_run_meanwhile)
    counts.append(filled(mine, 1000))
    assert counts[0] > 0 and counts[1] > 0
    assert sum(counts) == len(mine) == 20, "each picture once"
