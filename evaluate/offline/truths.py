"""What is known of pictures: right captions, the objects that are there, statements. By id, or by picture.

- COCO's annotations: {images: [{id, file_name}], annotations: [{image_id, caption}]} give references, those
  of instances ([{image_id, category_id}] with categories) give objects; an image without any has none, which
  is known
- rows {id or image, references: […], objects: […], statements: […]}, of which each file's use needs its own
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from prismcap.configs.errors import DataError
from prismcap.evaluate.offline.rows import JsonFile, Row, name_of, read_json_file, shown
from prismcap.evaluate.offline.texts import ID_KEYS


@dataclass(frozen=True)
class Truth:
    """What one row or image says. image: its file, "" where it is not said."""

    image: str = ""
    references: tuple[str, ...] = ()
    objects: tuple[str, ...] | None = None
    statements: tuple[str, ...] = ()


@dataclass
class Truths:
    """of_pictures: whether ids are those of pictures (COCO), so that no question's id must meet them."""

    path: Path
    checksum: str
    of_pictures: bool
    by_id: dict[str, Truth] = field(default_factory=dict)
    by_name: dict[str, Truth | None] = field(default_factory=dict)  # None: several pictures have this name

    def add(self, id: str, truth: Truth, where: str) -> None:
        if id in self.by_id:
            raise DataError(f"{where}: {id!r} is there already; keep one row for each")
        self.by_id[id] = truth
        for name in {truth.image, name_of(truth.image)} - {"", id}:
            self.by_name[name] = None if name in self.by_name else truth

    def find(self, keys: list[str]) -> Truth | None:
        """Of the first key that is known, ids before names."""
        for known in (self.by_id, self.by_name):
            for key in keys:
                found = known.get(key)
                if found is not None:
                    return found
        return None


def read_references(path: Path) -> Truths:
    """Raises DataError naming file, row, key and value."""
    form = "COCO captions ({images, annotations}) or rows of {id or image, references: […]}"
    file = read_json_file(path, form)
    if file.whole is None:
        return _of_rows(file, "references")
    captions: dict[str, list[str]] = {}
    for image, row in _annotations(file, "caption"):
        captions.setdefault(image, []).append(row.text_of("caption"))
    annotated = {id: Truth(references=tuple(texts)) for id, texts in captions.items()}
    return _of_images(file, annotated, nothing=Truth())


def read_objects(path: Path) -> Truths:
    """Raises as read_references."""
    form = "COCO instances ({images, annotations, categories}) or rows of {id or image, objects: […]}"
    file = read_json_file(path, form)
    if file.whole is None:
        return _of_rows(file, "objects")
    names = {row.id_of("id"): row.text_of("name") for row in _list(file, "categories", "the objects' names")}
    objects: dict[str, dict[str, None]] = {}
    for image, row in _annotations(file, "category_id"):
        category = row.id_of("category_id")
        if category not in names:
            raise DataError(f"{row.where}, key 'category_id': {category} is not among the categories")
        objects.setdefault(image, {})[names[category]] = None
    annotated = {id: Truth(objects=tuple(of_image)) for id, of_image in objects.items()}
    return _of_images(file, annotated, nothing=Truth(objects=()))


def _of_images(file: JsonFile, annotated: dict[str, Truth], nothing: Truth) -> Truths:
    """What is annotated of every image of COCO's; nothing: what is known of one without annotations."""
    truths = Truths(file.path, file.checksum, of_pictures=True)
    for id, image in _images(file, annotated).items():
        truths.add(id, replace(annotated.get(id, nothing), image=image), str(file.path))
    return truths


def _of_rows(file: JsonFile, needed: str) -> Truths:
    truths = Truths(file.path, file.checksum, of_pictures=False)
    for row in file.rows:
        id_key = row.key_of(ID_KEYS)
        if needed not in row.values and "statements" not in row.values:
            raise DataError(f"{row.where}: no key {needed!r}; it has {shown(list(row.values))}")
        truth = Truth(
            image=row.optional_text_of("image"),
            references=row.texts_of("references") if "references" in row.values else (),
            objects=row.texts_of("objects") if "objects" in row.values else None,
            statements=row.texts_of("statements") if "statements" in row.values else (),
        )
        truths.add(row.id_of(id_key), truth, f"{row.where}, key {id_key!r}")
    return truths


def _images(file: JsonFile, annotated: Iterable[str]) -> dict[str, str]:
    """Id -> file name of every image, those that only an annotation names among them, without a name."""
    found = {}
    for row in _list(file, "images", "ids and file names") if file.whole and "images" in file.whole else ():
        found[row.id_of("id")] = row.optional_text_of("file_name")
    return found | {id: "" for id in annotated if id not in found}


def _annotations(file: JsonFile, key: str) -> list[tuple[str, Row]]:
    """(image, annotation) of each; the key of the first tells whether it is the right file."""
    rows = _list(file, "annotations", f"image_id and {key}")
    if rows and key not in rows[0].values:
        other = "objects" if "category_id" in rows[0].values else "captions"
        raise DataError(f"{rows[0].where}: no key {key!r}; this seems to be COCO's file of {other}")
    return [(row.id_of("image_id"), row) for row in rows]


def _list(file: JsonFile, key: str, what: str) -> list[Row]:
    value = (file.whole or {}).get(key)
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise DataError(f"{file.path}, key {key!r}: expected a list of objects with {what}")
    return [Row(f"{file.path}, {key} {number}", part) for number, part in enumerate(value)]
