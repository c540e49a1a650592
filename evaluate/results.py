"""metrics.json, captions.jsonl and the thumbnails of a run: written whole, or left as they were."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

ABOUT = "about"  # the one key of metrics.json that holds no figures
METRICS, CAPTIONS, PICTURES = "metrics.json", "captions.jsonl", "pictures"
THUMBNAIL_PX = 224


def write_aside(path: Path, text: str) -> None:
    """Put `text` at `path` at once: a crash leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save_thumbnail(run_dir: Path, fingerprint: str, picture: Image.Image) -> str:
    """A small JPEG of the picture, named by its content. Returns its path below the run folder."""
    name = f"{PICTURES}/{fingerprint}.jpg"
    path = run_dir / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        small = picture.copy()
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        # flat colours and hard edges: chroma subsampling would smear them
        small.save(path, quality=85, subsampling=0)
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


def write_results(
    run_dir: Path, about: dict[str, Any], figures: dict[str, Any], captions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write both files; returns what metrics.json holds.

    Figures and captions of other splits stay when they are of the same weights, so that one split can
    be measured again by itself; those of other weights go.
    """
    metrics = {ABOUT: about, **figures}
    old = _read_json(run_dir / METRICS)
    if old.get(ABOUT, {}).get("weights") == about["weights"]:
        kept = {split: value for split, value in old.items() if split not in metrics}
        notes = {key: note for key, note in old[ABOUT].get("notes", {}).items() if key.split(".")[0] in kept}
        metrics = {ABOUT: {**about, "notes": {**notes, **about["notes"]}}, **kept, **figures}
        measured = {record["split"] for record in captions}
        captions = [*_other_captions(run_dir / CAPTIONS, measured, set(kept)), *captions]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in captions]
    write_aside(run_dir / CAPTIONS, "".join(lines))
    write_aside(run_dir / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    _prune(run_dir, {record["picture"] for record in captions if record.get("picture")})
    return metrics


def _other_captions(path: Path, measured: set[str], kept: set[str]) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [record for record in records if record["split"] in kept and record["split"] not in measured]


def _read_json(path: Path) -> Mapping[str, Any]:
    """The old figures, nothing when there are none that can be read: they are about to be replaced."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _prune(run_dir: Path, used: set[str]) -> None:
    """Remove thumbnails that no caption names any more."""
    for path in (run_dir / PICTURES).glob("*.jpg"):
        if f"{PICTURES}/{path.name}" not in used:
            path.unlink()
