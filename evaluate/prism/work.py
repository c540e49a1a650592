"""Asking for what is not known yet: requests claimed in chunks, so that several processes share the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.prism.store import Store

RequestT = TypeVar("RequestT")
Ask = Callable[[Sequence[RequestT]], Iterator[tuple[int, Answer]]]
Notes = Callable[["Job[Any]", Answer], Mapping[str, Any]]
CHUNK_BATCHES = 4  # batches claimed at once: enough to sort by length within, few enough to share
_WAIT_S = 0.2  # between looks at what other processes still work on


@dataclass(frozen=True)
class Job(Generic[RequestT]):
    """One request, the key of its answer, and the first question that needs it."""

    key: str
    question_id: str
    request: RequestT


def no_notes(job: Job[Any], answer: Answer) -> Mapping[str, Any]:  # noqa: ARG001
    """For stages whose rows say nothing more."""
    return {}


def complete(
    store: Store,
    jobs: Sequence[Job[RequestT]],
    ask: Ask[RequestT],
    *,
    chunk: int,
    label: str,
    show_progress: bool = False,
    notes: Notes = no_notes,
) -> None:
    """Return when every job has a row, whoever wrote it. `ask` is not called where all have one.

    Each answer becomes a row as soon as it is known. An answer without text is a failure: it would be taken
    for a description or a reply. Raises what `ask` raises, and AssertionError where it leaves requests out.
    """
    waiting: dict[str, Job[RequestT]] = {}
    for job in jobs:
        if job.key not in store:
            waiting.setdefault(job.key, job)
    if not waiting:
        return
    bar = tqdm(desc=label, total=len(waiting), disable=None if show_progress else True, leave=False)
    with store, bar:
        while waiting:
            claimed = [waiting[key] for key in store.claim(waiting, chunk)]
            if claimed:
                _ask_chunk(store, claimed, ask, notes, bar)
            else:
                time.sleep(_WAIT_S)
                store.refresh()
            waiting = {key: job for key, job in waiting.items() if key not in store}
            bar.n = bar.total - len(waiting)
            bar.refresh()


def _ask_chunk(
    store: Store, jobs: Sequence[Job[RequestT]], ask: Ask[RequestT], notes: Notes, bar: tqdm[Any]
) -> None:
    answered = 0
    for position, answer in ask([job.request for job in jobs]):
        job = jobs[position]
        if answer.status == "ok" and not answer.text.strip():
            ended = answer.finish_reason or "not known"
            error = f"the model gave no text (finish_reason: {ended})"
            answer = replace(answer, text="", status="failed", error=error)
        store.append(job.key, job.question_id, answer, notes(job, answer))
        answered += 1
        bar.update(1)
    assert answered == len(jobs), f"{answered} answers to {len(jobs)} requests"
