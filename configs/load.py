"""YAML in, one frozen config out: `base:` inheritance, `key.sub=value` overrides, clear errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ValidationError

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.registry import component_options, describe
from prismcap.configs.schema.ablation import AblationConfig
from prismcap.configs.schema.base import Component, Section
from prismcap.configs.schema.judged import JudgedConfig
from prismcap.configs.schema.prism import PrismConfig
from prismcap.configs.schema.run import RunConfig

PRESETS = Path(__file__).parent
EVERY = "*"
Kind = Literal["train", "prism", "ablation", "judged"]
AnyConfig = RunConfig | PrismConfig | AblationConfig | JudgedConfig
# by kind, in the order of looking: the key that tells it, what a file of it is, what runs it
_KINDS: dict[Kind, tuple[str, str, str]] = {
    "ablation": ("axes", "an ablation", "prismcap ablate"),
    "train": ("stages", "a run of training", "prismcap train"),
    "prism": ("perceivers", "a Prism run", "prismcap prism run"),
    "judged": ("protocol", "a judged evaluation", "prismcap judge run"),
}
SectionT = TypeVar("SectionT", bound=Section)


def presets() -> list[str]:
    """Names of the shipped presets, as `demo/scenes`. Files named with an underscore first are parts of
    others."""
    paths = (path for path in PRESETS.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted(str(path.relative_to(PRESETS).with_suffix("")) for path in paths)


def find_config(name: str | Path, beside: Path | None = None) -> Path:
    """A path as given (or next to the file that names it), else a shipped preset."""
    candidates = [Path(name), PRESETS / f"{name}.yaml", PRESETS / str(name)]
    if beside is not None:
        candidates.insert(0, beside.parent / str(name))
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(f"no config {str(name)!r}: neither a file nor a preset.{nearest(str(name), presets())}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in one YAML file, refusing duplicate keys (YAML would keep the last, silently)."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(value).__name__}")
    return {key: _unshared(child) for key, child in value.items()}


def _unshared(value: Any) -> Any:
    """A copy in mappings and lists alone, in which YAML's anchors are separate: an override of one must
    not change the other."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list | tuple) else value


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as a string; everyone who writes a learning rate means a number
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def merge(base: dict[str, Any], over: dict[str, Any], whole_file: bool = False) -> dict[str, Any]:
    """Mappings merge key by key; lists and scalars replace; null removes a key of the base. The key `*`
    is for every mapping in the base's (`stages: {"*": {precision: fp32}}`), before the keys beside it.

    A mapping that names another component (`name:` differs) replaces the base's whole mapping:
    the options of one encoder mean nothing to another. A null there is an option's value, as in a file
    without a base. whole_file: the mappings are files, whose `name` is that of a run.
    """
    if not whole_file and "name" in over and "name" in base and over["name"] != base["name"]:
        return dict(over)
    over = dict(over)
    everywhere = over.pop(EVERY, None)
    if everywhere is not None and not isinstance(everywhere, dict):
        raise ConfigError(f'"{EVERY}": expected keys for every entry beside it, found {everywhere!r}')
    result = {
        key: merge(value, everywhere) if everywhere and isinstance(value, dict) else value
        for key, value in base.items()
    }
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def read_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's mapping laid over its `base:` (a path beside it or a preset; or several, each laid over the
    ones before), recursively."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base: goes round in a circle: {' -> '.join(map(str, (*seen, path)))}")
    values = read_yaml(path)
    bases = values.pop("base", None) or []
    result: dict[str, Any] | None = None
    for base in bases if isinstance(bases, list) else [bases]:
        below = read_with_bases(find_config(base, beside=path), (*seen, path.resolve()))
        result = below if result is None else merge(result, below, whole_file=True)
    return values if result is None else merge(result, values, whole_file=True)


def apply_override(values: dict[str, Any], text: str) -> None:
    """One `key.sub=value`, the value read as YAML. Numbers index lists (`mix.0.path=…`), `*` is every
    entry there is (`stages.*.precision=fp32`), and null removes a key."""
    key, separator, raw = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {text!r}: expected key.sub=value")
    try:
        value = yaml.load(raw, Loader=_UniqueKeyLoader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    nodes: list[Any] = [values]
    for part in parents:
        nodes = [child for node in nodes for child in _children(node, part, text)]
    for node in nodes:
        for place in _places(node, last, text):
            if value is None and isinstance(node, dict):
                node.pop(place, None)
            else:
                node[place] = value


def _places(node: Any, part: str, text: str) -> list[Any]:
    """The keys or indices of a mapping or list that one part of an override's path means."""
    if isinstance(node, list):
        if part == "*":
            return list(range(len(node)))
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"override {text!r}: {part!r} is no index of a list of {len(node)}")
        return [int(part)]
    if not isinstance(node, dict):
        raise ConfigError(f"override {text!r}: {node!r} has no key {part!r} below it")
    return list(node) if part == "*" else [part]


