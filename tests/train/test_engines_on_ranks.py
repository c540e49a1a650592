"""Two ranks are one rank, and ZeRO is plain torch: one torchrun for all cases, against one plain process.

Tolerances, fp32 sums taken in another order: losses 2e-6, gradient norms 1e-5, each weight tensor 2e-5
of its norm. AdamW's eps is 1e-3 here: with the default a gradient that is zero but for rounding (the
bias of a key) moves its weight by a whole lr in a direction that rounding decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from prismcap.configs.load import load_config
from prismcap.model.build import build_captioner
from prismcap.model.trainable import prepare_stage
from prismcap.model.weights import load_weights
from prismcap.train.distributed import Ranks
from prismcap.train.run import build_engine, stage_loader

TRAIN = "{connector: {lr: 0.005}, llm: {lr: 0.01, weight_decay: 0.1}, vision_encoder: {lr: 0.01}}"
# some steps are clipped and some are not
CLIP = "stages.instruct.optimizer.clip_norm=5.0"
FULL = (f"stages.instruct.train={TRAIN}", "stages.instruct.optimizer.eps=1e-3", CLIP)
ONE_SAMPLE = "stages.instruct.batch.samples_per_step=1"  # the second rank has nothing to do
# three rows for one rank and two for the other, in steps of one modality: the ranks measure lengths together
GROUPED = (
    "stages.instruct.batch.grouping=modality_length",
    "stages.instruct.batch.packing=false",
    "stages.instruct.batch.samples_per_step=5",
)
STEPS = 5


def zero(stage: int, *overrides: str, **more: Any) -> dict[str, Any]:
    engine = ["stages.instruct.engine.name=deepspeed", f"stages.instruct.engine.zero_stage={stage}"]
    return {"overrides": [*FULL, *engine, *overrides], **more}


EQUAL: dict[str, dict[str, Any]] = {
    "ddp": {"overrides": [*FULL]},
    "zero2": zero(2, reload=True),
    "zero3": zero(3),
}
MORE_EQUAL = {
    "zero0": zero(0),
    "zero1": zero(1),
    "zero2_offload": zero(2, "stages.instruct.engine.offload_optimizer=true"),
}
IDLE = {"ddp_idle": {"overrides": [*FULL, ONE_SAMPLE]}, "zero2_idle": zero(2, ONE_SAMPLE)}
UNEVEN = {"ddp_grouped": {"overrides": [*FULL, *GROUPED]}, "zero2_grouped": zero(2, *GROUPED)}
ROUNDED = {"zero2_bf16": zero(2, "stages.instruct.precision=bf16")}
FAULTY = {
    "ddp_averaging_kept": {"overrides": [*FULL], "fault": "averaging_kept"},
    "ddp_mean_of_means": {"overrides": [*FULL], "fault": "mean_of_means"},
    "zero2_mean_of_means": zero(2, fault="mean_of_means"),
}


class Results:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.values = json.loads((folder / "results.json").read_text())

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_weights(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lengths that are measured are kept there, by this process and the ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISMCAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run_jobs(world: Path, tmp_path_factory: pytest.TempPathFactory, torchrun: Any) -> Callable[..., Results]:
    def run(jobs: dict[str, Any]) -> Results:
        pytest.importorskip("deepspeed")
        folder = tmp_path_factory.mktemp("ranks")
        torchrun(2, "engines_on_ranks.py", str(world / "config.yaml"), str(folder), json.dumps(jobs))
        return Results(folder)

    return run


@pytest.fixture(scope="module")
def on_two_ranks(run_jobs: Callable[..., Results]) -> Results:
    return run_jobs(EQUAL | IDLE | UNEVEN | ROUNDED | FAULTY)


def run_plain(
    world: Path, *overrides: str
) -> tuple[list[float], list[float], dict[str, Tensor], list[float]]:
    config = load_config(world / "config.yaml", [*FULL, *overrides])
    captioner = build_captioner(config.model, seed=config.seed)
    prepare_stage(captioner, config.stages["instruct"].train, seed=config.seed)
    engine = build_engine(config, "instruct", captioner, STEPS, Ranks())
    loader = stage_loader(config, "instruct", captioner, Ranks())
    results = [engine.train_step(loader.load(step).micro_batches) for step in range(STEPS)]
    return (
        [result.loss for result in results],
        [result.grad_norm for result in results],
        engine.gathered_state(),
        [result.accuracy for result in results],
    )


@pytest.fixture(scope="module")
def plain(world: Path) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def get(*overrides: str) -> Any:
        if overrides not in known:
            known[overrides] = run_plain(world, *overrides)
        return known[overrides]

    return get


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of a weight tensor, as a share of its norm."""
    assert first.keys() == second.keys()
    return max(
        float((first[name] - second[name]).norm() / first[name].norm().clamp(min=0.1)) for name in first
    )


