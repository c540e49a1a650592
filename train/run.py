"""A whole run: every stage in order, each from where it stands.

A stage starts from what its predecessors left on disk, also when they ran in the same process: the way
into a stage is then the same for a run that was killed between two stages and one that was not.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import component_module, component_options
from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.encode import Encoder
from prismcap.data.features import FeatureInputs
from prismcap.data.loader import RejectionTally, StepLoader
from prismcap.data.mix import Mix, build_mix
from prismcap.data.pack import PixelInputs
from prismcap.data.pairs import stage_encoder
from prismcap.data.sources._contract import SourceContext
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.kernels import apply_kernels
from prismcap.model.restore import load_trained
from prismcap.model.trainable import prepare_stage, trainable_parameters
from prismcap.model.weights import save_weights
from prismcap.train import checkpoint as checkpoints
from prismcap.train.best import WEIGHTS, BestWeights
from prismcap.train.checkpoint import FINAL, DamagedError, Manifest
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.agreement import config_hash, data_hash, require_agreement
from prismcap.train.engines._contract import Engine
from prismcap.train.evaluations import MeasureOf, StageEvaluations
from prismcap.train.feature_cache import fill, open_store
from prismcap.train.fit import StepCallback, fit
from prismcap.train.lengths import lengths_for
from prismcap.train.mfu import MfuMeter
from prismcap.train.optim import total_steps
from prismcap.train.random_state import RandomState, load_random_state, save_random_state
from prismcap.train.runfolder import comparable, open_run, stages_up_to
from prismcap.train.settle import settle
from prismcap.train.signals import StopRequest
from prismcap.train.sinks import jsonl, progress
from prismcap.train.sinks._contract import Sink
from prismcap.train.skipping import SkipBudget

log = logging.getLogger(__name__)

BeforeTraining = Callable[[Captioner, RunConfig], None]
BeforeStage = Callable[[RunConfig, str, Engine, Captioner], None]


def run_training(
    config: RunConfig,
    resume: str = "never",
    before_training: Sequence[BeforeTraining] = (),
    before_stage: Sequence[BeforeStage] = (),
    callbacks: Sequence[StepCallback] = (),
    ranks: Ranks | None = None,
    measure_of: MeasureOf | None = None,
    last_stage: str | None = None,
) -> Path:
    """Train every stage that has not finished. Returns the run's folder. Collective.

    resume: `never`, `auto`, or a checkpoint folder; see runfolder.open_run.
    last_stage: the later ones are left for another time. What is called before training is then told of
    those before alone.
    before_training: called on rank 0 with the captioner before the first step that is made.
    before_stage: called on every rank before the first step of each stage, with the engine as it stands;
    they leave weights and optimiser as they were.
    measure_of: what stages with `evaluate` are measured by; without it such a stage is a ConfigError.
    Raises ConfigError, DataError, BadStepError, SaveError, and StoppedError (signals.py).
    """
    ranks = ranks or Ranks()
    stop = StopRequest()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    config = settle(config, ranks)
    names = list(config.stages) if last_stage is None else stages_up_to(last_stage, config)
    meant = config.model_copy(update={"stages": {name: config.stages[name] for name in names}})
    require_agreement("the config", lambda: config_hash(config), ranks)
    with open_run(config, resume, ranks) as run_dir:
        sinks = open_sinks(config, run_dir) if ranks.is_first else []
        try:
            pending = [name for name in names if not _has_final(run_dir / name, ranks)]
            for name in names:
                if name not in pending:
                    log.info("stage %s: finished before", name)
                    continue
                captioner = _captioner_before(name, config, run_dir)
                if name == pending[0]:
                    for hook in before_training:
                        ranks.on_first(partial(hook, captioner, meant))
                run = _StageRun(config, name, run_dir / name, ranks, stop, measure_of)
                run.train(captioner, sinks, callbacks, before_stage)
                del captioner
        finally:
            for sink in sinks:
                sink.close()
    return run_dir


def open_sinks(config: RunConfig, run_dir: Path) -> list[Sink]:
    """The log file, the terminal, and the sinks that the config names."""
    named = [component_module("sink", name, "logging.sinks") for name in config.logging.sinks]
    return [module.build(config, run_dir) for module in (jsonl, progress, *named)]


def _has_final(stage_dir: Path, ranks: Ranks) -> bool:
    def look() -> bool:
        if not (stage_dir / FINAL).is_dir():
            return False
        try:
            checkpoints.verify(stage_dir / FINAL)
        except DamagedError as error:
            log.warning("%s. The stage goes on from the checkpoint before its end.", error)
            return False
        return True

    return ranks.on_first(look)


def _captioner_before(stage: str, config: RunConfig, run_dir: Path) -> Captioner:
    """As the stages before this one left it."""
    names = list(config.stages)
    index = names.index(stage)
    if index == 0:
        return build_captioner(config.model, seed=config.seed)
    captioner, _ = load_trained(run_dir, last_stage=names[index - 1])
    return captioner


def stage_data(config: RunConfig, name: str, captioner: Captioner) -> tuple[Mix, Encoder, PixelInputs]:
    """What a stage's samples are made from: the mix in its plain order, the text's encoder, the pictures'."""
    stage = config.stages[name]
    where = f"stages.{name}"
    context = SourceContext(config.seed, stage.data.max_image_pixels)
    tokenizer, token_spec = captioner.tokenizer, captioner.token_spec_of(stage.data)
    mix = build_mix(stage.data, context, f"{where}.data")
    encoder = stage_encoder(stage, tokenizer, token_spec, where)
    return mix, encoder, PixelInputs(captioner.image_spec_of(stage.data))


