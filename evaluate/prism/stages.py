"""The three stages that ask models: instruct, perceive, reason. What is known is not asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.prism.cells import Cell
from prismcap.evaluate.prism.components import build_perceiver, build_reasoner, free_memory, set_threads
from prismcap.evaluate.prism.pipeline import Pipeline, Unit
from prismcap.evaluate.prism.questions import Questions
from prismcap.evaluate.prism.store import Store, append_line
from prismcap.evaluate.prism.work import CHUNK_BATCHES, Ask, Job, Notes, complete, no_notes
from prismcap.evaluate.prism.written_parts import clean_part


class Stages:
    """Runs stages of a pipeline. retry_before: see Store; of the stages that are run, not of those read."""

    def __init__(
        self, pipeline: Pipeline, retry_before: str | None = None, show_progress: bool = False
    ) -> None:
        self.pipeline = pipeline
        self.retry_before = retry_before
        self.show_progress = show_progress
        self._worked = False  # whether the component at hand may hold weights

    def instruct(self) -> None:
        """Have every query-specific instruction written; new parts go into the instruction's file, if any."""
        writers: dict[str, list[Unit]] = {}
        for unit in self.pipeline.written:
            writers.setdefault(str(self.pipeline.instruction(unit).written_by), []).append(unit)
        for writer, units in writers.items():
            self._write_with(writer, units)
            self._free()

    def _write_with(self, writer: str, units: Sequence[Unit]) -> None:
        line = self.pipeline
        reasoner = build_reasoner(line.config, writer, line.decoding("instruct"), line.device)
        for unit in units:
            shown = line.instruction(unit).options_shown
            notes = partial(_part_notes, line.questions(unit[1]), shown)
            jobs, store = line.instruct_jobs(unit), self._store(line.instruct_path(unit))
            self._complete(store, jobs, reasoner.answer, f"instruct {unit[0]} ({unit[1]})", notes)
            self._pin(unit, store, jobs)

    def _pin(self, unit: Unit, store: Store, jobs: Sequence[Job[Any]]) -> None:
        path = self.pipeline.pinned_path(unit)
        if path is None:
            return
        pinned = self.pipeline.pinned(unit)  # read again: another process may have pinned them meanwhile
        for job in jobs:
            entry = store.get(job.key)
            if entry is not None and entry.answer.status == "ok" and job.question_id not in pinned:
                append_line(path, {"benchmark": unit[1], "id": job.question_id, **entry.notes})

    def perceive(self) -> None:
        """Have every description written, once for each distinct pictures and instruction."""
        perceivers: dict[str, list[Unit]] = {}
        for perceiver, unit in self.pipeline.described:
            perceivers.setdefault(perceiver, []).append(unit)
        for perceiver, units in perceivers.items():
            self._describe_with(perceiver, units)
            self._free()

    def _describe_with(self, name: str, units: Sequence[Unit]) -> None:
        line = self.pipeline
        perceiver = build_perceiver(line.config, name, line.decoding("perceive"), line.device)
        for unit in units:
            store, jobs = self._store(line.perceive_path(name, unit)), line.perceive_jobs(name, unit)
            self._complete(store, jobs, perceiver.describe, f"perceive {name} {unit[0]} ({unit[1]})")

    def reason(self) -> None:
        """Have every question of every cell answered."""
        reasoners: dict[str, list[Cell]] = {}
        perceivers: dict[str, list[Cell]] = {}
        for cell in self.pipeline.cells:
            by_name = perceivers if cell.is_end_to_end else reasoners
            by_name.setdefault(cell.perceiver if cell.is_end_to_end else cell.reasoner, []).append(cell)
        for name, cells in reasoners.items():
            self._reason_with(name, cells)
            self._free()
        for name, cells in perceivers.items():
            self._answer_with(name, cells)
            self._free()

    def _reason_with(self, name: str, cells: Sequence[Cell]) -> None:
        line = self.pipeline
        reasoner = build_reasoner(line.config, name, line.decoding("reason"), line.device)
        for cell in cells:
            jobs = [job for job in line.reason_jobs(cell, line.descriptions(cell)) if job is not None]
            self._complete(self._store(line.reason_path(cell)), jobs, reasoner.answer, _label(cell))

    def _answer_with(self, name: str, cells: Sequence[Cell]) -> None:
        line = self.pipeline
        perceiver = build_perceiver(line.config, name, line.decoding("reason"), line.device)
        for cell in cells:
            store, jobs = self._store(line.reason_path(cell)), line.end_to_end_jobs(cell)
            self._complete(store, jobs, perceiver.describe, _label(cell))

    def _free(self) -> None:
        """When no reference to a component is left. It takes a while, so not for one that did nothing."""
        if self._worked:
            free_memory()
        self._worked = False

    def _store(self, path: Path) -> Store:
        return Store(path, self.retry_before)

    def _complete(
        self, store: Store, jobs: Sequence[Job[Any]], ask: Ask[Any], label: str, notes: Notes = no_notes
    ) -> None:
        config = self.pipeline.config
        if any(job.key not in store for job in jobs):
            set_threads(config.local)
            self._worked = True
        chunk = CHUNK_BATCHES * config.local.batch_size
        complete(store, jobs, ask, chunk=chunk, label=label, show_progress=self.show_progress, notes=notes)


def _part_notes(
    questions: Questions, options_shown: bool, job: Job[Any], answer: Answer
) -> Mapping[str, Any]:
    """What of a reply becomes the part, or why none does."""
    if answer.status == "failed":
        return {"part": None, "fallback": f"the request failed: {answer.error}"}
    part = clean_part(answer.text, questions.by_id[job.question_id], options_shown)
    return {"part": part.text, "fallback": part.fallback}


def _label(cell: Cell) -> str:
    told = "" if cell.is_blind or cell.is_end_to_end else f" {cell.instruction}"
    return f"reason {cell.reasoner} on {cell.perceiver}{told} ({cell.benchmark})"