def differs(found: Results, name: str, expected: Any) -> bool:
    losses, norms, weights, accuracies = expected
    values = found.values[name]
    return not (
        values["losses"] == pytest.approx(losses, rel=2e-6)
        and values["norms"] == pytest.approx(norms, rel=1e-5)
        and values["accuracies"] == pytest.approx(accuracies)
        and distance(weights, found.weights(name)) < 2e-5
    )


def test_the_ranks_have_uneven_work(on_two_ranks: Results) -> None:
    values = on_two_ranks.values["zero2"]
    assert any(first != second for first, second in values["counts"])
    assert all(first != second for first, second in on_two_ranks.values["zero2_grouped"]["micro"])
    assert all(second == 0 for _, second in on_two_ranks.values["zero2_idle"]["micro"])


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_one_plain_process(on_two_ranks: Results, plain: Any, name: str) -> None:
    assert not differs(on_two_ranks, name, plain()), (on_two_ranks.values[name], plain()[:2])


@pytest.mark.slow
def test_the_other_forms_of_zero_are_equal_too(run_jobs: Callable[..., Results], plain: Any) -> None:
    results = run_jobs(MORE_EQUAL)
    for name in MORE_EQUAL:
        assert not differs(results, name, plain()), (name, results.values[name], plain()[:2])


@pytest.mark.parametrize("name", IDLE)
def test_a_rank_without_work_changes_nothing(on_two_ranks: Results, plain: Any, name: str) -> None:
    assert not differs(on_two_ranks, name, plain(ONE_SAMPLE)), (
        on_two_ranks.values[name],
        plain(ONE_SAMPLE)[:2],
    )


@pytest.mark.parametrize("name", UNEVEN)
def test_grouped_steps_of_uneven_ranks_are_equal_too(on_two_ranks: Results, plain: Any, name: str) -> None:
    losses = plain(*GROUPED)[0]
    assert losses != plain()[0]
    assert not differs(on_two_ranks, name, plain(*GROUPED)), (on_two_ranks.values[name], losses)


@pytest.mark.parametrize("name", FAULTY)
def test_planted_faults_are_seen(on_two_ranks: Results, plain: Any, name: str) -> None:
    assert differs(on_two_ranks, name, plain())
    # and not by the losses' bookkeeping alone: the weights themselves went elsewhere
    assert distance(plain()[2], on_two_ranks.weights(name)) > 1e-3


def test_bf16_weights_keep_fp32_masters(on_two_ranks: Results, plain: Any) -> None:
    losses, _, weights, _ = plain()
    assert on_two_ranks.values["zero2_bf16"]["losses"] == pytest.approx(losses, rel=0.02)
    found = on_two_ranks.weights("zero2_bf16")
    assert found.keys() == weights.keys()
    assert any(not value.equal(value.bfloat16().float()) for value in found.values())


def test_whole_weights_for_evaluation(on_two_ranks: Results) -> None:
    # ZeRO-3's parameters are empty outside of eval_context
    expected = on_two_ranks.values["ddp"]["evaluated"]
    for name in EQUAL:
        assert on_two_ranks.values[name]["evaluated"] == pytest.approx(expected, rel=1e-5)
