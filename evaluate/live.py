"""A captioner that is training, asked about the held-out items that its stage's `evaluate` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismcap.configs.errors import ConfigError, nearest
from prismcap.configs.schema.run import EvaluationConfig, RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.sources._contract import SourceContext
from prismcap.evaluate.asking import Asked, ask, encoder_of, store_of
from prismcap.evaluate.inference import FeatureStore
from prismcap.evaluate.metrics._named import NamedMetric
from prismcap.evaluate.scenes.caption_metrics import build_metrics, measure_captions, try_metrics
from prismcap.evaluate.scenes.figures import Result, figure_values, figures_of
from prismcap.evaluate.scenes.items import Item, split_items
from prismcap.model.captioner import Captioner

# What one process has said (texts and flags), and what all have, in the order of the processes. Collective
Said = list[tuple[str, dict[str, bool]]]
Gather = Callable[[Said], list[Said]]


def alone(said: Said) -> list[Said]:
    """The `Gather` of a single process."""
    return [said]


@dataclass
class LiveEvaluation:
    """The items of one stage, the same ones at every call: the splits' first, by the run's seed.

    Features of the pictures are kept from one call to the next while the encoder is frozen: K x D numbers
    for each tile.
    """

    stage_name: str
    stage: StageConfig
    evaluation: EvaluationConfig
    items: Mapping[str, list[Item]]  # by split
    seed: int
    metrics: Sequence[NamedMetric] = ()
    _store: FeatureStore | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, config: RunConfig, stage_name: str, device: str = "cpu") -> LiveEvaluation:
        """For a stage that has `evaluate`. No picture is drawn yet. device: of metrics that are models.

        Raises ConfigError for a source without scene graphs or without items, for a metric that cannot be
        measured, and for a `best` that none of the figures is called.
        """
        stage = config.stages[stage_name]
        plan, evaluation = stage.evaluate, config.evaluation
        assert plan is not None and evaluation is not None  # configs/schema/run.py lets no other be
        context = SourceContext(config.seed, stage.data.max_image_pixels)
        items = {
            split: split_items(split, evaluation.splits[split], context, plan.num_items)
            for split in plan.splits
        }
        where = f"stages.{stage_name}.evaluate"
        metrics = build_metrics(evaluation, where, device, plan.metrics)
        live = cls(stage_name, stage, evaluation, items, config.seed, metrics)
        names = live.names()  # tries the metrics: what one lacks shows before the first step
        if plan.best is not None and plan.best not in names:
            raise ConfigError(
                f"{where}.best: the items make no figure {plan.best!r}.{nearest(plan.best, names)}"
            )
        return live

    def names(self) -> list[str]:
        """Of the figures, `<split>.<figure>`, and `<split>.<metric>.<figure>` of those that one true caption
        makes. Raises as Metric.figures."""
        return [
            f"{split}.{name}"
            for split, items in self.items.items()
            for name in [*(figure.name for figure in figures_of(items)), *try_metrics(self.metrics, items)]
        ]

    def figures(
        self, captioner: Captioner, rank: int = 0, world_size: int = 1, gather: Gather = alone
    ) -> dict[str, dict[str, Any]]:
        """{rate or mean, low, high, n} by <split>.<figure>, each item with its own picture.

        Use inside the engine's eval_context. Of several processes each asks its part of the items, not in
        step; every one gets the figures of all.
        """
        asked: list[Asked] = [("none", item, item) for items in self.items.values() for item in items]
        own = asked[rank::world_size]
        encoder = encoder_of(captioner, self.stage, f"stages.{self.stage_name}")
        store = self._features(captioner)
        store.add([item.image for _, item, _ in own])
        results = ask(captioner, encoder, own, store, self.evaluation)
        said = gather([(result.text, result.flags) for result in results])
        everything = [
            Result(item, control, *said[index % world_size][index // world_size], shown)
            for index, (control, item, shown) in enumerate(asked)
        ]
        found: dict[str, dict[str, Any]] = {}
        for split, items in self.items.items():
            results = [result for result in everything if result.item.split == split]
            values = {figure.name: figure_values(figure, results) for figure in figures_of(items)}
            values |= measure_captions(self.metrics, results, self.seed).values
            found |= {f"{split}.{name}": _kept(value) for name, value in values.items()}
        return found

    def _features(self, captioner: Captioner) -> FeatureStore:
        if self._store is None or captioner.trains_encoder:
            self._store = store_of(captioner, self.stage, self.evaluation.batch_size)
        return self._store


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("rate", "mean", "low", "high", "n") if key in values}
