"""Lists of objects with their synonyms: of COCO, of the composed scenes, or of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import DataError
from prismcap.data.scenes.words import manners, word_list
from prismcap.evaluate.metrics._terms import Terms

NONE = "(none)"  # key of the phrases that name none of the objects
_FOLDER = Path(__file__).parent
_COCO = "_coco_objects.yaml"
_SCENE_WORDS = "_scene_words.yaml"  # those that no reviewed list has
_SHAPE = "a mapping of objects to lists of synonyms is expected"


@dataclass(frozen=True)
class Vocabulary:
    """overlap: for a name those that may be said of the same thing (a rose is a flower). is_closed: whether a
    picture can hold nothing else."""

    terms: Terms
    digest: str
    overlap: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_closed: bool = True


def load_vocabulary(name: str) -> Vocabulary:
    """`coco`, `scenes`, or a YAML or JSON file (`cache:…` too).

    A file maps each object to its synonyms; the key "(none)" holds phrases that name no object. Plurals
    need not be listed. Raises DataError naming file, key and value.
    """
    if name == "scenes":
        return scene_vocabulary()
    path = _FOLDER / _COCO if name == "coco" else resolve_path(name)
    return _closed(_read(path), path)


@lru_cache(maxsize=1)
def scene_vocabulary() -> Vocabulary:
    """Every word that names a drawing of the object sets, fetched or not; a picture may hold more."""
    words = set(yaml.safe_load((_FOLDER / _SCENE_WORDS).read_text(encoding="utf-8")))
    words |= manners().plural | manners().mass | set(manners().overlap)
    for name in ("tuxpaint", "openmoji"):
        reviewed = word_list(name)
        words |= set(reviewed.words) | set(reviewed.categories)
    spellings: dict[str, tuple[str, ...]] = {word: () for word in sorted(words)}
    overlap = manners().overlap
    told = {word: sorted(group) for word, group in sorted(overlap.items())}
    return Vocabulary(Terms(spellings), _digest([list(spellings), told]), overlap, is_closed=False)


def _closed(values: Mapping[str, tuple[str, ...]], path: Path) -> Vocabulary:
    objects = {name: phrases for name, phrases in values.items() if name != NONE}
    if not objects:
        raise DataError(f"{path}: no objects: {_SHAPE}")
    try:
        terms = Terms(objects, values.get(NONE, ()))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return Vocabulary(terms, _digest({name: sorted(phrases) for name, phrases in values.items()}))


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: synonyms cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: {_SHAPE}, found {type(values).__name__}")
    return {_text(path, name, name): _phrases(path, name, phrases) for name, phrases in values.items()}


def _phrases(path: Path, name: Any, values: Any) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, list):
        raise DataError(f"{path}, key {name!r}: a list of synonyms is expected, found {values!r}")
    return tuple(_text(path, name, value) for value in values)


def _text(path: Path, name: Any, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{path}, key {name!r}: {value!r} is no text: put it in quotes")
    return value


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