def stage_loader(config: RunConfig, name: str, captioner: Captioner, ranks: Ranks) -> StepLoader:
    """The data of a stage for one rank, from its first step on, with pictures as tiles. Collective.

    Raises DoctorError when the ranks do not have the same data.
    """
    stage = config.stages[name]
    mix, encoder, images = stage_data(config, name, captioner)
    # first: with other data, ranks would wait for each other in what follows
    require_agreement(f"the data of stage {name}", lambda: data_hash(mix), ranks)
    size = stage.batch.samples_per_step
    num_positions = total_steps(stage.schedule, len(mix), size) * size
    mix, lengths = lengths_for(mix, encoder, stage.batch, num_positions, stage.data.num_workers, ranks)
    return StepLoader(
        mix=mix,
        encoder=encoder,
        batch=stage.batch,
        images=images,
        rank=ranks.rank,
        world_size=ranks.world_size,
        num_workers=stage.data.num_workers,
        lengths=lengths,
        pin_memory=ranks.device.type == "cuda",
    )


def build_engine(config: RunConfig, name: str, captioner: Captioner, steps: int, ranks: Ranks) -> Engine:
    """The engine of a stage of `steps` steps, over a captioner that prepare_stage has made ready."""
    stage = config.stages[name]
    module, options = component_options("engine", stage.engine, f"stages.{name}.engine")
    engine: Engine = module.build(options, captioner, stage, steps, ranks)
    return engine


