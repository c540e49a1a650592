"""A Prism run from its config to its report: instruct, perceive, reason, score, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.load import is_prism, read_yaml
from prismcap.configs.schema.prism import PrismConfig
from prismcap.evaluate.prism.pipeline import Pipeline
from prismcap.evaluate.prism.stages import Stages
from prismcap.evaluate.prism.store import now
from prismcap.evaluate.results import put_config

StageName = Literal["instruct", "perceive", "reason", "score", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)
CONFIG, REPORT = "config.yaml", "report.html"


def run_dir_of(config: PrismConfig) -> Path:
    """Where a run's files lie."""
    return resolve_path(config.output_dir) / config.name


def run_prism(
    config: PrismConfig,
    stages: Sequence[StageName] = STAGES,
    *,
    device: str = "cpu",
    retry_failed: bool = False,
    show_progress: bool = False,
    is_first: bool = True,
) -> dict[str, Any] | None:
    """Run stages in their order; returns what results.json holds where `score` is among them.

    What is answered already is not asked again; several processes may run one config at once and share the
    work. retry_failed: ask again, once, for what failed in the stages that are run. is_first: of the
    processes that torchrun started, the one that scores and reports.

    Raises ConfigError for a config that cannot be run, or a stage whose earlier ones are not done; DataError
    for benchmarks and files that cannot be read.
    """
    run_dir = prepare_run_dir(config)
    pipeline = Pipeline(config, run_dir, device)
    asking = Stages(pipeline, now() if retry_failed else None, show_progress)
    results = None
    if "instruct" in stages:
        asking.instruct()
    if "perceive" in stages:
        asking.perceive()
    if "reason" in stages:
        asking.reason()
    if not is_first:
        return None
    if "score" in stages:
        # scipy and the scoring rules are not needed to ask
        from prismcap.evaluate.prism.results import score_run

        results = score_run(pipeline)
    if "report" in stages:
        _draw(run_dir)
    return results


def prepare_run_dir(config: PrismConfig) -> Path:
    """Make the run's folder and put its config there. Raises ConfigError where training's run lies there,
    DataError when it cannot be written."""
    run_dir = run_dir_of(config)
    path = run_dir / CONFIG
    if path.is_file() and not is_prism(read_yaml(path)):
        raise ConfigError(
            f"name: {config.name}: {run_dir} is the folder of a training run; give this Prism run another "
            "name or output_dir"
        )
    put_config(path, config)
    return run_dir


def _draw(run_dir: Path) -> None:
    if not (run_dir / "results.json").is_file():
        raise ConfigError(f"{run_dir}: nothing to draw yet. Run the stage score first: --stage score")
    # matplotlib is needed for this stage alone
    from prismcap.evaluate.report.prism_page import draw_prism

    draw_prism([run_dir], run_dir / REPORT)
