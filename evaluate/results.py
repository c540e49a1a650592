"""The files of an evaluation in the run folder: written whole, or left as they were."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from prismcap.configs.errors import DataError
from prismcap.configs.files import replace_text
from prismcap.configs.load import AnyConfig, to_yaml

METRIC_IDS = "metrics"  # of `about`: identities of the caption metrics, by name
ABOUT = "about"  # the one key of metrics.json that holds no figures
METRICS, CAPTIONS, PICTURES = "metrics.json", "captions.jsonl", "pictures"
OUTCOMES = "outcomes.jsonl"  # see outcomes.py
THUMBNAIL_PX = 224


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a failed read or write of the run folder into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: the results cannot be written: {error}. Make room and see that the run folder can be "
            "written, then run the same command again."
        ) from error


def check_writable(run_dir: Path) -> None:
    """Raises DataError when the run folder takes no file: asked before an hour of work, not after."""
    with _writing(run_dir), tempfile.TemporaryFile(dir=run_dir, buffering=0) as probe:
        probe.write(b"0")


def put_config(path: Path, config: AnyConfig) -> None:
    """Put the config of a run into its folder, which is made where it is not there and must take files; one
    that says the same is left. Raises DataError when the folder cannot be written."""
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path.parent)
        text = to_yaml(config)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)


def save_thumbnail(run_dir: Path, fingerprint: str, picture: Image.Image) -> str:
    """A small JPEG of the picture, named by its content. Returns its path below the run folder.

    Raises DataError when it cannot be written.
    """
    name = f"{PICTURES}/{fingerprint}.jpg"
    path = run_dir / name
    if path.exists():
        return name
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path):
        path.parent.mkdir(exist_ok=True)
        try:
            # flat colours and hard edges: chroma subsampling would smear them
            small.save(aside, format="JPEG", quality=85, subsampling=0)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    return name


def weights_id(run_dir: Path, stage: str) -> str:
    """A hash that changes with the weights of the stage: of its manifest, else of the file of weights."""
    final = run_dir / stage / "final"
    manifest = final / "manifest.json"
    path = manifest if manifest.is_file() else final / "weights.safetensors"
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def measured_before(
    run_dir: Path, weights: str, quick: bool, metrics: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """The `about` of metrics.json and the keys there that need not be measured again: of these weights.

    Not those that were limited, nor those whose label, of a quick config or not, would be another now, nor
    splits without the file of their outcomes or with other caption metrics (identities by name) than those of
    now. Both are empty when no key is left, or no file can be read.
    """
    with _writing(run_dir / METRICS):
        old = _read_json(run_dir / METRICS)
    about = old.get(ABOUT, {})
    if about.get("weights") != weights:
        return {}, set()
    whole = old.keys() - {ABOUT, *about.get("limited_in", [])}
    held = {key for key in whole if (key in about.get("quick_in", [])) == quick}
    if not (run_dir / OUTCOMES).is_file() or _other_metrics(about, {METRIC_IDS: metrics}):
        held = {key for key in held if not any("rate" in value for value in old[key].values())}
    return (dict(about), held) if held else ({}, set())


def write_results(
    run_dir: Path,
    about: dict[str, Any],
    figures: dict[str, Any],
    captions: list[dict[str, Any]],
    *,
    outcomes: Sequence[Mapping[str, Any]] = (),
    expected: Collection[str],
    quick: bool,
    limited: bool,
) -> dict[str, Any]:
    """Write the three files; returns what metrics.json holds.

    Figures, captions and outcomes of other splits stay when they are of the same weights and the config
    still has them, so that one split can be measured again by itself; others go, and so do those of caption
    metrics that have another identity now. expected: every key of
    figures that the config asks for. quick, limited: whether these figures are of a quick config, and of
    fewer items than the config says. Each is kept by key (`quick_in`, `limited_in`) and added up in `about`:
    `quick` and `limited` when any figure of the file is, `complete` when nothing that is expected is absent
    or limited. Raises DataError when the folder cannot be written.
    """
    with _writing(run_dir / METRICS):
        old = _read_json(run_dir / METRICS)
        before = old.get(ABOUT, {})
        if before.get("weights") != about["weights"]:
            old, before = {}, {}
        others = _other_metrics(before, about)
        kept = {
            key: {name: value for name, value in of.items() if _metric(name) not in others}
            for key, of in old.items()
            if key in expected and key not in figures
        }
        quick_in = _marked(before, "quick_in", kept) + (list(figures) if quick else [])
        limited_in = _marked(before, "limited_in", kept) + (list(figures) if limited else [])

        def stands(figure: str) -> bool:
            split, _, name = figure.partition(".")
            return split in kept and _metric(name) not in others

        notes = {key: note for key, note in before.get("notes", {}).items() if stands(key)}
        about = {
            **about,
            "quick": bool(quick_in),
            "limited": bool(limited_in),
            "complete": not limited_in and set(expected) <= kept.keys() | figures.keys(),
            "quick_in": quick_in,
            "limited_in": limited_in,
            "notes": {**notes, **about["notes"]},
        }
        metrics = {ABOUT: about, **kept, **figures}
        captions = [*_kept(run_dir / CAPTIONS, lambda record: record["split"] in kept), *captions]
        outcomes = [*_kept(run_dir / OUTCOMES, lambda record: stands(record["figure"])), *outcomes]
        for name, records in ((CAPTIONS, captions), (OUTCOMES, outcomes)):
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            replace_text(run_dir / name, "".join(lines))
        replace_text(run_dir / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
        _prune(run_dir, {record["picture"] for record in captions if record.get("picture")})
    return metrics


def _marked(about: Mapping[str, Any], mark: str, kept: Collection[str]) -> list[str]:
    return [key for key in about.get(mark, []) if key in kept]


def _metric(figure: str) -> str:
    """Of `<metric>.<figure>`; "" of a split's own figures."""
    return figure.rpartition(".")[0].partition(".")[0]


def _other_metrics(before: Mapping[str, Any], about: Mapping[str, Any]) -> set[str]:
    """The caption metrics that only one of the two has, or under another identity."""
    then, now = before.get(METRIC_IDS, {}), about.get(METRIC_IDS, {})
    return {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)}


def _kept(path: Path, stands: Callable[[Mapping[str, Any]], bool]) -> Iterable[dict[str, Any]]:
    """The records of a JSONL file that stand."""
    if not path.is_file():
        return []
    # not splitlines(): a text may hold other ends of lines, such as U+2028
    lines = path.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line.strip()]
    return [record for record in records if stands(record)]


def _read_json(path: Path) -> Mapping[str, Any]:
    """The old figures, nothing when there are none that can be read: they are about to be replaced."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _prune(run_dir: Path, used: set[str]) -> None:
    """Remove thumbnails that no caption names any more, and what a killed process left half written."""
    for pattern in ("*.jpg", ".*.tmp"):
        for path in (run_dir / PICTURES).glob(pattern):
            if f"{PICTURES}/{path.name}" not in used:
                path.unlink()
