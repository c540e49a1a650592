"""The requests of a run by stage, and what of them is answered: each stage reads the one before it.

Requests are lists in the order of the questions; questions that need the same text share a key. Nothing here
loads weights or decodes pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.prism import Decoding, InstructionConfig, PrismConfig
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.perceivers._contract import Perceiver, PerceiveRequest
from prismcap.evaluate.prism.cells import Cell, expand_cells
from prismcap.evaluate.prism.components import build_perceiver, build_reasoner
from prismcap.evaluate.prism.instructions import generic_text, specific_text, writer_prompt
from prismcap.evaluate.prism.prompts import end_to_end_prompt, reasoning_prompt
from prismcap.evaluate.prism.questions import Questions, load_questions
from prismcap.evaluate.prism.store import Entry, Store, read_pinned, request_key
from prismcap.evaluate.prism.work import Job
from prismcap.evaluate.reasoners._contract import ReasonRequest

Stage = Literal["instruct", "perceive", "reason"]
# raise a stage's number when its code makes another text of the same request
VERSIONS: dict[Stage, int] = {"instruct": 1, "perceive": 1, "reason": 1}
Unit = tuple[str, str]  # (instruction, benchmark)


@dataclass(frozen=True)
class CellAnswers:
    """By question of the cell; None where there is none: see Pipeline.descriptions and Pipeline.replies."""

    cell: Cell
    descriptions: Sequence[Entry | None]
    replies: Sequence[Entry | None]


class Pipeline:
    """A run's cells and the work that they make. device: of local models."""

    def __init__(self, config: PrismConfig, run_dir: Path, device: str = "cpu") -> None:
        self.config = config
        self.run_dir = run_dir
        self.device = device
        self.cells = expand_cells(config)
        self._questions: dict[str, Questions] = {}
        self._identities: dict[tuple[str, str, Stage], Mapping[str, Any]] = {}
        self._texts: dict[Unit, list[str]] = {}
        self._perceive_jobs: dict[tuple[str, Unit], list[Job[PerceiveRequest]]] = {}

    def questions(self, benchmark: str) -> Questions:
        if benchmark not in self._questions:
            limits = [limit for cell, limit in self.cells.items() if cell.benchmark == benchmark]
            self._questions[benchmark] = load_questions(self.config, benchmark, _largest(limits))
        return self._questions[benchmark]

    @cached_property
    def described(self) -> dict[tuple[str, Unit], int | None]:
        """(perceiver, (instruction, benchmark)) -> limit, of the descriptions that the cells need."""
        units: dict[tuple[str, Unit], int | None] = {}
        for cell, limit in self.cells.items():
            if not cell.is_blind and not cell.is_end_to_end:
                key = cell.perceiver, (cell.instruction, cell.benchmark)
                units[key] = _largest([limit, units[key]]) if key in units else limit
        return units

    @cached_property
    def written(self) -> dict[Unit, int | None]:
        """(instruction, benchmark) -> limit, of the query-specific instructions that the cells need."""
        units: dict[Unit, int | None] = {}
        for (_, unit), limit in self.described.items():
            if self.instruction(unit).written_by is not None:
                units[unit] = _largest([limit, units[unit]]) if unit in units else limit
        return units

    def instruction(self, unit: Unit) -> InstructionConfig:
        return self.config.instructions[unit[0]]

    # instruct

    def instruct_path(self, unit: Unit) -> Path:
        return self.run_dir / "instruct" / unit[0] / f"{unit[1]}.jsonl"

    def pinned_path(self, unit: Unit) -> Path | None:
        file = self.instruction(unit).file
        return None if file is None else resolve_path(file)

    def pinned(self, unit: Unit) -> dict[str, str | None]:
        """Question id -> part, of the instruction's own file; None: the generic text stands alone."""
        path = self.pinned_path(unit)
        rows = [] if path is None else read_pinned(path, ("benchmark", "id"))
        return {row["id"]: row.get("part") for row in rows if row["benchmark"] == unit[1]}

    def instruct_jobs(self, unit: Unit) -> list[Job[ReasonRequest]]:
        """A request for each question whose part is not pinned."""
        instruction, pinned = self.instruction(unit), self.pinned(unit)
        assert instruction.written_by is not None
        about = self._reasoner(instruction.written_by, "instruct")
        jobs = []
        for question in self.questions(unit[1]).first(self.written[unit]):
            if question.id in pinned:
                continue
            prompt = writer_prompt(question, instruction.options_shown)
            # the options decide whether a part gives one away
            parts = {"prompt": prompt, "options": question.options, **about}
            key = request_key("instruct", VERSIONS["instruct"], parts)
            jobs.append(Job(key, question.id, ReasonRequest(prompt)))
        return jobs

    def texts(self, unit: Unit) -> list[str]:
        """What the perceivers are told, by question. Raises ConfigError where a part is not written yet."""
        if unit not in self._texts:
            instruction = self.instruction(unit)
            limit = _largest([limit for (_, other), limit in self.described.items() if other == unit])
            questions = self.questions(unit[1]).first(limit)
            if instruction.written_by is None:
                self._texts[unit] = [generic_text(instruction)] * len(questions)
            else:
                parts = self._parts(unit)
                self._texts[unit] = [specific_text(instruction, parts[one.id]) for one in questions]
        return self._texts[unit]

    def _parts(self, unit: Unit) -> dict[str, str | None]:
        jobs, store = self.instruct_jobs(unit), Store(self.instruct_path(unit))
        entries = require(store, jobs, "instruct", f"instruction {unit[0]!r} on {unit[1]!r}")
        written = {job.question_id: entry.notes.get("part") for job, entry in zip(jobs, entries, strict=True)}
        return {**written, **self.pinned(unit)}

    # perceive

    def perceive_path(self, perceiver: str, unit: Unit) -> Path:
        return self.run_dir / "perceive" / perceiver / unit[0] / f"{unit[1]}.jsonl"

    def perceive_jobs(self, perceiver: str, unit: Unit) -> list[Job[PerceiveRequest]]:
        """A request for each question. Raises ConfigError where its instruction is not written yet."""
        if (perceiver, unit) not in self._perceive_jobs:
            limit = self.described[perceiver, unit]
            questions = self.questions(unit[1]).first(limit)
            texts = self.texts(unit)[: len(questions)]
            self._perceive_jobs[perceiver, unit] = [
                self._picture_job("perceive", perceiver, unit[1], question, text)
                for question, text in zip(questions, texts, strict=True)
            ]
        return self._perceive_jobs[perceiver, unit]

    def _picture_job(
        self, stage: Stage, perceiver: str, benchmark: str, question: Question, text: str
    ) -> Job[PerceiveRequest]:
        about = dict(self._perceiver(perceiver, stage))
        pictures = [self.questions(benchmark).fingerprint(image) for image in question.images]
        if not about.pop("needs_pictures"):
            # looked up by question; the pictures too, since descriptions may be filed under theirs
            about["question"] = [benchmark, question.id, question.reference]
        key = request_key(stage, VERSIONS[stage], {"instruction": text, "pictures": pictures, **about})
        request = PerceiveRequest(benchmark, question.id, question.images, text, question.reference)
        return Job(key, question.id, request)

    def descriptions(self, cell: Cell) -> list[Entry | None]:
        """The row of each of the cell's questions; None where the cell has no descriptions.

        Raises ConfigError where one is not there yet.
        """
        num_questions = len(self.questions(cell.benchmark).first(self.cells[cell]))
        if cell.is_blind or cell.is_end_to_end:
            return [None] * num_questions
        unit = cell.instruction, cell.benchmark
        jobs = self.perceive_jobs(cell.perceiver, unit)[:num_questions]
        store = Store(self.perceive_path(cell.perceiver, unit))
        what = f"perceiver {cell.perceiver!r} with instruction {unit[0]!r} on {unit[1]!r}"
        return list(require(store, jobs, "perceive", what))

    # reason

    def reason_path(self, cell: Cell) -> Path:
        folder = self.run_dir / "reason" / cell.reasoner / cell.perceiver / cell.instruction
        return folder / f"{cell.benchmark}.jsonl"

    def reason_jobs(
        self, cell: Cell, descriptions: Sequence[Entry | None]
    ) -> list[Job[ReasonRequest] | None]:
        """A request for each question; None where its description failed: there is nothing to reason on."""
        about = self._reasoner(cell.reasoner, "reason")
        questions = self.questions(cell.benchmark).first(self.cells[cell])
        jobs: list[Job[ReasonRequest] | None] = []
        for question, entry in zip(questions, descriptions, strict=True):
            if entry is not None and entry.answer.status == "failed":
                jobs.append(None)
                continue
            description = None if entry is None else entry.answer.text
            prompt = reasoning_prompt(question, description)
            parts = {"prompt": prompt, "description": description, "id": question.id, **about}
            key = request_key("reason", VERSIONS["reason"], parts)
            jobs.append(Job(key, question.id, ReasonRequest(prompt, question, description)))
        return jobs

    def end_to_end_jobs(self, cell: Cell) -> list[Job[PerceiveRequest]]:
        """The question itself, put to the perceiver with its pictures; decoded as replies are."""
        questions = self.questions(cell.benchmark).first(self.cells[cell])
        return [
            self._picture_job("reason", cell.perceiver, cell.benchmark, one, end_to_end_prompt(one))
            for one in questions
        ]

    def replies(self, cell: Cell, descriptions: Sequence[Entry | None]) -> list[Entry | None]:
        """The row of each question; None where its description failed. Raises ConfigError where one is
        absent."""
        jobs: Sequence[Job[Any] | None]
        jobs = self.end_to_end_jobs(cell) if cell.is_end_to_end else self.reason_jobs(cell, descriptions)
        asked = [job for job in jobs if job is not None]
        what = f"reasoner {cell.reasoner!r} on {cell.perceiver!r}, {cell.instruction!r}, {cell.benchmark!r}"
        entries = iter(require(Store(self.reason_path(cell)), asked, "reason", what))
        return [None if job is None else next(entries) for job in jobs]

    def answers(self, cell: Cell) -> CellAnswers:
        """All rows of a cell. Raises ConfigError where one is not there yet."""
        descriptions = self.descriptions(cell)
        return CellAnswers(cell, descriptions, self.replies(cell, descriptions))

    # what decides a text besides the request

    def decoding(self, stage: Stage) -> Decoding:
        decoding: Decoding = getattr(self.config.decoding, stage)
        return decoding

    def _reasoner(self, name: str, stage: Stage) -> Mapping[str, Any]:
        if (key := ("reasoner", name, stage)) not in self._identities:
            decoding = self.decoding(stage)
            built = build_reasoner(self.config, name, decoding, self.device)
            self._identities[key] = {"model": built.identity, "decoding": decoding.model_dump()}
        return self._identities[key]

    def _perceiver(self, name: str, stage: Stage) -> Mapping[str, Any]:
        if (key := ("perceiver", name, stage)) not in self._identities:
            decoding = self.decoding(stage)
            built: Perceiver = build_perceiver(self.config, name, decoding, self.device)
            self._identities[key] = {
                "model": built.identity,
                "needs_pictures": built.needs_pictures,
                "decoding": decoding.model_dump(),
            }
        return self._identities[key]


def require(store: Store, jobs: Sequence[Job[Any]], stage: Stage, what: str) -> list[Entry]:
    """The row of every job. Raises ConfigError that names the stage to run first."""
    entries = [entry for job in jobs if (entry := store.get(job.key)) is not None]
    if len(entries) < len(jobs):
        raise ConfigError(
            f"{what}: {len(jobs) - len(entries)} of {len(jobs)} answers are not there yet (in {store.path}). "
            f"Run the stage {stage} first: --stage {stage}"
        )
    return entries


def _largest(limits: Sequence[int | None]) -> int | None:
    """None is no limit."""
    return None if None in limits else max(limit for limit in limits if limit is not None)