def _children(node: Any, part: str, text: str) -> list[Any]:
    places = _places(node, part, text)
    return [node.setdefault(place, {}) if isinstance(node, dict) else node[place] for place in places]


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run of a YAML file or preset. Every key is checked, those of components included.

    Raises ConfigError naming the file, the key path, the value and the nearest valid name.
    """
    return checked_run(*read_config(name, overrides))


def load_prism(name: str | Path, overrides: Sequence[str] = ()) -> PrismConfig:
    """The Prism run of a YAML file or preset; as load_config."""
    return _checked_prism(*read_config(name, overrides))


def load_ablation(name: str | Path, overrides: Sequence[str] = ()) -> AblationConfig:
    """The ablation of a YAML file or preset; as load_config. `run` is then a preset's name or a full path.

    The configs of its cells are not made here: train/ablate/expand.py.
    """
    return _checked_ablation(*read_config(name, overrides))


def load_judged(name: str | Path, overrides: Sequence[str] = ()) -> JudgedConfig:
    """The judged evaluation of a YAML file or preset; as load_config."""
    return _checked_judged(*read_config(name, overrides))


def load_any(name: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """A config of any kind, told apart by its keys; as load_config."""
    path, values = read_config(name, overrides)
    kind = kind_of(values)
    if kind == "ablation":
        return _checked_ablation(path, values)
    return _checked_judged(path, values) if kind == "judged" else checked(path, values)


def checked(where: str | Path, values: dict[str, Any]) -> RunConfig | PrismConfig:
    """The run, of training or of Prism, that a file's keys say; as load_config. `where` starts errors."""
    return _checked_prism(where, values) if is_prism(values) else checked_run(where, values)


def is_prism(values: Mapping[str, Any]) -> bool:
    """Whether a YAML file's keys are those of a Prism run, not of training."""
    return kind_of(values) == "prism"


def kind_of(values: Mapping[str, Any]) -> Kind | None:
    """What a YAML file's keys are those of; None where they do not tell."""
    return next((kind for kind, (key, *_) in _KINDS.items() if key in values), None)


def read_config(name: str | Path, overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """The file of a config and its keys, bases and overrides included. Nothing is checked yet."""
    path = find_config(name)
    values = read_with_bases(path)
    for override in overrides:
        apply_override(values, override)
    return path, values


def _refuse_others(where: str | Path, values: Mapping[str, Any], wanted: Kind, words: str) -> None:
    kind = kind_of(values)
    if kind not in (None, wanted):
        key, what, command = _KINDS[kind]
        raise ConfigError(f"{where}: {what} (it has `{key}`), not {words}: {command}")


def _validated(schema: type[SectionT], where: str | Path, values: dict[str, Any]) -> SectionT:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, f"{where}: ", schema)) from error


def checked_run(where: str | Path, values: dict[str, Any]) -> RunConfig:
    """The run of training that a file's keys say; as load_config. `where` starts errors."""
    _refuse_others(where, values, "train", "of training")
    config = _validated(RunConfig, where, values)
    check_components(config, str(where))
    return config


def _checked_prism(where: str | Path, values: dict[str, Any]) -> PrismConfig:
    _refuse_others(where, values, "prism", "of Prism")
    config = _validated(PrismConfig, where, values)
    kinds = {"benchmark": config.benchmarks, "perceiver": config.perceivers, "reasoner": config.reasoners}
    for kind, components in kinds.items():
        for key, component in components.items():
            component_options(kind, component, f"{where}: {kind}s.{key}")
    return config


def _checked_ablation(path: Path, values: dict[str, Any]) -> AblationConfig:
    _refuse_others(path, values, "ablation", "an ablation")
    config = _validated(AblationConfig, path, values)
    try:
        run = find_config(config.run, beside=path).resolve()
    except ConfigError as error:
        raise ConfigError(f"{path}: run: {error}") from error
    presets_folder = PRESETS.resolve()
    own = not run.is_relative_to(presets_folder)
    # the resolved config lies in another folder than the file that said `run`
    place = run if own else run.relative_to(presets_folder).with_suffix("")
    return config.model_copy(update={"run": str(place)})


def _checked_judged(path: Path, values: dict[str, Any]) -> JudgedConfig:
    _refuse_others(path, values, "judged", "a judged evaluation")
    config = _validated(JudgedConfig, path, values)
    component_options("protocol", config.protocol, f"{path}: protocol")
    if config.judge is not None:
        component_options("reasoner", config.judge, f"{path}: judge")
    return config


def check_components(config: RunConfig, where: str) -> None:
    """Validate the options of every component that the config names."""
    model = config.model
    parts: list[tuple[str, Component, str]] = [
        ("vision_encoder", model.vision_encoder, "model.vision_encoder"),
        ("connector", model.connector, "model.connector"),
        ("llm", model.llm, "model.llm"),
    ]
    for name, stage in config.stages.items():
        at = f"stages.{name}"
        parts.append(("template", stage.template, f"{at}.template"))
        parts.append(("engine", stage.engine, f"{at}.engine"))
        parts.extend(("source", item, f"{at}.data.mix.{i}") for i, item in enumerate(stage.data.mix))
    if config.evaluation is not None:
        splits = config.evaluation.splits.items()
        parts.extend(("source", split.source, f"evaluation.splits.{name}.source") for name, split in splits)
        metrics = enumerate(config.evaluation.metrics)
        parts.extend(("metric", metric, f"evaluation.metrics.{i}") for i, metric in metrics)
    for kind, component, at in parts:
        component_options(kind, component, f"{where}: {at}")


def to_yaml(config: AnyConfig) -> str:
    """The resolved config as YAML that load_any reads back to an equal config."""
    # not mode="json": that would turn keys that are numbers into strings
    values = _unshared(config.model_dump(exclude_none=True))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
