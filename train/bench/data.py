"""`bench data`: how fast a config's loader gives steps, and whether a training step would wait for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from prismcap.configs.schema.run import RunConfig
from prismcap.data.loader import StepLoader
from prismcap.model.build import build_captioner
from prismcap.train.bench.table import spread
from prismcap.train.distributed import Ranks
from prismcap.train.run import stage_loader
from prismcap.train.settle import settle


@dataclass(frozen=True)
class LoaderFigures:
    """One value a repeat, each over the same steps. samples_per_s: as fast as the loader can. wait_shares: of
    the time of steps that compute for step_time_s and then ask for the next one. The first step, for which
    every loader waits, is left out."""

    num_steps: int
    num_samples: int
    num_workers: int
    samples_per_s: tuple[float, ...]
    tokens_per_s: tuple[float, ...]
    padding_share: float
    step_time_s: float
    wait_shares: tuple[float, ...]


def measure(
    config: RunConfig, stage: str, num_steps: int, step_time_s: float, repeats: int = 3
) -> LoaderFigures:
    """The loader of one stage, alone and then behind a training step that does nothing but take its time,
    `repeats` times in turn.

    Raises ConfigError and DataError as training would.
    """
    ranks = Ranks()
    config = settle(config, ranks)
    captioner = build_captioner(config.model, seed=config.seed)
    loader = replace(stage_loader(config, stage, captioner, ranks), num_steps=num_steps + 1)
    times_s, wait_shares = [], []
    samples = tokens = positions = 0
    for _ in range(repeats):
        time_s, samples, tokens, positions = _as_fast_as_it_can(loader)
        times_s.append(time_s)
        wait_shares.append(_wait_share(loader, step_time_s))
    return LoaderFigures(
        num_steps=num_steps,
        num_samples=samples,
        num_workers=loader.num_workers,
        samples_per_s=tuple(samples / time_s for time_s in times_s),
        tokens_per_s=tuple(tokens / time_s for time_s in times_s),
        padding_share=1 - tokens / positions if positions else 0.0,
        step_time_s=step_time_s,
        wait_shares=tuple(wait_shares),
    )


def _as_fast_as_it_can(loader: StepLoader) -> tuple[float, int, int, int]:
    """Seconds, samples, tokens and positions of all steps after the first."""
    samples = tokens = positions = 0
    steps = iter(loader)
    next(steps)
    started_s = time.perf_counter()
    for step in steps:
        samples += len(step.sample_ids)
        tokens += sum(batch.num_tokens for batch in step.micro_batches)
        positions += sum(batch.input_ids.numel() for batch in step.micro_batches)
    return time.perf_counter() - started_s, samples, tokens, positions


def _wait_share(loader: StepLoader, step_time_s: float) -> float:
    waited_s = 0.0
    steps = iter(loader)
    next(steps)
    started_s = time.perf_counter()
    for _ in range(loader.num_steps - 1):
        time.sleep(step_time_s)
        asked_s = time.perf_counter()
        next(steps)
        waited_s += time.perf_counter() - asked_s
    return waited_s / (time.perf_counter() - started_s)


def report(title: str, figures: LoaderFigures) -> str:
    """What `bench data` prints."""
    return "\n".join(
        [
            f"{title} · {figures.num_workers} workers · {figures.num_steps} steps · "
            f"median (lowest .. highest) of {len(figures.wait_shares)} repeats",
            f"{spread(figures.samples_per_s, 1)} samples/s, {spread(figures.tokens_per_s, 0)} tokens/s as "
            f"fast as it can; padding {100 * figures.padding_share:.1f} %",
            f"{spread([100 * share for share in figures.wait_shares])} % of the time waiting behind a step "
            f"of {figures.step_time_s:g} s that leaves the processor's cores to the loader, as a GPU's does",
        ]
    )
