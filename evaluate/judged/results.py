"""items.jsonl, results.json and results.csv of a judged evaluation: each whole, or as it was."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prismcap.configs.files import replace_text
from prismcap.evaluate.judged.asking import Asked, build_judge
from prismcap.evaluate.judged.comparisons import compare_models
from prismcap.evaluate.judged.evaluation import Evaluation
from prismcap.evaluate.judged.figures import (
    counts,
    label_shares,
    model_figures,
    position_bias,
    self_agreement,
)
from prismcap.evaluate.judged.protocols._contract import Scale
from prismcap.evaluate.judged.verdicts import Judgement, judgements_of
from prismcap.evaluate.prism.cost import total_cost
from prismcap.evaluate.versions import versions

ITEMS, RESULTS, TABLE = "items.jsonl", "results.json", "results.csv"
_CSV_COLUMNS = ("model", "figure", "value", "low", "high", "n", "num_pictures")
_CSV_COUNTS = ("answers", "scored", "unread", "failed", "unrated")


def score_judged(evaluation: Evaluation, asked: Sequence[Asked]) -> dict[str, Any]:
    """Read the replies, write the three files into the run's folder, and return what results.json holds."""
    judgements = judgements_of(evaluation, asked)
    config, run_dir = evaluation.config, evaluation.run_dir
    rows = {one.entry.key: one.entry.as_row() for one in asked}
    judge = {
        "model": build_judge(config, "cpu").identity,
        "prompts": evaluation.protocol.prompt_version,
        "decoding": config.decoding.model_dump(),
        "repeats": config.repeats,
        "cost": total_cost(rows.values(), config.price),
    }
    scale = evaluation.protocol.scale
    results = summarise(evaluation, judgements, scale, repeats=config.repeats, about={"judge": judge})
    text = "".join(json.dumps(one.as_row(), ensure_ascii=False) + "\n" for one in judgements)
    replace_text(run_dir / ITEMS, text)
    write_results(run_dir / RESULTS, results)
    replace_text(run_dir / TABLE, results_csv(results["models"]))
    return results


def summarise(
    evaluation: Evaluation,
    judgements: Sequence[Judgement],
    scale: Scale,
    *,
    repeats: int = 1,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """{about, models: name -> {figures, counts, position, self_agreement, labels}, comparisons}.

    repeats: of a judge; people are raters, each of whom judges once.
    about.complete: every answer is scored, from all of its replies.
    """
    config, protocol = evaluation.config, evaluation.protocol
    by_model = {
        model: [judgement for judgement in judgements if judgement.model == model]
        for model in evaluation.answers
    }
    models = {
        model: {
            "figures": model_figures(of, config.seed),
            "counts": counts(of),
            "position": position_bias(of, scale.orders, config.seed),
            "self_agreement": self_agreement(of, repeats, scale.level),
            "labels": label_shares(of, scale.labels),
        }
        for model, of in by_model.items()
    }
    return {
        "about": {
            "name": config.name,
            "measured_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": versions(),
            "seed": config.seed,
            "protocol": config.protocol.model_dump(),
            "figure": scale.figure,
            "num_questions": len(protocol.items),
            "num_pictures": len({item.image for item in protocol.items}),
            "published": None if protocol.published is None else list(protocol.published),
            "checksum": evaluation.checksum,
            "complete": all(_complete(judgement) for judgement in judgements),
            **(about or {}),
        },
        "models": models,
        "comparisons": compare_models(by_model, config.seed),
    }


def _complete(judgement: Judgement) -> bool:
    return judgement.status == "scored" and all(one.status == "read" for one in judgement.verdicts)


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    replace_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def results_csv(models: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per model and figure, with the model's counts."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*_CSV_COLUMNS, *_CSV_COUNTS))
    for model, of in models.items():
        counted = [of["counts"][name] for name in _CSV_COUNTS]
        for name, figure in of["figures"].items():
            values = [figure[column] for column in _CSV_COLUMNS[2:]]
            writer.writerow([model, name, *("" if value is None else value for value in values), *counted])
    return file.getvalue()
