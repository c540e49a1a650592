"""One stage of training: what trains, on what, how fast, with which engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator, model_validator

from prismcap.configs.schema.base import Component, Section
from prismcap.configs.schema.data import BatchConfig, DataConfig
from prismcap.configs.schema.evaluate import StageEvaluationConfig

# auto: bf16 where the device is faster in it, else fp32. A run settles it once, in its first start
Precision = Literal["auto", "fp32", "bf16"]
Group = Literal["vision_encoder", "connector", "llm", "text_tower"]
_WARMUP_RATIO = 0.03  # LLaVA's


class LoraConfig(Section):
    """Low-rank adapters (peft) in place of full training of a group; merged when the stage ends."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default=(
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        description="layers by the end of their name; all-linear: every linear one but the LLM's head",
    )
    dora: bool = Field(
        default=False, description="DoRA (arXiv 2402.09353): the length of each row of a weight trains too"
    )
    quantize: Literal["nf4"] | None = Field(
        default=None,
        description="QLoRA (arXiv 2305.14314): the LLM's linear layers in 4 bits, bitsandbytes, GPU only",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> LoraConfig:
        if self.dora and self.quantize:
            raise ValueError("dora and quantize together are not supported: take one")
        return self

    @property
    def kind(self) -> str:
        name = "DoRA" if self.dora else "QLoRA" if self.quantize else "LoRA"
        return f"{name} of rank {self.rank}"


class TextTowerConfig(Section):
    """Sizes of the text tower of a contrastive stage: transformers' SiglipTextModel, made small."""

    hidden_size: int = Field(default=192, ge=1)
    intermediate_size: int = Field(default=768, ge=1)
    num_hidden_layers: int = Field(default=4, ge=1)
    num_attention_heads: int = Field(default=3, ge=1)
    max_text_tokens: int = Field(
        default=64, ge=8, description="every text is filled up to so many; at least data.max_tokens"
    )
    pool: Literal["last", "mean"] = Field(
        default="last",
        description="what speaks for a text: its last position (SigLIP) or the mean over its own tokens: "
        "learned from sooner where most positions are filled up",
    )
    start_bias: float = Field(
        default=-10.0,
        le=0,
        description="of the loss (arXiv 2303.15343, section 3.2, for 32k pairs); about -log(pairs compared)",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextTowerConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}"
            )
        return self


class GroupConfig(Section):
    """One parameter group that trains. Groups that are not named stay frozen."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="none on biases and 1-D parameters")
    only: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="train a part: shell patterns (fnmatch) of the group's own parameter names; with lora, "
        "of the weights that get adapters",
    )
    layer_lr_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="lr of a layer over that of the next one; the last that trains has lr itself",
    )
    lora: LoraConfig | None = None
    sizes: TextTowerConfig | None = Field(default=None, description="of text_tower alone; none: its defaults")

    @property
    def how(self) -> str:
        """What of the group trains, in words."""
        kind = self.lora.kind if self.lora else "" if self.only else "whole"
        only = f"only {', '.join(self.only)}" if self.only else ""
        return ", ".join(part for part in (kind, only) if part)


class OptimizerConfig(Section):
    """AdamW."""

    name: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="adamw_8bit: moments in 8 bits (bitsandbytes), GPU only"
    )
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float = Field(default=1.0, gt=0, description="global gradient norm; inf turns clipping off")
    max_skipped_steps: int = Field(
        default=5,
        ge=0,
        description="steps of the stage that may be left out because their loss or gradient is not finite, "
        "or their loss a spike; 0 stops the run at the first",
    )
    max_loss_ratio: float | None = Field(
        default=None,
        gt=1,
        description="a loss of more than so many times the median of the last 32 steps is a spike, and its "
        "step is left out; none: no loss is too high",
    )


class ScheduleConfig(Section):
    """Learning-rate schedule and length. Exactly one of epochs and max_steps. The formula: train/optim.py."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=_WARMUP_RATIO, ge=0, lt=1)
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="warm-up of so many steps, in place of warmup_ratio; a shorter stage ends within it",
    )
    warmup_start_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="lr of the first warm-up step as a share of lr (LAVIS: warmup_lr); 0: lr over its steps",
    )
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    epochs: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("give exactly one of epochs and max_steps")
        return self

    @model_validator(mode="after")
    def _one_warmup(self) -> ScheduleConfig:
        if self.warmup_steps is not None and self.warmup_ratio != _WARMUP_RATIO:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio} both say how long "
                "the warm-up is: give one of them (null takes away what a base config says)"
            )
        return self


class CheckpointConfig(Section):
    every_steps: int | None = Field(default=None, ge=1, description="none: only at the end of the stage")
    keep: int = Field(default=2, ge=1, description="older checkpoints of the stage are removed")


class KernelConfig(Section):
    """Other kernels for the LLM's layers. They change results within rounding."""

    compile: bool = Field(
        default=False, description="torch.compile; the first steps are slow; needs a C++ compiler"
    )
    liger: bool = Field(default=False, description="Liger's Triton kernels; GPU only")

    @model_validator(mode="after")
    def _one_of_both(self) -> KernelConfig:
        if self.compile and self.liger:
            raise ValueError(
                "compile and liger fuse the same operations (norms, rotary positions, gated MLP): take one"
            )
        return self


