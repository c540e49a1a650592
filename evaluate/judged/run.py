"""A judged evaluation from its config to its figures."""

from __future__ import annotations

from typing import Any

from prismcap.configs.schema.judged import JudgedConfig
from prismcap.evaluate.judged.asking import ask_judge
from prismcap.evaluate.judged.evaluation import load_evaluation, prepare_run_dir
from prismcap.evaluate.judged.results import score_judged
from prismcap.evaluate.prism.store import now


def run_judged(
    config: JudgedConfig,
    *,
    device: str = "cpu",
    retry_failed: bool = False,
    show_progress: bool = False,
    is_first: bool = True,
) -> dict[str, Any] | None:
    """Have every answer judged and write the results; returns what results.json holds.

    What is known is not asked again; several processes may run one config at once and share the work.
    retry_failed: ask again, once, for what failed. is_first: of the processes that torchrun started, the one
    that scores; the others return None.

    Raises as load_evaluation, prepare_run_dir and ask_judge.
    """
    evaluation = load_evaluation(config)
    prepare_run_dir(evaluation)
    asked = ask_judge(
        evaluation,
        device=device,
        retry_before=now() if retry_failed else None,
        show_progress=show_progress,
    )
    return score_judged(evaluation, asked) if is_first else None
