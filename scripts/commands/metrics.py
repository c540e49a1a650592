"""`prismcap metrics CAPTIONS`: caption metrics of any file of texts, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prismcap.scripts.places import check_folder_of

if TYPE_CHECKING:
    from prismcap.evaluate.metrics._contract import CaptionItem
    from prismcap.evaluate.metrics._named import NamedMetric
    from prismcap.evaluate.reasoners._contract import Reasoner

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("captions", type=FILE)
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--metric", "names", multiple=True, required=True, metavar="NAME", help="Can be repeated.")
@click.option(
    "--references", type=FILE, help="Right captions: COCO's JSON, or rows {id or image, references}."
)
@click.option("--images", type=FOLDER, help="Folder of the pictures.")
@click.option("--objects", type=FILE, help="What is there: COCO's instances, or rows {id or image, objects}.")
@click.option("--questions", type=FILE, help="What was asked: rows {question_id, image, text, label}.")
@click.option("--judge-url", metavar="URL", help="OpenAI-compatible endpoint of a judge, up to and with /v1.")
@click.option("--judge-model", metavar="NAME", help="The judge's model there.")
@click.option("--judge-key-env", metavar="NAME", help="Environment variable that holds the judge's key.")
@click.option("--out", type=FILE, help="JSON file to write: figures, and every item's values.")
@click.option(
    "--compare", "other", type=FILE, help="Other texts of the same items: paired differences to them."
)
@click.option("--device", default="cpu", show_default=True, help="Of local models: cpu, cuda, …")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resampled intervals.")
def metrics(
    captions: Path,
    options: tuple[str, ...],
    names: tuple[str, ...],
    references: Path | None,
    images: Path | None,
    objects: Path | None,
    questions: Path | None,
    judge_url: str | None,
    judge_model: str | None,
    judge_key_env: str | None,
    out: Path | None,
    other: Path | None,
    device: str,
    seed: int,
) -> None:
    """Measure CAPTIONS, a file of texts about pictures, by metrics (docs/metrics.md).

    CAPTIONS: the JSON lines of `prismcap caption --jsonl`, COCO's results, or answers as LLaVA and POPE keep
    them. KEY=VALUE sets an option of a metric, with several of them METRIC.KEY=VALUE.
    """
    from prismcap.evaluate.metrics._interval import FigureIntervals, clusters_of
    from prismcap.evaluate.offline.items import file_as_dict, read_items, read_known
    from prismcap.evaluate.offline.measure import compare, in_order_of, measure
    from prismcap.evaluate.offline.table import differences_table, figures_table

    if out is not None:
        check_folder_of(out)
    components = components_of(names, options)
    built = build_all(components, device, judge_of(judge_url, judge_model, judge_key_env))
    known = read_known(references, objects, questions, images)
    texts, items = read_items(captions, known)
    intervals = FigureIntervals(clusters_of(items), seed)
    result: dict[str, Any] = {"about": {**file_as_dict(texts), "num_items": len(items), "seed": seed}}
    if other is not None:
        other_texts, unsorted = read_items(other, known)
        others = in_order_of(items, unsorted, other)
    measured = measure(built, items, intervals)
    click.echo(figures_table(measured))
    for line in partial_lines(items, known.files):
        click.echo(line)
    result |= measured.as_dict()
    if other is not None:
        against = measure(built, others, intervals)
        differences = compare(measured, against, intervals)
        result["compare"] = {**file_as_dict(other_texts), "differences": differences, **against.as_dict()}
        click.echo(f"\n{other} - {captions}, paired on {len(items)} items\n{differences_table(differences)}")
    if out is not None:
        result["about"] |= about(known.files, components, built)
        _write(out, result)
        click.echo(f"Written to {out}")


def components_of(names: Sequence[str], options: Sequence[str]) -> list[dict[str, Any]]:
    """{name, options…} of every metric. Raises ConfigError for a metric given twice, and for an option of
    none of them."""
    from prismcap.configs.errors import ConfigError
    from prismcap.configs.load import apply_override
    from prismcap.configs.schema.run import metric_key

    components = {metric_key(name): {"name": name} for name in names}
    if len(components) < len(names):
        raise ConfigError(f"--metric {', '.join(names)}: one is given twice")
    for text in options:
        key = text.partition("=")[0]
        prefixes = {prefix: of for of, values in components.items() for prefix in (of, values["name"])}
        found = [prefix for prefix in prefixes if key.startswith(f"{prefix}.")]
        if found:
            longest = max(found, key=len)
            apply_override(components[prefixes[longest]], text[len(longest) + 1 :])
        elif len(components) == 1:
            apply_override(next(iter(components.values())), text)
        else:
            raise ConfigError(
                f"option {text!r}: of which metric? Write METRIC.{text}, with one of {', '.join(components)}"
            )
    return list(components.values())


def build_all(components: Sequence[dict[str, Any]], device: str, judge: Reasoner | None) -> list[NamedMetric]:
    """Raises ConfigError for an unknown metric, naming the nearest, and for wrong options."""
    from prismcap.configs.schema.base import Component
    from prismcap.evaluate.metrics._contract import MetricContext
    from prismcap.evaluate.metrics._named import build_metric

    context = MetricContext(device=device, judge=judge)
    return [
        build_metric(Component.model_validate(values), context, f"--metric {values['name']}")
        for values in components
    ]


def judge_of(url: str | None, model: str | None, key_env: str | None) -> Reasoner | None:
    """The endpoint as a judge. Raises ConfigError for half of one."""
    from prismcap.configs.errors import ConfigError

    if url is None and model is None and key_env is None:
        return None
    if url is None or model is None:
        raise ConfigError("a judge needs both --judge-url URL and --judge-model NAME")
    from prismcap.configs.registry import component_options
    from prismcap.configs.schema.base import Component
    from prismcap.configs.schema.prism import Decoding
    from prismcap.evaluate.reasoners._contract import ReasonerContext

    judge = Component.model_validate({"name": "openai", "url": url, "model": model, "api_key_env": key_env})
    module, options = component_options("reasoner", judge, "--judge")
    context = ReasonerContext("judge", Decoding(), device="cpu", batch_size=1, seed=0)
    built: Reasoner = module.build(options, context)
    return built


def partial_lines(items: Sequence[CaptionItem], files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where a file knows of more pictures than have texts: a file of texts that was cut short looks so."""
    pictures = len({item.cluster for item in items})
    return [
        f"The texts are of {pictures} pictures; {file['path']} has {file['entries']}."
        for option, file in files.items()
        if option in ("references", "objects") and file["entries"] > pictures
    ]


def about(
    files: Mapping[str, Any], components: Sequence[dict[str, Any]], built: Sequence[NamedMetric]
) -> dict[str, Any]:
    """With what it was measured."""
    from prismcap.evaluate.versions import versions

    return {
        "files": files,
        "metrics": {
            metric.key: {**values, "identity": metric.metric.identity}
            for metric, values in zip(built, components, strict=True)
        },
        "versions": versions(),
    }


def _write(out: Path, result: dict[str, Any]) -> None:
    import json

    from prismcap.configs.errors import ConfigError
    from prismcap.configs.files import replace_text

    try:
        replace_text(out, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error}") from error
