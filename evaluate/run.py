"""Measure a trained run on its held-out splits: captions, questions, and their controls."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import EvaluationConfig, RunConfig
from prismcap.data.schema import DataError, ImageRef
from prismcap.data.sources._contract import SourceContext
from prismcap.evaluate.asking import BLANK, Asked, ask, encoder_of, store_of
from prismcap.evaluate.caption_loss import sample_losses
from prismcap.evaluate.clock import Clock
from prismcap.evaluate.inference import inference
from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.outcomes import outcomes_of
from prismcap.evaluate.results import (
    ABOUT,
    METRIC_IDS,
    check_writable,
    measured_before,
    save_thumbnail,
    weights_id,
    write_results,
)
from prismcap.evaluate.scenes.caption_metrics import (
    MeasuredCaptions,
    build_metrics,
    measure_captions,
    try_metrics,
)
from prismcap.evaluate.scenes.controls import shuffled_partners
from prismcap.evaluate.scenes.figures import CONTROLS, Control, Result, figure_values, figures_of
from prismcap.evaluate.scenes.items import Item, split_items
from prismcap.evaluate.scenes.scoring import RIGHT
from prismcap.evaluate.statistics.paired import paired_difference
from prismcap.evaluate.versions import versions
from prismcap.model.captioner import Captioner
from prismcap.model.restore import load_trained

log = logging.getLogger(__name__)

CAPTION_LOSS = "caption_loss"


def evaluate_run(
    run_dir: Path,
    splits: Sequence[str] = (),
    limit: int | None = None,
    device: str = "cpu",
    show_progress: bool = False,
    missing: bool = False,
) -> dict[str, Any]:
    """Measure, write metrics.json, captions.jsonl, outcomes.jsonl and pictures/ into the run folder.

    Returns the metrics. Each split and each stage's caption loss is written as soon as it is measured.

    splits: names to measure, none means all. limit: at most so many items of each kind, for a look.
    missing: leave out what the files hold already, whole and of the same weights.
    Raises ConfigError for a folder that is no finished run, a run without `evaluation`, or an unknown
    split; DataError when a split cannot be measured or the folder cannot be written.
    """
    clock = Clock()
    config, evaluation, chosen = _plan(run_dir, splits)
    weights = weights_id(run_dir, list(config.stages)[-1])
    caption_metrics = build_metrics(evaluation, str(run_dir / "config.yaml"), device)
    identities = {metric.key: metric.metric.identity for metric in caption_metrics}
    before, held = measured_before(run_dir, weights, evaluation.quick, identities) if missing else ({}, set())
    losses = {
        stage: split
        for stage, split in evaluation.caption_loss.items()
        if split in chosen and stage not in held
    }
    names = [name for name in evaluation.splits if name in chosen and name not in held]
    about = partial(_about, config, weights, clock, identities)
    items = {
        name: split_items(name, evaluation.splits[name], _context(config), limit)
        for name in evaluation.splits
        if name in (*names, *losses.values())
    }
    expected = {*evaluation.splits, *evaluation.caption_loss}
    write = partial(
        write_results, run_dir, expected=expected, quick=evaluation.quick, limited=limit is not None
    )
    try_metrics(caption_metrics, [item for name in names for item in items[name]])
    metrics: dict[str, Any] = {}
    if before:
        clock.go_on_from(before)
        metrics = write({**before, "notes": {}}, {}, [])  # with the config's keys of today
    for stage, split in losses.items():
        with clock.part(CAPTION_LOSS), _Bar(show_progress, f"caption loss after {stage}") as bar:
            loss = stage_caption_loss(run_dir, config, stage, items[split], device, bar)
        metrics = write(about({}), {stage: {CAPTION_LOSS: loss}}, [])
    if names:
        with clock.part("load"):
            captioner, _ = load_trained(run_dir, device=device)
    for name in names:
        results, pictures = measure_split(captioner, config, items[name], run_dir, clock, show_progress)
        with clock.part("metrics"):
            captions = measure_captions(caption_metrics, results, config.seed)
        notes, parts = _parts_of(items[name], results, pictures, captions)
        metrics = write(about(notes), **parts)
    return metrics


def _parts_of(
    items: Sequence[Item],
    results: Sequence[Result],
    pictures: Mapping[ImageRef, str],
    captions: MeasuredCaptions,
) -> tuple[dict[str, str], dict[str, Any]]:
    """(notes, what write_results takes) of one split."""
    figures, split = figures_of(items), items[0].split
    notes = {figure.name: figure.note for figure in figures} | captions.notes
    values = {figure.name: figure_values(figure, results) for figure in figures} | captions.values
    return {f"{split}.{name}": note for name, note in notes.items()}, {
        "figures": {split: values},
        "captions": [_record(result, pictures) for result in results],
        "outcomes": outcomes_of(figures, results, captions.of_items),
    }


def _about(
    config: RunConfig,
    weights: str,
    clock: Clock,
    identities: Mapping[str, str],
    notes: Mapping[str, str],
) -> dict[str, Any]:
    """What was measured, how, and how long it took until now."""
    return {
        "run": config.name,
        "weights": weights,
        "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "precision": list(config.stages.values())[-1].precision,
        "min_items": MIN_ITEMS,
        "total_s": round(clock.total_s, 1),
        "parts_s": {part: round(seconds, 1) for part, seconds in clock.parts_s.items()},
        "versions": versions(),
        **({METRIC_IDS: identities} if identities else {}),
        "notes": notes,
    }


def _plan(run_dir: Path, splits: Sequence[str]) -> tuple[RunConfig, EvaluationConfig, set[str]]:
    """The run's config, its evaluation and the splits to measure; names and the folder are checked."""
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is not the folder of a run: it has no config.yaml")
    config = load_config(path)
    evaluation = config.evaluation
    if evaluation is None:
        raise ConfigError(f"{path}: the run has no section 'evaluation', so there is no split to measure")
    for name in splits:
        if name not in evaluation.splits:
            raise ConfigError(f"{path}: evaluation has no split {name!r}.{nearest(name, evaluation.splits)}")
    for name in (ABOUT, *config.stages):
        if name in evaluation.splits:
            raise ConfigError(
                f"{path}: evaluation.splits.{name}: metrics.json keeps this name for "
                f"{'itself' if name == ABOUT else 'the stage'}; choose another"
            )
    for stage, split in evaluation.caption_loss.items():
        at = f"{path}: evaluation.caption_loss.{stage}"
        if stage not in config.stages:
            raise ConfigError(f"{at}: no such stage.{nearest(stage, config.stages)}")
        if split not in evaluation.splits:
            raise ConfigError(f"{at}: no split {split!r}.{nearest(split, evaluation.splits)}")
    check_writable(Path(run_dir))
    return config, evaluation, set(splits) or set(evaluation.splits)


