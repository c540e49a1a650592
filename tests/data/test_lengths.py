"""The length index says what encoding says, is kept, and is renewed when what decides it changes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prismcap.configs.schema.base import Component
from prismcap.configs.schema.data import DataConfig
from prismcap.data.encode import Encoder, build_encoder
from prismcap.data.lengths import LengthIndex, Measure, keep_index, measure, read_index
from prismcap.data.mix import Mix, build_mix
from prismcap.data.schema import SampleRejected, TokenSpec
from prismcap.data.sources._contract import FileSource, SourceContext

NUM_ROWS = 30


def tokenizer_of(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def encoder_of(tokens: int = 3, max_tokens: int = 40, template: str = "vicuna_v1", **options: Any) -> Encoder:
    component = Component(name=template) if template == "vicuna_v1" else Component(name="plain")
    words = tokenizer_of("w", "q", "\n")
    return build_encoder(component, words, TokenSpec(tokens), max_tokens, **options)


def write_rows(path: Path, longer: int = 0) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(NUM_ROWS):
        answer = "" if i % 9 == 4 else "w " * (i % 7 + 1 + longer)
        row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]}
        rows.append(row | ({"image": "a.png"} if i % 3 else {}))
    path.write_text(json.dumps(rows))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """rows.json with a picture beside it that must not be opened; the cache is a folder of its own."""
    monkeypatch.setenv("PRISMCAP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.json"
    write_rows(path)

    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", no)
    return path


def mix_of(path: Path, repeat: int = 1, seed: int = 1, **options: Any) -> Mix:
    item = {"name": "llava_json", "path": str(path), "repeat": repeat, **options}
    return build_mix(DataConfig.model_validate({"mix": [item]}), SourceContext(seed=seed))


def index_of(mix: Mix, encoder: Encoder) -> LengthIndex:
    index = read_index(mix, encoder)
    places = index.missing(mix, len(mix))
    index.fill(places, measure(mix, encoder, places))
    return index


def expected(mix: Mix, encoder: Encoder, place: tuple[int, int]) -> Measure:
    source, index = place
    try:
        encoded = encoder.encode(mix.sources[source][0][index])
    except SampleRejected:
        return Measure(0, 0)
    return Measure(len(encoded), len(set(encoded.images)))


def test_the_index_is_what_encoding_gives(rows: Path) -> None:
    mix, encoder = mix_of(rows, repeat=2), encoder_of()
    index = index_of(mix, encoder)
    found = [index.at(0, i) for i in range(NUM_ROWS)]
    assert found == [expected(mix, encoder, (0, i)) for i in range(NUM_ROWS)]
    assert {item.num_images for item in found} == {0, 1} and Measure(0, 0) in found
    assert len({item.tokens for item in found}) > 5
    tokens, num_images = index.of_epoch(mix)
    assert tokens.tolist() == [item.tokens for item in found] * 2
    assert num_images.tolist() == [item.num_images for item in found] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_and_shares_measure_alike(
    rows: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prismcap.data.lengths._CHUNK_SAMPLES", 4)
    monkeypatch.setattr("prismcap.data.lengths._INLINE_SAMPLES", 0)
    mix, encoder = mix_of(rows), encoder_of()
    whole = index_of(mix, encoder)
    parts = read_index(mix, encoder)
    places = parts.missing(mix, len(mix))
    for rank in range(3):
        parts.fill(places[rank::3], measure(mix, encoder, places[rank::3], num_workers))
    assert np.array_equal(whole.tables[0], parts.tables[0])


def test_only_what_a_run_visits_is_measured(rows: Path) -> None:
    mix, encoder = mix_of(rows), encoder_of()
    index = read_index(mix, encoder)
    places = index.missing(mix, 7)
    assert sorted(map(tuple, places.tolist())) == sorted(mix.locate(position) for position in range(7))
    index.fill(places, measure(mix, encoder, places))
    assert index.at(*mix.locate(6)) == expected(mix, encoder, mix.locate(6))
    assert len(index.missing(mix, 7)) == 0 and len(index.missing(mix, NUM_ROWS)) == NUM_ROWS - 7
    keep_index(index, mix, encoder)
    assert len(read_index(mix, encoder).missing(mix, NUM_ROWS)) == NUM_ROWS - 7, "a longer run adds to it"
    assert measure(mix, encoder, index.missing(mix, 7)).shape == (0, 2)


def test_it_is_kept_for_the_same_data_alone(rows: Path) -> None:
    mix, encoder = mix_of(rows), encoder_of()
    index = index_of(mix, encoder)
    keep_index(index, mix, encoder)

    def num_missing(mix: Mix, encoder: Encoder) -> int:
        return len(read_index(mix, encoder).missing(mix, len(mix)))

    assert num_missing(mix, encoder) == 0
    assert num_missing(mix_of(rows, repeat=3, seed=9), encoder_of()) == 0, "neither order nor repeats decide"
    assert np.array_equal(read_index(mix, encoder).tables[0], index.tables[0])
    others = {
        "tokens of a picture": (mix, encoder_of(tokens=4)),
        "max_tokens": (mix, encoder_of(max_tokens=39)),
        "max_text_tokens": (mix, encoder_of(max_text_tokens=39)),
        "template": (mix, encoder_of(template="plain")),
        "options of the template": (mix, replace(encoder, template=replace(encoder.template, system="q"))),  # type: ignore[type-var]
        "tokenizer": (mix, replace(encoder, tokenizer=tokenizer_of("q", "w", "\n"))),
        "fewer rows": (mix_of(rows, limit=8), encoder),
        "another image root": (mix_of(rows, image_root=str(rows.parent / "x")), encoder),
    }
    for what, (other_mix, other_encoder) in others.items():
        assert num_missing(other_mix, other_encoder) > 0, what
    write_rows(rows, longer=1)
    os.utime(rows, ns=(1, 1))
    changed = mix_of(rows)
    assert num_missing(changed, encoder) == NUM_ROWS, "the file"


def test_what_is_generated_is_not_kept(rows: Path, tmp_path: Path) -> None:
    class Drawn:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            return mix_of(rows).sources[0][0][index]

    assert not isinstance(Drawn(), FileSource)
    mix, encoder = Mix(((Drawn(), 1),), seed=0), encoder_of()
    index = index_of(mix, encoder)
    keep_index(index, mix, encoder)
    assert not (tmp_path / "cache").exists()
    assert len(read_index(mix, encoder).missing(mix, 5)) == 5


def test_a_damaged_file_is_measured_anew_and_a_full_disk_is_said(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix, encoder = mix_of(rows), encoder_of()
    keep_index(index_of(mix, encoder), mix, encoder)
    (kept,) = (tmp_path / "cache" / "lengths").iterdir()
    whole = kept.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"{}", os.urandom(200)):
        kept.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert len(read_index(mix, encoder).missing(mix, NUM_ROWS)) == NUM_ROWS
        assert str(kept) in caplog.text
        caplog.clear()
    kept.unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with caplog.at_level(logging.WARNING):
        keep_index(index_of(mix, encoder), mix, encoder)
    assert "No space left" in caplog.text and list(kept.parent.iterdir()) == []


def _keep_often(rows: Path, times: int) -> None:
    mix, encoder = mix_of(rows), encoder_of()
    index = index_of(mix, encoder)
    for _ in range(times):
        keep_index(index, mix, encoder)


def test_two_processes_may_write_at_once(rows: Path, tmp_path: Path) -> None:
    mix, encoder = mix_of(rows), encoder_of()
    index = index_of(mix, encoder)
    keep_index(index, mix, encoder)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_keep_often, args=(rows, 30)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert np.array_equal(read_index(mix, encoder).tables[0], index.tables[0]), (
            "a reader sees a whole file"
        )
        reads += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0] and reads > 3
    assert len(list((tmp_path / "cache" / "lengths").iterdir())) == 1, "nothing is left lying about"
