"""A judged evaluation as its config says it: the protocol's questions and every model's answers, joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.load import kind_of, read_yaml
from prismcap.configs.registry import component_options
from prismcap.configs.schema.judged import JudgedConfig
from prismcap.evaluate.judged.files import as_rows, read_json, read_rows, texts_by_question
from prismcap.evaluate.judged.protocols._contract import JudgedItem, Protocol, ProtocolContext
from prismcap.evaluate.results import put_config

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Evaluation:
    """answers: model -> question's id -> text, one for every item."""

    config: JudgedConfig
    protocol: Protocol
    answers: Mapping[str, Mapping[str, str]]

    @property
    def run_dir(self) -> Path:
        return run_dir_of(self.config)

    @property
    def checksum(self) -> str:
        """Of questions, references, contexts and pictures' names; not of answers."""
        items = [
            [item.id, item.question, item.image, item.reference, item.context] for item in self.protocol.items
        ]
        text = json.dumps(items, ensure_ascii=False)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def run_dir_of(config: JudgedConfig) -> Path:
    """Where an evaluation's files lie."""
    return resolve_path(config.output_dir) / config.name


def load_evaluation(config: JudgedConfig) -> Evaluation:
    """Read every file that the config names.

    Raises ConfigError for a file that is not there, DataError naming file, row, key and value for one whose
    rows are wrong or do not fit together.
    """
    module, options = component_options("protocol", config.protocol, "protocol")
    protocol: Protocol = module.build(options, ProtocolContext(config.judge is not None))
    answers = {
        name: _answers(protocol, name, file, config.protocol.name) for name, file in config.answers.items()
    }
    return Evaluation(config, protocol, answers)


def _answers(protocol: Protocol, name: str, file: str, protocol_name: str) -> dict[str, str]:
    at = f"answers.{name}"
    rows = as_rows(*read_json(file, at)) if file.endswith(".json") else read_rows(file, at)
    questions = f"the questions of {protocol_name}"
    return texts_by_question(rows, _ids(protocol.items), file, f"answer of {name!r}", questions)


def _ids(items: Sequence[JudgedItem]) -> dict[str, str]:
    """What an answer may say -> the item's id. An id goes before another's alias."""
    aliases = {alias: item.id for item in items for alias in item.aliases}
    return {**aliases, **{item.id: item.id for item in items}}


def prepare_run_dir(evaluation: Evaluation) -> Path:
    """Make the folder and put the config there. Raises ConfigError where another kind of run lies there,
    DataError when it cannot be written."""
    run_dir, path = evaluation.run_dir, evaluation.run_dir / CONFIG
    if path.is_file() and kind_of(read_yaml(path)) != "judged":
        raise ConfigError(
            f"name: {evaluation.config.name}: {run_dir} is the folder of another kind of run; give this "
            "evaluation another name or output_dir"
        )
    put_config(path, evaluation.config)
    return run_dir
