"""The tokenizer of scenes: short, exact, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prismcap.data.fetch.byte_tokenizer import MARKS
from prismcap.data.fetch.packages import FetchError
from prismcap.data.fetch.scenes_tokenizer import NAME, make_scenes_tokenizer, scene_texts
from prismcap.data.scenes.objects import load_objects, objects_root
from prismcap.data.scenes.words import with_article


def made_in(cache: Path) -> Path:
    if not (objects_root() / "tuxpaint" / "index.json").is_file():
        pytest.skip("no Tux Paint drawings: run `prismcap fetch stamps`")
    cache.mkdir()
    (cache / "objects").symlink_to(objects_root())
    return make_scenes_tokenizer(cache, lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_in(tmp_path_factory.mktemp("made") / "cache")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_it_is_made_once_and_the_same(folder: Path, tmp_path: Path) -> None:
    again = made_in(tmp_path / "cache")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in again.iterdir()}
    said: list[str] = []
    make_scenes_tokenizer(tmp_path / "cache", said.append)
    assert said == [f"{NAME}: already in {again}"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["objects", NAME]


def test_every_word_is_one_token(tokenizer: Any) -> None:
    objects = load_objects("tuxpaint")
    texts = [f"There is {with_article(word)} in the middle." for word in objects.words]
    texts += list(scene_texts(objects))[::97]
    pieces = tokenizer.backend_tokenizer.pre_tokenizer
    for text in texts:
        assert len(tokenizer.encode(text)) == len(pieces.pre_tokenize_str(text)), text


@pytest.mark.parametrize(
    "text", ["A tiger on the left.", "Ünseen words ✓ 42\n", "<|im_start|>user\nWhat?<|im_end|>"]
)
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_marks_are_tokens_of_their_own(tokenizer: Any) -> None:
    assert [tokenizer.encode(mark) for mark in MARKS] == [[i] for i in range(len(MARKS))]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_without_drawings_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="prismcap fetch stamps"):
        make_scenes_tokenizer(tmp_path, lambda _: None)
    assert not list(tmp_path.iterdir())
