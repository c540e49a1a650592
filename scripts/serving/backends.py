"""The command lines of the servers that `prismcap serve` starts: transformers' own, and vLLM's."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prismcap.configs.errors import ConfigError, MissingExtraError
from prismcap.scripts.serving.client import Address

# of a commit of the hub; the one that a laid-out export stands at
REVISION = "0" * 40
# options of a server with which it would not answer as `prismcap serve` asks it
REFUSED = {
    "--api-key": "the server would refuse this command's own requests, which give no key",
    "--served-model-name": "the server has the name that the export has",
    "--host": "its place is before `--`",
    "--port": "its place is before `--`",
}
# code of a model's folder is never run, so it is not laid out either
LEFT_OUT = frozenset({".py"})


@dataclass(frozen=True)
class ServedExport:
    """An export as it is offered: its folder, the name that requests give, and what its marker says."""

    folder: Path
    name: str
    format: str
    prompt: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class ServerCommand:
    """What to start, where, and what its environment has besides this one's.

    options: the user's, which follow the arguments; one may hold a secret, so they are never shown.
    """

    arguments: Sequence[str]
    options: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def check_options(options: Sequence[str]) -> None:
    """Raises ConfigError for an option with which the command could not tell that its server answers."""
    for option in options:
        name = option.partition("=")[0].replace("_", "-")
        for refused, reason in REFUSED.items():
            # parsers of command lines take the beginning of a name for the name
            if len(name) > len("--x") and refused.startswith(name):
                raise ConfigError(f"{name} after `--`: {reason}; leave it out there")


def served_name(name: str) -> str:
    """A name that the hub's rules allow: letters, digits, and single `-`, `.`, `_` between them."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    return re.sub(r"([-.])[-.]+", r"\1", plain).strip("-.") or "captioner"


def transformers_command(
    export: ServedExport, address: Address, options: Sequence[str], scratch: Path
) -> ServerCommand:
    """`transformers serve`, which then knows this one model, by its name.

    It loads models by name from the hub's cache, and lists what lies there. So `scratch` becomes a
    cache that holds links to the export and nothing else, and the hub is off: no other name loads.
    Raises MissingExtraError without the packages that it needs.
    """
    check_transformers_server()
    hub = scratch / "hub"
    lay_out(export.folder, hub, export.name)
    module = "transformers.cli.transformers"
    if export.format == "custom":
        module = "prismcap.scripts.serving.transformers_with_prismcap"
    listen = ["--host", address.host, "--port", str(address.port)]
    return ServerCommand(
        arguments=[sys.executable, "-m", module, "serve", export.name, *listen],
        options=options,
        # a folder of the model's name beside the server would be loaded in its place
        folder=scratch,
        environment={
            "HF_HUB_CACHE": str(hub),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
    )


def check_transformers_server() -> None:
    """Raises MissingExtraError when a package that `transformers serve` needs is not there."""
    try:
        import fastapi  # noqa: F401
        import openai  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "serve", "`prismcap serve`") from error


def lay_out(folder: Path, hub: Path, name: str) -> None:
    """Make `hub` a cache of the model hub that holds `folder` under `name`: links, no copies."""
    repository = hub / f"models--{name}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION, encoding="ascii")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in LEFT_OUT:
            (snapshot / path.name).symlink_to(path.resolve())


def vllm_command(
    export: ServedExport, address: Address, options: Sequence[str], scratch: Path
) -> ServerCommand:
    """`vllm serve`, under the export's name. Raises ConfigError without vLLM, or for what it has not."""
    obstacle = why_not_vllm(export)
    if obstacle is not None:
        raise ConfigError(f"{export.folder}: {obstacle}: take --backend transformers")
    if os.environ.get("VLLM_API_KEY"):
        raise ConfigError(f"VLLM_API_KEY is set: {REFUSED['--api-key']}; unset it")
    beside = str(Path(sys.executable).parent)
    program = shutil.which("vllm", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if program is None:
        raise ConfigError(
            "--backend vllm: there is no command `vllm` here: install vLLM (which pins its own torch; an "
            "environment of its own with its bin/ on PATH will do), or take --backend transformers"
        )
    listen = ["--host", address.host, "--port", str(address.port), "--served-model-name", export.name]
    return ServerCommand(
        arguments=[program, "serve", str(export.folder.resolve()), *listen],
        options=options,
        folder=scratch,
        environment={"VLLM_NO_USAGE_STATS": "1"},
    )


def why_not_vllm(export: ServedExport) -> str | None:
    """What vLLM has nothing for, in the end of a sentence."""
    if export.format == "custom":
        return "a custom model, which vLLM does not know"
    if export.format == "blip2":
        return "a BLIP-2, whose image tokens vLLM puts before all text, and this model was not trained so"
    config = json.loads((export.folder / "config.json").read_text(encoding="utf-8"))
    if config.get("projector_hidden_act") == "linear":
        return "its connector is one linear layer (projector_hidden_act: linear), an activation vLLM has not"
    return None


BACKENDS = {"transformers": transformers_command, "vllm": vllm_command}
