"""The file name is the registry: `vision_encoder.name: siglip` loads model/vision/siglip.py.

Each component module has `class Options(BaseModel)` (its keys in the config) and `build(...)`.
A dotted name (`my_package.my_encoder`) loads a module of the user's own. Modules whose name
starts with an underscore are not components. This is the only place that imports
components by name (scripts/cli.py imports its own commands lazily).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.schema.base import Component

PACKAGES = {
    "vision_encoder": "prismcap.model.vision",
    "connector": "prismcap.model.connector",
    "llm": "prismcap.model.llm",
    "source": "prismcap.data.sources",
    "template": "prismcap.data.templates",
    "import": "prismcap.model.imports",
    "engine": "prismcap.train.engines",
    "sink": "prismcap.train.sinks",
    "benchmark": "prismcap.evaluate.benchmarks",
    "perceiver": "prismcap.evaluate.perceivers",
    "reasoner": "prismcap.evaluate.reasoners",
    "metric": "prismcap.evaluate.metrics",
    "protocol": "prismcap.evaluate.judged.protocols",
}


def available(kind: str) -> list[str]:
    """The names of one kind, from the files of its folder; nothing is imported but the folder."""
    spec = importlib.util.find_spec(PACKAGES[kind])
    assert spec is not None and spec.submodule_search_locations is not None
    modules = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def component_module(kind: str, name: str, where: str = "") -> ModuleType:
    """The module of a component. Raises ConfigError listing what exists."""
    at = f"{where.rstrip('.')}: " if where else ""
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{at}no module {name!r} for a {kind} ({error})") from error
    if name not in available(kind):
        hint = nearest(name, available(kind))
        raise ConfigError(f"{at}no {kind} is called {name!r}.{hint} A dotted name loads your own module.")
    return importlib.import_module(f"{PACKAGES[kind]}.{name}")


def component_options(kind: str, component: Component, where: str = "") -> tuple[ModuleType, BaseModel]:
    """The module and its validated Options. `where` (file and key path) starts the error."""
    module = component_module(kind, component.name, where)
    options_type: type[BaseModel] = module.Options
    try:
        return module, options_type.model_validate(component.options)
    except ValidationError as error:
        prefix = f"{where.rstrip('.')}." if where else ""
        raise ConfigError(describe(error, prefix, options_type)) from error


def describe(error: ValidationError, prefix: str, model: type[BaseModel]) -> str:
    """A pydantic error in our words, a line each: file and key path, value, the nearest valid key."""
    lines = []
    for item in error.errors():
        at = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            hint = nearest(str(item["loc"][-1]), _section_at(model, item["loc"][:-1]).model_fields)
            lines.append(f"{at}: unknown key (value {item['input']!r}).{hint}")
        elif item["type"] == "missing":
            lines.append(f"{at}: this key is required.")
        else:
            lines.append(f"{at}: {item['msg']} (value {item['input']!r}).")
    return "\n".join(lines)


def _section_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The config class that a location below `model` leads to."""
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = _section_in(field.annotation) or model
    return model


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The config class inside an annotation such as `dict[str, StageConfig]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