def _context(config: RunConfig) -> SourceContext:
    last = list(config.stages.values())[-1]
    return SourceContext(seed=config.seed, max_image_pixels=last.data.max_image_pixels)


def stage_caption_loss(
    run_dir: Path, config: RunConfig, stage: str, items: Sequence[Item], device: str, bar: _Bar
) -> dict[str, Any]:
    """Loss of the first `num_items` short captions right after `stage`, on true and on other items' pictures.

    {true: {mean}, shuffled: {mean}, difference: {mean, low, high, n}}, nats per token; a difference
    above zero means that the picture helps. It shows what a stage learned whose captions are still wrong.
    """
    assert config.evaluation is not None
    captions = [item for item in items if item.kind == "short"]
    captions = captions[: config.evaluation.splits[items[0].split].num_items]
    if not captions:
        raise DataError(f"evaluation.caption_loss.{stage}: split {items[0].split!r} has no short captions")
    captioner, _ = load_trained(run_dir, device=device, last_stage=stage)
    stage_config = config.stages[stage]
    batch_size = config.evaluation.batch_size
    partners = _partners(captions, config.seed)
    with inference(captioner, stage_config.precision):
        encoder = encoder_of(captioner, stage_config, f"stages.{stage}")
        store = store_of(captioner, stage_config, batch_size)
        bar.total(3 * len(captions))
        store.add([item.image for item in captions], bar.update)
        encoded = [encoder.encode(item.sample) for item in captions]
        others = [
            encoder.encode(replace(item.sample, images=(captions[partner].image,)))
            for item, partner in zip(captions, partners, strict=True)
        ]
        true, shuffled = (
            sample_losses(
                captioner,
                entries,
                store,
                pad_id=encoder.pad_id,
                batch_size=batch_size,
                progress=bar.update,
            )
            for entries in (encoded, others)
        )
    del captioner, store
    gc.collect()  # the next model is loaded before this one would be freed
    return {
        "true": {"mean": round(sum(true) / len(true), 6)},
        "shuffled": {"mean": round(sum(shuffled) / len(shuffled), 6)},
        "difference": paired_difference(true, shuffled, seed=config.seed).as_dict(),
    }


