"""SPICE 1.0 (Anderson et al., ECCV 2016, arXiv 1607.08822): F-score of what two captions say of a picture.

The program in Java that pycocoevalcap holds does it all. It needs the models of Stanford CoreNLP 3.6.0 too,
which the package does not bring and this module never downloads; up to 8 GB of memory; and a Java that its
libraries run on (it was written for Java 8).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure, MetricContext, Need
from prismcap.evaluate.metrics._java import package_file, run_java
from prismcap.evaluate.metrics._ptb import TOKENS, tokenize

__all__ = ["Options", "build"]

_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class Options(Section):
    """SPICE has no options."""


def build(options: Options, context: MetricContext) -> Spice:  # noqa: ARG001
    return Spice()


class Spice:
    """spice: the mean over items; needs Java, pycocoevalcap and CoreNLP's models."""

    needs: frozenset[Need] = frozenset({"references"})
    identity = f"spice 1.0; {TOKENS}"

    def figures(self, items: Sequence[CaptionItem]) -> list[ItemFigure]:
        """Raises ConfigError without the package, the models or Java, and when the program fails."""
        jar = package_file("spice/spice-1.0.jar", "spice")
        for name in _MODELS:
            if not (jar.parent / "lib" / name).is_file():
                raise ConfigError(
                    f"spice needs {jar.parent / 'lib' / name}, which is downloaded by itself: "
                    f"python -m pycocoevalcap.spice.get_stanford_models"
                )
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder) / "captions.json", Path(folder) / "scores.json"
            given.write_text(json.dumps([_entry(number, item) for number, item in enumerate(items)]))
            run_java(jar, [str(given), "-out", str(found), "-silent"], "8G", "spice")
            values = read_scores(found, len(items))
        note = "mean over items; F-score of objects, attributes and relations"
        return [ItemFigure("spice", values, note)]


def read_scores(path: Path, num_items: int) -> list[float | None]:
    """The F-score of each item, None where it has none. Raises ConfigError where items are missing."""
    try:
        entries = json.loads(path.read_text())
        scores = {int(entry["image_id"]): entry["scores"]["All"]["f"] for entry in entries}
        return [_number(scores[number]) for number in range(num_items)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"spice: expected {num_items} scores from spice-1.0.jar ({error!r})") from error


def _entry(number: int, item: CaptionItem) -> dict[str, Any]:
    return {
        "image_id": number,
        "test": tokenize(item.text),
        "refs": [tokenize(reference) for reference in item.references],
    }


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