def seed_everything(seed: int, stage_index: int, rank: int) -> None:
    """Dropout and the like: their own numbers for every stage and rank."""
    state = np.random.SeedSequence([seed % 2**63, stage_index, rank]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


@dataclass
class _StageRun:
    config: RunConfig
    name: str
    folder: Path
    ranks: Ranks
    stop: StopRequest = field(default_factory=StopRequest)
    measure_of: MeasureOf | None = None
    num_samples: int = 0  # of the mix; these two are known once the data is open
    num_steps: int = 0

    @property
    def stage(self) -> StageConfig:
        return self.config.stages[self.name]

    def train(
        self,
        captioner: Captioner,
        sinks: Sequence[Sink],
        callbacks: Sequence[StepCallback],
        before: Sequence[BeforeStage],
    ) -> None:
        """From the newest checkpoint, or the start, to `final`."""
        stage, ranks = self.stage, self.ranks
        self.folder.mkdir(exist_ok=True)
        seed_everything(self.config.seed, list(self.config.stages).index(self.name), ranks.rank)
        prepare_stage(captioner, stage.train, self.config.seed, stage.precision)
        hold_frozen(captioner, stage.precision)
        if stage.gradient_checkpointing:
            captioner.enable_gradient_checkpointing()
        captioner.to(ranks.device)
        meter = MfuMeter.of(captioner, stage, ranks)  # a CPU's rate is measured: before anything runs beside
        loader = stage_loader(self.config, self.name, captioner, ranks)
        steps = total_steps(stage.schedule, len(loader.mix), stage.batch.samples_per_step)
        self.num_samples, self.num_steps = len(loader.mix), steps
        if stage.feature_cache:
            loader = replace(loader, images=self._features(captioner, loader.mix, steps))
        trainable = sum(parameter.numel() for parameter in trainable_parameters(captioner).values())
        log.info("stage %s: %d steps, %d weights train", self.name, steps, trainable)
        apply_kernels(captioner, stage.kernels, ranks.device)
        engine = build_engine(self.config, self.name, captioner, steps, ranks)
        tally = RejectionTally(stage.data.max_rejected_share, steps * stage.batch.samples_per_step)
        budget = SkipBudget(stage.optimizer.max_skipped_steps, stage.optimizer.max_loss_ratio)
        self._go_on(engine, tally, budget)
        for look in before:
            undisturbed = RandomState.take()
            look(self.config, self.name, engine, captioner)
            undisturbed.put_back()
        rest = replace(loader, start_step=engine.step, num_steps=steps - engine.step)

        def manifest(step: int) -> Manifest:
            return self._manifest(step, tally, budget)

        def save(step: int) -> None:
            self._save(engine, manifest(step), trainable)

        best = self._best(manifest, engine.step, trainable)
        callbacks = [*self._evaluations(captioner, engine.step, sinks, best), *callbacks]
        every = stage.checkpoint.every_steps
        with self.stop.noting_signals():
            fit(
                *(self.name, engine, iter(rest), steps, tally, ranks, sinks, callbacks, save, every),
                meter=meter,
                budget=budget,
                stop=self.stop,
            )
            self._save_final(engine, manifest(steps), trainable, best)
        engine.close()
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _best(self, manifest: Callable[[int], Manifest], step: int, trainable: int) -> BestWeights | None:
        plan = self.stage.evaluate
        if plan is None or plan.best is None:
            return None
        return BestWeights(
            *(self.folder, plan.best, plan.higher_is_better, manifest, self.ranks),
            step=step,
            needed_bytes=trainable * 4,
        )

    def _evaluations(
        self, captioner: Captioner, step: int, sinks: Sequence[Sink], best: BestWeights | None
    ) -> list[StepCallback]:
        """The callback of the stage's `evaluate`, where there is one."""
        plan = self.stage.evaluate
        if plan is None:
            return []
        if self.measure_of is None:
            raise ConfigError(f"stages.{self.name}.evaluate: what starts this run measures nothing")
        undisturbed = RandomState.take()  # metrics may be models, which are made with random numbers
        measure = self.measure_of(self.config, self.name, self.ranks)
        undisturbed.put_back()
        stages, run_dir = tuple(self.config.stages), self.folder.parent
        before = self.ranks.on_first(lambda: jsonl.evaluations_up_to(run_dir, stages, self.name, step))
        return [StageEvaluations(plan, measure, captioner, self.ranks, sinks, best, before)]

    def _features(self, captioner: Captioner, mix: Mix, steps: int) -> FeatureInputs:
        stage = self.stage
        spec = captioner.image_spec_of(stage.data)
        component, encoder = self.config.model.vision_encoder, captioner.vision_encoder
        assert stage.feature_cache
        store = open_store(component, encoder, spec, stage.precision, stage.feature_cache)
        positions = steps * stage.batch.samples_per_step
        fill(captioner, mix, positions, spec, store, self.ranks, stage.precision, stage.data.num_workers)
        return FeatureInputs(store, spec)

    def _go_on(self, engine: Engine, tally: RejectionTally, budget: SkipBudget) -> None:
        """Put engine, counts and random generators where the newest whole checkpoint has them."""
        found = self.ranks.on_first(lambda: checkpoints.newest(self.folder))
        if found is None:
            return
        folder, manifest = found
        self._check_data(folder, manifest)
        if engine.fixed_world_size and manifest.world_size != self.ranks.world_size:
            raise ConfigError(
                f"{folder} was written by {manifest.world_size} processes, this run has "
                f"{self.ranks.world_size}: engine {self.stage.engine.name} can only go on with as many. "
                f"Start {manifest.world_size} processes, or train the stage anew under another name=…"
            )
        engine.load(folder)
        tally.num_seen = manifest.step * self.stage.batch.samples_per_step
        tally.by_reason.update(manifest.rejected)
        budget.num_skipped = manifest.num_skipped
        budget.recent_losses.extend(manifest.recent_losses)
        load_random_state(folder, self.ranks.rank)
        log.info("stage %s: goes on after step %d (%s)", self.name, engine.step, folder)

    def _check_data(self, folder: Path, manifest: Manifest) -> None:
        """Files may change while the config that names them stays the same."""
        then, now = (manifest.num_samples, manifest.total_steps), (self.num_samples, self.num_steps)
        if manifest.num_samples and then != now:
            raise ConfigError(
                f"{folder}: stages.{self.name}.data had {then[0]} samples when this was written (a stage of "
                f"{then[1]} steps), now it has {now[0]} ({now[1]} steps): the files have changed, so the run "
                "cannot go on where it was. Put the files back, or train anew under another name=…"
            )

    def _manifest(self, step: int, tally: RejectionTally, budget: SkipBudget) -> Manifest:
        return Manifest(
            stage=self.name,
            step=step,
            world_size=self.ranks.world_size,
            engine=self.stage.engine.name,
            config=comparable(self.config, self.name),
            rejected=dict(tally.by_reason),
            stages=stages_up_to(self.name, self.config),
            num_samples=self.num_samples,
            total_steps=self.num_steps,
            num_skipped=budget.num_skipped,
            recent_losses=list(budget.recent_losses),
        )

    def _save(self, engine: Engine, manifest: Manifest, trainable: int) -> None:
        def write(folder: Path) -> None:
            engine.save(folder)
            save_random_state(folder, self.ranks.rank)

        # a weight and Adam's two moments, four bytes each
        self._put(checkpoints.step_name(manifest.step), manifest, write, trainable * 12)
        keep = self.stage.checkpoint.keep
        self.ranks.on_first(lambda: checkpoints.prune(self.folder, keep))

    def _save_final(
        self, engine: Engine, manifest: Manifest, trainable: int, best: BestWeights | None
    ) -> None:
        """The weights as they are, or the best ones where these are kept."""
        if best is not None and best.found is not None:
            manifest = replace(manifest, best=asdict(best.found))
            self._put(FINAL, manifest, best.copy_weights, trainable * 4)
            best.settle()
            return
        weights = engine.gathered_state()

        def write(folder: Path) -> None:
            if self.ranks.is_first:
                save_weights(folder / WEIGHTS, weights)

        self._put(FINAL, manifest, write, trainable * 4)

    def _put(self, name: str, manifest: Manifest, write: Callable[[Path], Any], needed_bytes: int) -> None:
        checkpoints.save_checkpoint(self.folder, name, manifest, write, self.ranks, needed_bytes)
