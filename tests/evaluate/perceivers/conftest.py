"""Tiny models to perceive with: a run of ours, its export, models of transformers, and an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prismcap.data.fetch.tiny import make_tiny
from prismcap.model.hf.export import export_captioner
from prismcap.model.restore import load_trained
from prismcap.scripts.exporting import export_inputs


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("cache"), lambda _: None) / "tokenizer"


@pytest.fixture(scope="session")
def run_dir(
    make_run: Callable[..., Path], byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_run(tmp_path_factory.mktemp("perceiving") / "tiny", tokenizer=str(byte_tokenizer))


@pytest.fixture(scope="session")
def export_dir(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    captioner, config = load_trained(run_dir)
    image_spec, info = export_inputs(captioner, config)
    return export_captioner(
        captioner, tmp_path_factory.mktemp("exported") / "model", image_spec=image_spec, info=info
    )


@pytest.fixture(scope="session")
def vlm(byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of transformers, by its kind; made once."""
    from tiny_vlms import KINDS

    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = KINDS[kind](tmp_path_factory.mktemp("vlm") / kind, byte_tokenizer)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def faulty() -> Iterator[Any]:
    """The clients' own test server: a module."""
    pytest.importorskip("openai", reason="the extra `eval` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "clients"))
        import faulty_server

        yield faulty_server
