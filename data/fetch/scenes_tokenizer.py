"""The tokenizer of small decoders that learn the language of scenes from nothing.

It is made of what the scenes of the fetched drawings can say: each of their words is one token, so that texts
are short, and everything else is spelt in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prismcap.configs.errors import ConfigError
from prismcap.data.fetch.byte_tokenizer import write_byte_tokenizer
from prismcap.data.fetch.packages import FetchError, Say, put_in_place, work_folder
from prismcap.data.scenes.graph import LAYOUTS
from prismcap.data.scenes.items import SceneItems
from prismcap.data.scenes.make import SceneMaker
from prismcap.data.scenes.objects import ObjectSet, load_objects
from prismcap.data.scenes.text import KINDS
from prismcap.data.schema import SampleRejected, TextPart

NAME = "scenes_tokenizer"
OBJECTS = "tuxpaint"
SCENES_PER_WORD = 4  # each word is dealt so often; backgrounds, places and numbers come far more often
ROLES = "system\nuser\nassistant\n"  # as chat templates write them


def make_scenes_tokenizer(cache: Path, say: Say) -> Path:
    """Make <cache>/scenes_tokenizer, whole, unless it is there.

    Raises FetchError when the drawings have not been fetched, or when it cannot be written.
    """
    target = cache / NAME
    if target.is_dir():
        say(f"{NAME}: already in {target}")
        return target
    try:
        found = load_objects(OBJECTS, cache / "objects")
    except ConfigError as error:
        raise FetchError(str(error)) from error
    with work_folder(target) as work:
        made = work / "made"
        made.mkdir()
        write_byte_tokenizer(made, scene_texts(found))
        put_in_place(made, target)
    say(f"{NAME}: {target}")
    return target


def scene_texts(objects: ObjectSet) -> Iterator[str]:
    """Every prompt and answer about scenes in which every word occurs, and the names of roles."""
    yield ROLES
    maker = SceneMaker(objects, split="train", num_objects=dict.fromkeys(LAYOUTS, 1.0))
    num_scenes = SCENES_PER_WORD * len(objects.words)
    items = SceneItems(objects, maker, num_scenes, dict.fromkeys(KINDS, 1), described=True)
    for index in range(len(items)):
        try:
            sample = items[index]
        except SampleRejected:  # no word is left to ask for: other scenes ask
            continue
        for message in sample.messages:
            yield from (part.text for part in message.parts if isinstance(part, TextPart))