def _partners(items: Sequence[Item], seed: int) -> list[int]:
    """For each item the index of the item whose picture stands in, of the same group."""
    partners = [0] * len(items)
    groups: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.group, []).append(index)
    for group, members in groups.items():
        what = f"split {items[0].split!r}, {group[0]}"
        right_for = partial(_right_for, [items[index] for index in members])
        found = shuffled_partners([items[index].key for index in members], seed, what, right_for)
        for index, partner in zip(members, found, strict=True):
            partners[index] = members[partner]
    return partners


def _right_for(items: Sequence[Item], index: int, other: int) -> bool:
    return items[index].right_for(items[other])


def measure_split(
    captioner: Captioner,
    config: RunConfig,
    items: Sequence[Item],
    run_dir: Path,
    clock: Clock,
    show_progress: bool = False,
) -> tuple[list[Result], Mapping[ImageRef, str]]:
    """Every item with its own, a blank and another picture; and the thumbnails' names by picture."""
    evaluation, stage_name = config.evaluation, list(config.stages)[-1]
    assert evaluation is not None
    stage = config.stages[stage_name]
    encoder = encoder_of(captioner, stage, f"stages.{stage_name}")
    shown = _shown(items, config.seed)
    names: dict[ImageRef, str] = {}

    def keep(image: ImageRef, picture: Image.Image) -> None:
        names[image] = save_thumbnail(run_dir, image.fingerprint(), picture)

    with inference(captioner, stage.precision):
        store = store_of(captioner, stage, evaluation.batch_size, on_draw=keep)
        with clock.part("pictures"), _Bar(show_progress, f"{items[0].split}: pictures") as bar:
            bar.total(len({item.image for item in items}) + 1)
            store.add([*(item.image for item in items), BLANK], bar.update)
        asked: list[Asked] = [
            (control, item, other)
            for control in CONTROLS
            for item, other in zip(items, shown[control], strict=True)
        ]
        # all at once: what a caption's control asks of another item's picture, that item has asked already
        with clock.part("generate"), _Bar(show_progress, f"{items[0].split}: texts") as bar:
            bar.total(len(asked))
            results = ask(captioner, encoder, asked, store, evaluation, bar.update)
    return results, names


def _shown(items: Sequence[Item], seed: int) -> dict[Control, list[Item | None]]:
    """Whose picture each item is shown with, by control; None stands for the blank picture."""
    return {
        "none": list(items),
        "blank": [None] * len(items),
        "shuffled": [items[partner] for partner in _partners(items, seed)],
    }


def _record(result: Result, names: Mapping[ImageRef, str]) -> dict[str, Any]:
    """A line of captions.jsonl."""
    item = result.item
    return {
        "split": item.split,
        "control": result.control,
        "kind": item.kind,
        "id": item.id,
        "num_objects": item.num_objects,
        "prompt": item.prompt,
        "truth": item.truth,
        "generated": result.text.strip(),
        "right": result.flags[RIGHT],
        "flags": result.flags,
        "picture": names[BLANK] if result.shown is None else names[result.shown.image],
    }


class _Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, show: bool, label: str) -> None:
        self._bar = tqdm(desc=label, disable=None if show else True, unit="item", leave=False)

    def total(self, num: int) -> None:
        self._bar.reset(total=num)

    def update(self, num: int) -> None:
        self._bar.update(num)

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
