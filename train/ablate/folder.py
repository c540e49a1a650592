"""The folder of an ablation: what it is, written down, and one process at a time that runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prismcap.configs.errors import ConfigError
from prismcap.configs.files import replace_text
from prismcap.configs.load import to_yaml
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.train.ablate.expand import ablation_folder
from prismcap.train.ablate.status import ABLATION, PLAN
from prismcap.train.ablate.units import Plan, plan_values
from prismcap.train.locks import TakenError, locked
from prismcap.train.runfolder import CONFIG, LOCK, unwritable


def write_plan(config: AblationConfig, plan: Plan) -> None:
    """Put ablation.yaml and plan.json in place.

    Raises ConfigError where a run lies there, or nothing can be written.
    """
    folder = ablation_folder(config)
    if (folder / CONFIG).is_file():
        raise ConfigError(
            f"name: {config.name}: {folder} is the folder of a run; give the ablation another name"
        )
    plan_text = json.dumps(plan_values(config, plan), indent=1, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((ABLATION, to_yaml(config)), (PLAN, plan_text)):
            path = folder / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                replace_text(path, text)
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """For this process alone. Raises ConfigError when another runs the ablation, or it cannot be written."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK))
        except TakenError as error:
            raise ConfigError(
                f"{folder}: another prismcap ablate runs here ({error}). Wait for it, or end it: what is "
                "done stays done."
            ) from error
        except OSError as error:
            raise unwritable(folder, error) from error
        yield
