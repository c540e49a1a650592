"""The requests of a judged evaluation, put to its judge; what is known is not asked again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_options
from prismcap.configs.schema.judged import JudgedConfig
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.protocols._contract import JudgedItem, Part
from prismcap.evaluate.prism.components import free_memory, set_threads
from prismcap.evaluate.prism.store import Entry, Store, request_key
from prismcap.evaluate.prism.work import CHUNK_BATCHES, Job, Notes, complete
from prismcap.evaluate.reasoners._contract import Reasoner, ReasonerContext, ReasonRequest

ASKING_VERSION = 1  # raise it when this code makes another reply of the same request
STORE = "judge.jsonl"


@dataclass(frozen=True)
class Asked:
    """One request as it was put: repeat counts from 0."""

    model: str
    item: JudgedItem
    part: Part
    repeat: int
    entry: Entry


def ask_judge(
    evaluation: Evaluation,
    *,
    device: str = "cpu",
    retry_before: str | None = None,
    show_progress: bool = False,
) -> list[Asked]:
    """Every request with its row, by model, item, part and repeat in this order of nesting.

    Equal requests are put once per repeat. retry_before: see Store. Raises ConfigError without a judge, and
    what the judge's answer raises (a wrong key, an endpoint that is not there, an absent package).
    """
    config = evaluation.config
    if config.judge is None:
        raise ConfigError(
            f"{config.name}: no `judge` in the config. Name a reasoner (judge: {{name: openai, url: …, "
            "model: …}), or have people rate: prismcap judge page, then prismcap judge ratings"
        )
    store = Store(evaluation.run_dir / STORE, retry_before)
    set_threads(config.local)
    keys: dict[tuple[str, str, str, int], str] = {}
    for repeat in range(config.repeats):
        reasoner = build_judge(config, device, repeat)
        jobs = []
        for model, item, part in requests_of(evaluation):
            key = _key(evaluation, reasoner, part, repeat)
            keys[model, item.id, part.name, repeat] = key
            jobs.append(Job(key, item.id, ReasonRequest(part.prompt)))
        label = f"judge {repeat + 1}/{config.repeats}" if config.repeats > 1 else "judge"
        complete(
            store,
            jobs,
            reasoner.answer,
            chunk=CHUNK_BATCHES * config.local.batch_size,
            label=label,
            show_progress=show_progress,
            notes=_notes(repeat),
        )
        del reasoner  # its weights make room for the next repeat's
        free_memory()
    return [
        Asked(model, item, part, repeat, _found(store, keys[model, item.id, part.name, repeat]))
        for model, item, part in requests_of(evaluation)
        for repeat in range(config.repeats)
    ]


def _notes(repeat: int) -> Notes:
    def notes(job: Job[Any], answer: Answer) -> Mapping[str, Any]:  # noqa: ARG001
        return {"repeat": repeat}

    return notes


def requests_of(evaluation: Evaluation) -> Iterator[tuple[str, JudgedItem, Part]]:
    for model, answers in evaluation.answers.items():
        for item in evaluation.protocol.items:
            for part in evaluation.protocol.parts(item, answers):
                yield model, item, part


def build_judge(config: JudgedConfig, device: str, repeat: int = 0) -> Reasoner:
    """A repeat has a seed of its own, so that a local model's samples differ. Raises ConfigError."""
    assert config.judge is not None, "the caller has looked"
    module, options = component_options("reasoner", config.judge, "judge")
    context = ReasonerContext("judge", config.decoding, device, config.local.batch_size, config.seed + repeat)
    try:
        built: Reasoner = module.build(options, context)
    except ConfigError as error:
        # there a reasoner is an entry of `reasoners`
        raise ConfigError(str(error).removeprefix("reasoners.")) from None
    return built


def _key(evaluation: Evaluation, reasoner: Reasoner, part: Part, repeat: int) -> str:
    parts = {
        "prompts": evaluation.protocol.prompt_version,
        "prompt": part.prompt,
        "repeat": repeat,
        "model": reasoner.identity,
        "decoding": evaluation.config.decoding.model_dump(),
    }
    return request_key("judged", ASKING_VERSION, parts)


def _found(store: Store, key: str) -> Entry:
    entry = store.get(key)
    assert entry is not None, "complete returns when every job has a row"
    return entry
