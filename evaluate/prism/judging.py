"""The judge of a run: any of its reasoners, whose verdicts are kept as the answers of the stages are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.benchmarks._contract import Question
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.prism.components import build_reasoner
from prismcap.evaluate.prism.cost import total_cost
from prismcap.evaluate.prism.pipeline import Pipeline
from prismcap.evaluate.prism.store import Entry, Store, request_key
from prismcap.evaluate.prism.work import CHUNK_BATCHES, Job, complete
from prismcap.evaluate.reasoners._contract import Reasoner, ReasonRequest
from prismcap.evaluate.scoring.judge import JUDGE_VERSION, ReasonerJudge
from prismcap.evaluate.scoring.score import needs_judge


class KeptReasoner:
    """A reasoner that is asked only for what the store does not hold. chunk: requests claimed at once."""

    def __init__(self, reasoner: Reasoner, decoding: Decoding, store: Store, chunk: int) -> None:
        self._reasoner = reasoner
        self._decoding = decoding
        self._chunk = chunk
        self.store = store
        self.used: dict[str, Entry] = {}

    @property
    def identity(self) -> str:
        return self._reasoner.identity

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        about = {"model": self.identity, "decoding": self._decoding.model_dump()}
        jobs = [
            Job(request_key("judge", JUDGE_VERSION, {"prompt": one.prompt, **about}), "", one)
            for one in requests
        ]
        complete(self.store, jobs, self._reasoner.answer, chunk=self._chunk, label="judge")
        for position, job in enumerate(jobs):
            entry = self.store.get(job.key)
            assert entry is not None, "complete returns when every job has a row"
            self.used[job.key] = entry
            yield position, entry.answer


class RunJudge(ReasonerJudge):
    """What the config's `judge` says of replies that no rule reads."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        config = pipeline.config
        decoding = config.decoding.judge
        reasoner = build_reasoner(config, name, decoding, pipeline.device)
        store = Store(judge_path(pipeline.run_dir, name))
        self._kept = KeptReasoner(reasoner, decoding, store, CHUNK_BATCHES * config.local.batch_size)
        self._name, self._price = name, config.prices.get(name)
        super().__init__(self._kept)

    def ask_ahead(self, replies: Sequence[tuple[Question, Entry | None]]) -> None:
        """Have all verdicts of a cell in one batch."""
        known = [(question, entry.answer) for question, entry in replies if entry is not None]
        self.prefetch(
            (question, answer.text)
            for question, answer in known
            if answer.status == "ok" and needs_judge(question, answer.text)
        )

    def about(self) -> dict[str, Any]:
        """For results.json: who judged, how many replies, and what it took."""
        rows = [entry.as_row() for entry in self._kept.used.values()]
        return {"reasoner": self._name, "version": JUDGE_VERSION, "cost": total_cost(rows, self._price)}


def judge_path(run_dir: Path, name: str) -> Path:
    return run_dir / "judge" / f"{name}.jsonl"
