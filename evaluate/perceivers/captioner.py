"""A captioner of ours: the folder of a run, or of its export."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field

from prismcap.configs.cache import resolve_path
from prismcap.configs.errors import ConfigError
from prismcap.configs.load import load_config
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.encode import Encoder
from prismcap.data.pairs import stage_encoder
from prismcap.data.schema import DataError, Encoded, ImagePart, ImageRef, Message, TextPart
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.inference import FeatureStore, generate_stored, inference
from prismcap.evaluate.local_models import folder_hash, local_device
from prismcap.evaluate.perceivers._chat import ChatModel
from prismcap.evaluate.perceivers._contract import PerceiverContext
from prismcap.evaluate.perceivers._local import (
    answer_of,
    chunks_by_picture,
    refuse_sampling,
)
from prismcap.evaluate.perceivers._several import PictureOptions, View, ViewPerceiver
from prismcap.evaluate.results import weights_id
from prismcap.model.captioner import Captioner
from prismcap.model.hf.load import Exported, load_exported
from prismcap.model.restore import load_trained

BATCHES_AT_ONCE = 4  # encoded together and sorted by length; bounds the features in memory


class Options(PictureOptions):
    model: str = Field(description="folder of a run (checkpoints/demo) or of an export")


@dataclass
class RunModel:
    """A run's captioner after its last stage, loaded at the first view. Describes views as ChatModel does."""

    run_dir: Path
    config: RunConfig
    context: PerceiverContext

    @property
    def identity(self) -> str:
        """Of the weights of every stage, and of what the config says about model, template and pictures.

        Raises ConfigError when a stage has not finished.
        """
        name, stage = self._last
        try:
            weights = {stage_name: weights_id(self.run_dir, stage_name) for stage_name in self.config.stages}
        except OSError as error:
            raise ConfigError(
                f"perceivers.{self.context.name}.model: {self.run_dir}: a stage has not finished ({error}); "
                "go on with `prismcap train … --resume auto`"
            ) from error
        said = {
            "weights": weights,
            "model": self.config.model.model_dump(mode="json"),
            "template": stage.template.model_dump(mode="json"),
            "data": stage.data.model_dump(mode="json", include={"geometry", "max_tiles", "tile_grids"}),
            "precision": stage.precision,
        }
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8)
        return f"run {weights[name]} {digest.hexdigest()}"

    @property
    def _last(self) -> tuple[str, StageConfig]:
        return list(self.config.stages.items())[-1]

    @cached_property
    def captioner(self) -> Captioner:
        return load_trained(self.run_dir, local_device(self.context.device))[0]

    @cached_property
    def encoder(self) -> Encoder:
        name, stage = self._last
        where = f"{self.run_dir}: stages.{name}"
        if self.captioner.tokenizer is None:
            raise ConfigError(f"{where}: the LLM has no tokenizer, so it describes nothing")
        # an instruction may be longer than any prompt of the training: the LLM's own window bounds it
        window = getattr(self.captioner.llm.config, "max_position_embeddings", stage.data.max_tokens)
        data = stage.data.model_copy(update={"max_tokens": window})
        token_spec = self.captioner.token_spec_of(data)
        return stage_encoder(
            stage.model_copy(update={"data": data}), self.captioner.tokenizer, token_spec, where
        )

    def describe_views(self, views: Sequence[View]) -> Iterator[tuple[int, Answer]]:
        """Each picture is drawn and encoded once, however many views it has; texts are made in batches."""
        bad: dict[ImageRef, str] = {}

        def reject(image: ImageRef, error: DataError) -> None:
            bad[image] = str(error)

        spec = self.captioner.image_spec_of(self._last[1].data)
        batch_size = self.context.batch_size
        store = FeatureStore(self.captioner, spec, batch_size, on_reject=reject)
        for chunk in chunks_by_picture(views, BATCHES_AT_ONCE * batch_size):
            begun_s = time.perf_counter()
            # the model's modes are not left changed while others work between two answers
            with inference(self.captioner, self._last[1].precision):
                images = [views[position].image for position in chunk]
                store.keep_only(images)
                store.add([image for image in images if image not in bad])
            prompts: dict[int, Encoded] = {}
            for position in chunk:
                found = self._prompt(views[position], bad)
                if isinstance(found, str):
                    yield position, failed(found)
                else:
                    prompts[position] = found
            drawn_s = (time.perf_counter() - begun_s) / len(chunk)
            order = sorted(prompts, key=lambda position: len(prompts[position]))
            for start in range(0, len(order), batch_size):
                batch = {position: prompts[position] for position in order[start : start + batch_size]}
                yield from self._answers(batch, store, drawn_s)

    def _prompt(self, view: View, bad: dict[ImageRef, str]) -> Encoded | str:
        """Encoded, or why it cannot be."""
        if view.image in bad:
            return bad[view.image]
        message = Message("user", (ImagePart(0), TextPart(view.instruction)))
        try:
            return self.encoder.encode_prompt([message], (view.image,))
        except DataError as error:
            return str(error)

    def _answers(
        self, batch: dict[int, Encoded], store: FeatureStore, drawn_s: float
    ) -> Iterator[tuple[int, Answer]]:
        begun_s = time.perf_counter()
        decoding = self.context.decoding
        with inference(self.captioner, self._last[1].precision):
            generated = generate_stored(
                self.captioner,
                list(batch.values()),
                store,
                max_new_tokens=decoding.max_new_tokens,
                num_beams=decoding.num_beams,
                stop=self.encoder.template.spec.stop,
            )
        latency_s = drawn_s + (time.perf_counter() - begun_s) / len(batch)
        for (position, prompt), answer in zip(batch.items(), generated, strict=True):
            yield position, answer_of(answer, len(prompt), latency_s)


def build(options: Options, context: PerceiverContext) -> ViewPerceiver:
    """Raises ConfigError for a folder that is neither a run nor an export, and for sampling."""
    refuse_sampling(context)
    folder = resolve_path(options.model)
    where = f"perceivers.{context.name}.model: {options.model}"
    if (folder / "config.json").is_file():

        def load() -> Exported:
            return load_exported(folder, local_device(context.device))

        chat = ChatModel(load, context.decoding, context.batch_size, check_shapes=True)
        return ViewPerceiver(options, chat.describe_views, lambda: f"export {folder_hash(folder)}")
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{where}: no such folder of a run (with config.yaml) or of an export (with config.json)"
        )
    config = load_config(folder / "config.yaml")
    name, stage = list(config.stages.items())[-1]
    if stage.kind == "contrastive":
        raise ConfigError(f"{where}: its last stage, {name}, is contrastive: there is no captioner yet")
    run = RunModel(folder, config, context)
    return ViewPerceiver(options, run.describe_views, lambda: run.identity)
