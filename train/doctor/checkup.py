"""All checks of a run, in the order in which a mistake is cheapest to find.

Short, before the first step of every training: on the captioner that is there, on rank 0. Whole, by
`prismcap doctor`: also the engine itself, with its largest micro-batch, and a checkpoint saved and loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.encode import Encoder
from prismcap.data.mix import Mix
from prismcap.data.pack import ImageInputs
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.frozen import hold_frozen
from prismcap.model.kernels import apply_kernels
from prismcap.model.trainable import finish_stage, prepare_stage, trainable_parameters, unquantized
from prismcap.train.checkpoint import FINAL
from prismcap.train.distributed import Ranks
from prismcap.train.doctor.agreement import check_agreement, config_hash, data_hash
from prismcap.train.doctor.chat_template import check_template
from prismcap.train.doctor.disk import StageSize, check_disk, folder_bytes, run_bytes
from prismcap.train.doctor.findings import DoctorError, Finding, error, errors, ok, warning
from prismcap.train.doctor.memory import check_estimate, forward_and_backward, try_largest
from prismcap.train.doctor.samples import check_samples, draw_samples, show
from prismcap.train.doctor.saving import check_reload
from prismcap.train.doctor.trained import check_groups, check_learning
from prismcap.train.engines._contract import Engine
from prismcap.train.optim import total_steps
from prismcap.train.plan.memory import Memory, StageMemory, configured_sharding
from prismcap.train.plan.worst_case import worst_batch
from prismcap.train.run import build_engine, seed_everything, stage_data
from prismcap.train.runfolder import run_folder
from prismcap.train.settle import settle

ExportCheck = Callable[[Captioner, RunConfig], None]


@dataclass
class Checkup:
    """Collects findings and says each one as it is found. Samples are shown in colour on a terminal."""

    config: RunConfig
    ranks: Ranks
    say: Callable[[str], None]
    colour: bool = False
    findings: list[Finding] = field(default_factory=list)
    sizes: dict[str, StageSize] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)

    def note(self, *findings: Finding) -> None:
        for finding in findings:
            self.findings.append(finding)
            self.say(str(finding))

    @property
    def failed(self) -> bool:
        return bool(errors(self.findings))

    def look_at_stage(
        self, name: str, captioner: Captioner, mix: Mix, encoder: Encoder, images: ImageInputs
    ) -> None:
        """Samples, masks, what trains, its loss and gradient, and the memory that it will need.

        The captioner is prepared for the stage. No collective.
        """
        stage = self.config.stages[name]
        steps = total_steps(stage.schedule, len(mix), stage.batch.samples_per_step)
        trained = sum(value.numel() for value in trainable_parameters(captioner).values())
        sharding = configured_sharding(stage, self.ranks.world_size)
        self.sizes[name] = StageSize(trained, steps, sharding.weights_in_bf16(stage.precision))
        drawn = draw_samples(mix, encoder, images)
        for _, encoded in drawn.samples:
            self.say(f"         {show(encoded, encoder, self.colour)}".replace("\n", "\n         "))
        self.note(*check_template(name, encoder), *check_samples(name, drawn, encoder))
        self.note(*check_groups(name, captioner, stage))
        if drawn.samples:
            self.note(*check_learning(name, captioner, drawn.batch, stage))
        self.memory[name] = StageMemory(self.config.model, stage).of(sharding)
        self.note(check_estimate(name, self.memory[name], self.ranks))

    def look_at_disk(self, captioner: Captioner) -> None:
        """All that the stages looked at will write."""
        folder = run_folder(self.config)
        folder.mkdir(parents=True, exist_ok=True)
        weights = sum(parameter.numel() for parameter in captioner.parameters())
        used = folder_bytes(folder)
        self.note(check_disk(folder, run_bytes(self.config, self.sizes, weights), used))


def check_before_training(
    captioner: Captioner, config: RunConfig, ranks: Ranks, say: Callable[[str], None], colour: bool = False
) -> None:
    """The short form, of the stages that have not finished. Not collective; the captioner is left as it was.

    Raises DoctorError when a check says error.
    """
    checkup = Checkup(config, ranks, say, colour)
    captioner.to(ranks.device)
    stages = [name for name in config.stages if not (run_folder(config) / name / FINAL).is_dir()]
    for name in stages:
        _prepare(captioner, config, name)
        checkup.look_at_stage(name, captioner, *stage_data(config, name, captioner))
        finish_stage(captioner)
    checkup.look_at_disk(captioner)
    if not checkup.failed:
        hungriest = max(stages, key=lambda name: checkup.memory[name].total)
        checkup.note(_try_alone(captioner, config, hungriest, ranks))
    captioner.eval()
    if checkup.failed:
        raise DoctorError("\n".join(str(finding) for finding in errors(checkup.findings)))


def _prepare(captioner: Captioner, config: RunConfig, name: str, quantize: bool = False) -> None:
    """Quantized only where the captioner is thrown away: finish_stage cannot undo it."""
    stage = config.stages[name]
    train = stage.train if quantize else unquantized(stage.train)
    prepare_stage(captioner, train, config.seed, stage.precision)
    if stage.gradient_checkpointing:
        captioner.enable_gradient_checkpointing()


def _try_alone(captioner: Captioner, config: RunConfig, name: str, ranks: Ranks) -> Finding:
    """The largest micro-batch through the bare captioner, where that is what the engine does too."""
    stage = config.stages[name]
    if stage.engine.name != "torch":
        return warning(
            f"{name}: the largest micro-batch is not tried here, as {stage.engine.name} shards its memory",
            f"To be sure: {_command(ranks)} doctor with the same config",
        )
    if unquantized(stage.train) != stage.train:
        return warning(
            f"{name}: the largest micro-batch is not tried here, where the LLM is not quantized",
            f"To be sure: {_command(ranks)} doctor with the same config",
        )
    _prepare(captioner, config, name)
    try:
        batch = worst_batch(captioner, stage)
        return try_largest(name, lambda: forward_and_backward(captioner, batch, stage), batch)
    finally:
        finish_stage(captioner)


def check_before_stage(
    config: RunConfig,
    name: str,
    engine: Engine,
    captioner: Captioner,
    ranks: Ranks,
    say: Callable[[str], None],
) -> None:
    """The largest micro-batch through the very engine that will train, on every rank, between a checkpoint
    saved and the same one loaded. Weights and optimiser are as before. Collective.

    Raises DoctorError, on every rank, when a rank finds an error.
    """
    largest = worst_batch(captioner, config.stages[name])
    findings: list[Finding] = []
    tried = try_largest(
        name, lambda: findings.append(check_reload(config, name, engine, largest, ranks)), largest
    )
    findings.append(tried)
    if ranks.is_first:
        for finding in findings:
            say(str(finding))
    wrong = [finding for part in ranks.gather(errors(findings)) for finding in part]
    if wrong:
        raise DoctorError("\n".join(dict.fromkeys(map(str, wrong))))


def _command(ranks: Ranks) -> str:
    if ranks.world_size == 1:
        return "prismcap"
    return f"torchrun --nproc-per-node {ranks.world_size} -m prismcap.scripts.cli"


def check_run(
    config: RunConfig,
    ranks: Ranks,
    say: Callable[[str], None],
    colour: bool = False,
    check_export: ExportCheck | None = None,
) -> list[Finding]:
    """Every check. Collective; the findings are those of this rank, and all ranks stop together.

    `check_export` is called on rank 0 with the captioner, and raises when an export would fail.
    """
    config = settle(config, ranks)
    checkup = Checkup(config, ranks, say, colour)
    checkup.note(check_agreement("config", config_hash(config), ranks))
    if checkup.failed:
        return checkup.findings
    _look(checkup, check_export)
    for name in config.stages:
        if _any_failed(checkup):
            break
        _try_engine(checkup, name)
    return checkup.findings


def _look(checkup: Checkup, check_export: ExportCheck | None) -> None:
    """Everything that needs no engine. Collective."""
    config, ranks = checkup.config, checkup.ranks
    captioner = build_captioner(config.model, seed=config.seed)
    if check_export is not None:
        checkup.note(ranks.on_first(lambda: _export_finding(check_export, captioner, config)))
    captioner.to(ranks.device)
    for name in config.stages:
        _prepare(captioner, config, name)
        mix, encoder, images = stage_data(config, name, captioner)
        checkup.note(check_agreement(f"{name}: data", data_hash(mix), ranks))
        checkup.look_at_stage(name, captioner, mix, encoder, images)
        finish_stage(captioner)
    checkup.look_at_disk(captioner)


def _any_failed(checkup: Checkup) -> bool:
    """On any rank. Collective."""
    return any(checkup.ranks.gather(checkup.failed))


def _export_finding(check_export: ExportCheck, captioner: Captioner, config: RunConfig) -> Finding:
    try:
        check_export(captioner, config)
    except ValueError as problem:
        return error(f"the export fails: {problem}", "The run would train, and fail at `prismcap export`.")
    return ok("the export was written, loaded again, and agrees with the model")


def _try_engine(checkup: Checkup, name: str) -> None:
    """Collective. The captioner is thrown away: engines change it."""
    config, ranks = checkup.config, checkup.ranks
    stage: StageConfig = config.stages[name]
    seed_everything(config.seed, list(config.stages).index(name), ranks.rank)
    captioner = build_captioner(config.model, seed=config.seed)
    _prepare(captioner, config, name, quantize=True)
    hold_frozen(captioner, stage.precision)
    captioner.to(ranks.device)
    few = draw_samples(*stage_data(config, name, captioner)).batch
    largest = worst_batch(captioner, stage)
    apply_kernels(captioner, stage.kernels, ranks.device)
    engine = build_engine(config, name, captioner, checkup.sizes[name].steps, ranks)
    try:
        checkup.note(try_largest(name, lambda: engine.train_step([largest]), largest))
        if not _any_failed(checkup):
            checkup.note(check_reload(config, name, engine, few, ranks))
    finally:
        engine.close()
