"""How long a stage takes: the operations that its samples need, over the rate that the GPUs keep."""

from __future__ import annotations

from dataclasses import dataclass

from prismcap.configs.schema.run import RunConfig
from prismcap.configs.schema.stage import StageConfig
from prismcap.data.length_mixes import LengthMix, load_length_mix
from prismcap.data.length_mixes.published import published_mix, published_set
from prismcap.data.mix import build_mix
from prismcap.data.pairs import stage_encoder
from prismcap.data.schema import DataError, SampleRejected
from prismcap.data.sources._contract import SourceContext
from prismcap.model.captioner import Captioner
from prismcap.train.flops import BatchShape, FlopModel
from prismcap.train.optim import total_steps
from prismcap.train.plan.gpus import Gpu

# the size of most pictures of COCO (height, width): anyres has to assume one where there is only a length mix
USUAL_PICTURE_PX = (480, 640)
# so many samples give the mean within about 2%
NUM_MEASURED = 2000
NUM_READ = 200


@dataclass(frozen=True)
class Lengths:
    """Of samples that stand for a stage's data. tiles: of their pictures. num_samples: of one epoch."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    tiles: tuple[int, ...]
    num_samples: int
    origin: str


@dataclass(frozen=True)
class Duration:
    """num_steps optimiser steps of step_s seconds on num_gpus."""

    num_steps: int
    step_s: float
    num_gpus: int
    flops_per_sample: float

    @property
    def hours(self) -> float:
        return self.num_steps * self.step_s / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.num_gpus


def lengths_of_mix(name: str, captioner: Captioner, stage: StageConfig) -> Lengths:
    """Of a committed length mix (data/length_mixes); with anyres all pictures are USUAL_PICTURE_PX.

    Raises DataError for an unknown name.
    """
    mix = load_length_mix(name)
    return _drawn(mix, captioner, stage, sum(part.rows for part in mix.parts), f"the length mix {name}")


def lengths_of_published(captioner: Captioner, stage: StageConfig) -> Lengths:
    """Of what is estimated for the published sets that the stage's data are, by their names; with anyres all
    pictures are USUAL_PICTURE_PX.

    Raises DataError when one is not known.
    """
    sets = [(published_set(item), item) for item in stage.data.mix]
    mix = published_mix([(known, item.per_step or known.rows * item.repeat) for known, item in sets])
    num_samples = sum(known.rows * item.repeat for known, item in sets)
    names = ", ".join(dict.fromkeys(known.name for known, _ in sets))
    return _drawn(mix, captioner, stage, num_samples, f"lengths estimated for {names}")


def _drawn(
    mix: LengthMix, captioner: Captioner, stage: StageConfig, num_samples: int, origin: str
) -> Lengths:
    spec = captioner.token_spec_of(stage.data)
    tiling = spec.tiling(*USUAL_PICTURE_PX)
    drawn = mix.sample(NUM_MEASURED, spec.tokens_of(tiling), max_tokens=stage.data.max_tokens)
    tiles_each = 1 if tiling is None else tiling.num_tiles
    height, width = USUAL_PICTURE_PX
    assumed = "" if tiling is None else f", pictures of {width} x {height} px assumed"
    limit = stage.data.max_text_tokens
    targets = [item.target_tokens if limit is None else min(item.target_tokens, limit) for item in drawn]
    return Lengths(
        tokens=tuple(
            item.tokens - item.target_tokens + kept for item, kept in zip(drawn, targets, strict=True)
        ),
        targets=tuple(targets),
        tiles=tuple(item.num_images * tiles_each for item in drawn),
        num_samples=num_samples,
        origin=f"{origin}{assumed}",
    )


def lengths_of_data(name: str, config: RunConfig, captioner: Captioner) -> Lengths:
    """Of the stage's own data: the text of some samples is encoded, pictures stay closed (with anyres,
    but for their headers).

    Raises DataError or ConfigError when the data or the tokenizer cannot be had.
    """
    stage, where = config.stages[name], f"stages.{name}"
    if captioner.tokenizer is None:
        raise DataError("the LLM has no tokenizer files")
    mix = build_mix(stage.data, SourceContext(config.seed, stage.data.max_image_pixels), f"{where}.data")
    encoder = stage_encoder(stage, captioner.tokenizer, captioner.token_spec_of(stage.data), where)
    found = []
    for position in range(min(NUM_READ, len(mix))):
        try:
            found.append(encoder.encode(mix.sample_at(position)))
        except SampleRejected:
            continue
    if not found:
        raise DataError(f"{where}.data: none of the first {NUM_READ} samples can be used")
    return Lengths(
        tokens=tuple(len(item) for item in found),
        targets=tuple(item.num_target_tokens for item in found),
        tiles=tuple(item.num_tiles for item in found),
        num_samples=len(mix),
        origin=f"{len(found)} samples of its data",
    )


def flops_per_sample(flops: FlopModel, lengths: Lengths, cached_features: bool = False) -> float:
    """Mean operations that the model needs for a sample, forward and backward; see train/flops.py."""
    shape = BatchShape(
        rows=1,
        row_tokens=sum(lengths.tokens),
        segments=lengths.tokens,
        targets=sum(lengths.targets),
        tiles=sum(lengths.tiles),
        cached_features=cached_features,
    )
    return flops.micro_batch(shape).total_model / len(lengths.tokens)


def duration(
    stage: StageConfig, per_sample: float, lengths: Lengths, gpu: Gpu, num_gpus: int, mfu: float | None = None
) -> Duration:
    """Of a whole stage. The optimiser's own time, loading and saving are within the fitted MFU."""
    steps = total_steps(stage.schedule, lengths.num_samples, stage.batch.samples_per_step)
    rate = num_gpus * gpu.flops_per_s(stage.precision) * (mfu or gpu.mfu)
    return Duration(steps, per_sample * stage.batch.samples_per_step / rate, num_gpus, per_sample)