class StageConfig(Section):
    train: dict[Group, GroupConfig] = Field(min_length=1)
    data: DataConfig
    template: Component
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig
    engine: Component = Component(name="torch")
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    kernels: KernelConfig = KernelConfig()
    feature_cache: Literal[False, "bf16", "fp8"] = Field(
        default=False, description="keep a frozen encoder's features on disk, as what; true is bf16"
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: StageEvaluationConfig | None = Field(
        default=None, description="held-out measures while the stage trains; none: only after training"
    )

    @property
    def kind(self) -> Literal["caption", "contrastive"]:
        """What the loss is of: a stage that trains a text tower is contrastive."""
        return "contrastive" if "text_tower" in self.train else "caption"

    @field_validator("feature_cache", mode="before")
    @classmethod
    def _true_is_bf16(cls, value: object) -> object:
        return "bf16" if value is True else value

    @model_validator(mode="after")
    def _samples_fit_a_row(self) -> StageConfig:
        if 0 < self.batch.row_tokens < self.data.max_tokens:
            raise ValueError(
                f"data.max_tokens={self.data.max_tokens} is more than "
                f"batch.row_tokens={self.batch.row_tokens}: a sample must fit into one row. "
                "Raise row_tokens or lower max_tokens."
            )
        return self

    @model_validator(mode="after")
    def _items_fill_a_step(self) -> StageConfig:
        counts = self.data.per_step
        if counts is None:
            return self
        if sum(counts) != self.batch.samples_per_step:
            raise ValueError(
                f"data.mix: per_step is {' + '.join(map(str, counts))} = {sum(counts)} samples, and "
                f"batch.samples_per_step={self.batch.samples_per_step}: make them equal"
            )
        if self.schedule.max_steps is None:
            raise ValueError(
                "data.mix: with per_step every item has a length of its own and there is no epoch of all: "
                f"give schedule.max_steps in place of epochs={self.schedule.epochs}"
            )
        if self.batch.grouping != "none":
            raise ValueError(
                f"batch.grouping={self.batch.grouping} chooses the samples of a step, and so does per_step: "
                "take one"
            )
        return self

    @model_validator(mode="after")
    def _tiles_of_a_picture_fit(self) -> StageConfig:
        tiles = 1 + max((rows * columns for rows, columns in self.data.grids), default=0)
        if tiles > self.batch.images_per_micro_batch:
            raise ValueError(
                f"batch.images_per_micro_batch={self.batch.images_per_micro_batch}: with data.geometry: "
                f"anyres a picture has up to {tiles} tiles, the overview included. Raise it, or lower "
                "data.max_tiles."
            )
        return self

    @model_validator(mode="after")
    def _8bit_stays_on_the_gpu(self) -> StageConfig:
        if self.optimizer.name == "adamw_8bit" and self.engine.options.get("offload_optimizer"):
            raise ValueError(
                "optimizer.name: adamw_8bit steps on the GPU, engine.offload_optimizer on the CPU: take one"
            )
        return self

    @model_validator(mode="after")
    def _adapters_fit_group_and_engine(self) -> StageConfig:
        sharded = self.engine.options.get("zero_stage") == 3
        for group, config in self.train.items():
            lora = config.lora
            if lora and lora.quantize and group != "llm":
                raise ValueError(f"train.{group}.lora.quantize: only the llm can be quantized")
            # both read weights outside of their layer's own call, when ZeRO-3 holds a part of them alone
            if lora and sharded and (lora.dora or lora.quantize):
                key = "dora" if lora.dora else "quantize"
                raise ValueError(f"train.{group}.lora.{key} does not work with zero_stage: 3; take 2 or less")
        return self

    @model_validator(mode="after")
    def _cache_needs_frozen_encoder(self) -> StageConfig:
        if self.feature_cache and "vision_encoder" in self.train:
            raise ValueError("feature_cache needs a frozen vision encoder: take vision_encoder out of train")
        return self

    @model_validator(mode="after")
    def _contrastive_is_of_pairs(self) -> StageConfig:
        for group, config in self.train.items():
            if config.sizes is not None and group != "text_tower":
                raise ValueError(f"train.{group}.sizes: only the text_tower has sizes")
        if self.kind == "contrastive":
            wrong = next(self._against_contrast(), None)
            if wrong is not None:
                raise ValueError(f"{wrong} (a stage that trains text_tower is contrastive)")
        return self

    def _against_contrast(self) -> Iterator[str]:
        """What of the stage cannot be, given that it is contrastive, and the remedy."""
        batch, tower = self.batch, self.train["text_tower"]
        if self.train.keys() != {"vision_encoder", "text_tower"}:
            yield f"train has {', '.join(self.train)}: give it vision_encoder and text_tower alone"
        if tower.lora is not None or tower.only is not None:
            yield "train.text_tower starts at random: it trains whole, without lora and only"
        if self.train["vision_encoder"].lora is not None:
            yield "train.vision_encoder.lora: the pooling head reads weights past adapters: leave lora out"
        if self.data.geometry == "anyres":
            yield "data.geometry: anyres makes several tiles of a picture: take resize, center_crop or pad"
        if batch.packing:
            yield "batch.packing must be false: rows_per_micro_batch is then the number of pairs compared"
        if batch.images_per_micro_batch < batch.rows_per_micro_batch:
            yield (
                f"batch.images_per_micro_batch={batch.images_per_micro_batch} is less than "
                f"batch.rows_per_micro_batch={batch.rows_per_micro_batch}: raise it to compare as many pairs"
            )
        longest = (tower.sizes or TextTowerConfig()).max_text_tokens
        if self.data.max_tokens > longest:
            yield (
                f"data.max_tokens={self.data.max_tokens} is more than "
                f"train.text_tower.sizes.max_text_tokens={longest}: lower it, or raise that"
            )
        if self.engine.name == "deepspeed":
            yield "engine.name: deepspeed is not supported: take torch, under torchrun for several processes"
        if self.evaluate is not None:
            yield "evaluate asks for captions, and the stage learns none: leave it out"
