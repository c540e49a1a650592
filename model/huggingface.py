"""Loading with transformers' from_pretrained, where nothing may go wrong silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from prismcap.configs.cache import PREFIX, resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.model.shapes import is_shapes_only
from prismcap.model.sizes import published_sizes


def local_or_hub(path: str) -> str:
    """A directory's path, or the name of a model on the hub as it is.

    Raises ConfigError for what can only be a directory, and is none.
    """
    folder = resolve_path(path)
    if folder.is_dir():
        return str(folder)
    if path.startswith(PREFIX):
        raise ConfigError(
            f"{path}: no directory {folder}; `prismcap fetch` makes those of the demo, `prismcap fetch tiny` "
            "those of the recipes' tiny twins"
        )
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        raise ConfigError(f"{path}: no such directory")
    return path


def load_pretrained(model_class: Any, path: str, **options: Any) -> Any:
    """`model_class.from_pretrained` of a directory or hub name, with every weight in the files.

    Inside of shapes_only a model of the same config, for which config.json is enough, or the sizes of a
    published model that sizes.yaml knows.
    Raises ConfigError when it cannot be had, and when weights are missing or of another shape:
    transformers would start those at random with only a warning.
    """
    name = local_or_hub(path)
    try:
        if is_shapes_only():
            return _of_config(model_class, name, **options)
        model, report = model_class.from_pretrained(name, output_loading_info=True, **options)
    except OSError as error:
        raise unreachable(path, error) from error
    missing, mismatched = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or mismatched:
        raise ConfigError(
            f"{path}: not the weights of a {model_class.__name__}: {len(missing)} missing {missing[:3]}, "
            f"{len(mismatched)} of another shape {mismatched[:3]}"
        )
    return model


def _of_config(
    model_class: Any,
    name: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    key_mapping: dict[str, str] | None = None,  # noqa: ARG001  (of weights, which are not read)
    **options: Any,
) -> Any:
    sizes = _sizes(name, revision)
    if hasattr(model_class, "from_config"):  # one of the Auto classes
        shared = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = AutoConfig.for_model(**sizes) if sizes else AutoConfig.from_pretrained(name, **shared)
        return model_class.from_config(config, trust_remote_code=trust_remote_code, **options)
    config_class = model_class.config_class
    if sizes is None:
        config = config_class.from_pretrained(name, revision=revision)
    else:
        config = config_class(**{key: value for key, value in sizes.items() if key != "model_type"})
    return model_class._from_config(config, **options)


def _sizes(name: str, revision: str | None) -> dict[str, Any] | None:
    """sizes.yaml's, where nothing nearer says them: a directory of that name, or a revision."""
    return None if revision is not None or Path(name).is_dir() else published_sizes(name)


def config_values(path: str, revision: str | None = None) -> Mapping[str, Any]:
    """config.json of a directory or hub name; inside of shapes_only, sizes.yaml's where it has the name.

    Raises ConfigError when it cannot be had.
    """
    name = local_or_hub(path)
    sizes = _sizes(name, revision) if is_shapes_only() else None
    if sizes is not None:
        return sizes
    try:
        values: Mapping[str, Any] = PretrainedConfig.get_config_dict(name, revision=revision)[0]
    except OSError as error:
        raise unreachable(path, error) from error
    return values


def refuse_unconverted(path: str, revision: str | None) -> None:
    """Raises ConfigError for InternLM2 in its own layout, and says what to do. What cannot be read at all is
    left to the loading."""
    try:
        values = config_values(path, revision)
    except ConfigError:
        return
    if values.get("model_type") == "internlm2":
        raise ConfigError(
            f"{path}: InternLM2 in its own layout runs code of its own. Convert it once, and give the "
            f"result: prismcap convert internlm2 {path} DST (SRC is a directory)"
        )


def unreachable(path: str, error: Exception) -> ConfigError:
    """What to do when a directory is incomplete, or the hub has or gives nothing."""
    reason = str(error).strip().partition("\n")[0]
    if resolve_path(path).is_dir():
        return ConfigError(f"{path}: the directory cannot be loaded: {reason}")
    return ConfigError(
        f"{path}: no such directory, and the model hub did not give it: {reason} "
        "Without a connection, download the model elsewhere and give the path of its directory; "
        "gated models need a token in the environment (HF_TOKEN)."
    )


def set_checkpointing(model: Any, enabled: bool) -> None:
    """Recompute a transformers model's layers in the backward pass, in training mode."""
    if enabled:
        model.activation_checkpointing_enable({"use_reentrant": False})
    elif model.is_activation_checkpointing:
        model.activation_checkpointing_disable()
