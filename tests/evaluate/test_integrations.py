"""The files of evaluate/integrations: what they say holds, and against the packages where those are."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prismcap.scripts.commands.serve import serve

FOLDER = Path(__file__).parents[2] / "evaluate" / "integrations"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
VLMEVALKIT: dict[str, Any] = json.loads((FOLDER / "vlmevalkit.json").read_text(encoding="utf-8"))
LMMS_EVAL: dict[str, Any] = yaml.safe_load((FOLDER / "lmms_eval.yaml").read_text(encoding="utf-8"))


def commands(program: str) -> list[str]:
    """The commands of the README that start a program, each as one line."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0] for line in lines if line.startswith(program)]


def test_vlmevalkit_asks_the_server_where_it_is_and_with_a_limit() -> None:
    defaults = {option.name: option.default for option in serve.params}
    base = f"http://{defaults['host']}:{defaults['port']}/v1"
    assert VLMEVALKIT.keys() == {"model", "data"}, "the only keys that run.py reads"
    for name, model in VLMEVALKIT["model"].items():
        assert model["model"] == name
        assert model["api_base"] == f"{base}/chat/completions"
        assert model["max_tokens"] <= 1024 and model["temperature"] == 0
    for name, data in VLMEVALKIT["data"].items():
        assert data["dataset"] == name
    by_file, by_options = commands("python run.py")
    assert "vlmevalkit.json" in by_file
    assert "--max-tokens" in by_options and f"--base-url {base} " in by_options


def test_lmms_eval_takes_one_at_a_time_from_a_folder() -> None:
    assert LMMS_EVAL["model"] == "llava_hf" and LMMS_EVAL["batch_size"] == 1
    assert re.fullmatch(r"pretrained=\S+/model", LMMS_EVAL["model_args"])
    assert "max_new_tokens=" in LMMS_EVAL["gen_kwargs"]
    (command,) = commands("python -m lmms_eval")
    assert "--config evaluate/integrations/lmms_eval.yaml" in command


def test_vlmevalkit_knows_classes_options_and_data() -> None:
    reason = "VLMEvalKit is not installed"
    api = pytest.importorskip("vlmeval.api", reason=reason)
    dataset = pytest.importorskip("vlmeval.dataset", reason=reason)
    for model in VLMEVALKIT["model"].values():
        made = getattr(api, model["class"])
        needed = {
            parameter.name
            for parent in made.__mro__
            for parameter in list(inspect.signature(parent.__init__).parameters.values())[1:]
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        }
        assert needed <= set(model), "it would not start"
    for data in VLMEVALKIT["data"].values():
        assert data["dataset"] in getattr(dataset, data["class"]).supported_datasets()


def test_lmms_eval_knows_model_options_and_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "lmms-eval is not installed"
    main = pytest.importorskip("lmms_eval.__main__", reason=reason)
    models = pytest.importorskip("lmms_eval.models", reason=reason)
    monkeypatch.setattr(sys, "argv", ["lmms_eval"])
    _, given = main.parse_eval_args()
    assert LMMS_EVAL.keys() <= vars(given).keys()
    made = models.get_model(LMMS_EVAL["model"])
    assert "pretrained" in inspect.signature(made.__init__).parameters
    known = set(main.TaskManager("ERROR").all_tasks)
    assert set(LMMS_EVAL["tasks"].split(",")) <= known
