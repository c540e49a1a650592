"""Two ranks are one rank, and ZeRO is plain torch: one torchrun for all cases, against one plain process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from plain_steps import FULL, STEPS, distance, equal, run_plain
from torch import Tensor

from prismcap.model.weights import load_weights

ONE_SAMPLE = "stages.instruct.batch.samples_per_step=1"  # the second rank has nothing to do
# three rows for one rank and two for the other, in steps of one modality: the ranks measure lengths together
GROUPED = (
    "stages.instruct.batch.grouping=modality_length",
    "stages.instruct.batch.packing=false",
    "stages.instruct.batch.samples_per_step=5",
)


def zero(stage: int, *overrides: str, **more: Any) -> dict[str, Any]:
    engine = ["stages.instruct.engine.name=deepspeed", f"stages.instruct.engine.zero_stage={stage}"]
    return {"overrides": [*FULL, *engine, *overrides], **more}


# some of them also meet a full disk on the way: ddp writes on rank 0 alone
EQUAL: dict[str, dict[str, Any]] = {
    "ddp": {"overrides": [*FULL], "full_disk": 0},
    "zero2": zero(2, full_disk=1),
    "zero2_reloaded": zero(2, reload=True),
    "zero3": zero(3, full_disk=1),
}
# the doctor has taken a step through the engine, and put everything back, before the first one
LOOKED = {
    "ddp_looked": {"overrides": [*FULL], "look": True},
    "zero2_looked": zero(2, look=True),
    "zero3_looked": zero(3, look=True),
}
MORE_EQUAL = {
    "zero0": zero(0),
    "zero1": zero(1),
    "zero2_offload": zero(2, "stages.instruct.engine.offload_optimizer=true"),
    "zero3_hpz": zero(3, "stages.instruct.engine.hpz_partition_size=2"),
}
# a rank's micro-batches have different numbers of chunks, and other ones than those of the other rank
CHUNKS = 12_000
LORA = "{lr: 0.01, lora: {rank: 2, target_modules: [q_proj, lm_head]}}"
LORA_HEAD = f"stages.instruct.train={{connector: {{lr: 0.005}}, llm: {LORA}}}"
CHUNKED = {
    "ddp_chunked": {"overrides": [*FULL], "chunk_bytes": CHUNKS},
    "zero2_chunked": zero(2, chunk_bytes=CHUNKS),
    "zero3_chunked": zero(3, chunk_bytes=CHUNKS),
}
UNTIED = "model.llm.config.tie_word_embeddings=false"  # a tied head takes no adapter
CHUNKED_LORA = {"zero3_chunked_lora_head": zero(3, LORA_HEAD, UNTIED, chunk_bytes=CHUNKS)}
COMPILED = {"ddp_compiled": {"overrides": [*FULL, "stages.instruct.kernels.compile=true"]}}
IDLE = {"ddp_idle": {"overrides": [*FULL, ONE_SAMPLE]}, "zero2_idle": zero(2, ONE_SAMPLE)}
UNEVEN = {"ddp_grouped": {"overrides": [*FULL, *GROUPED]}, "zero2_grouped": zero(2, *GROUPED)}
# ZeRO-3 gathers the weights of a frozen encoder too, on all ranks at once, whichever of them have pictures
FROZEN = "stages.instruct.train={connector: {lr: 0.005}, llm: {lr: 0.01}}"
TWO_SAMPLES = "stages.instruct.batch.samples_per_step=2"  # in the fifth step the second rank's has no picture
# the LLM's embeddings, frozen and tied to its head, have two names
CONNECTOR = "stages.instruct.train={connector: {lr: 0.005}}"
ALIGN = {"zero2_align": zero(2, CONNECTOR, reload=True)}
NO_PICTURE = {
    "zero3_frozen_text": zero(3, FROZEN, TWO_SAMPLES),
    "ddp_frozen_text": {"overrides": [*FULL, FROZEN, TWO_SAMPLES]},
}
# in the second step no rank has a picture
ALL_TEXT = (*GROUPED, TWO_SAMPLES)
NO_PICTURE_AT_ALL = {
    "ddp_all_text": {"overrides": [*FULL, *ALL_TEXT]},
    "zero3_frozen_all_text": zero(3, FROZEN, *ALL_TEXT),
}
MORE_NO_PICTURE = {
    "zero3_frozen_idle": zero(3, FROZEN, ONE_SAMPLE),
    "zero3_text": zero(3, TWO_SAMPLES),
    "ddp_text": {"overrides": [*FULL, TWO_SAMPLES]},
}
ROUNDED = {"zero2_bf16": zero(2, "stages.instruct.precision=bf16")}
# of which step 2 is bad in some way, or left out as such
BAD: dict[str, dict[str, Any]] = {"zero2": zero(2)}
MORE_BAD = {
    "zero3": zero(3),
    "ddp": {"overrides": [*FULL]},
    "zero0": zero(0),
    "zero1": zero(1),
    "zero1_bf16": zero(1, "stages.instruct.precision=bf16"),
    "zero2_bf16": zero(2, "stages.instruct.precision=bf16"),
    "zero2_offload": zero(2, "stages.instruct.engine.offload_optimizer=true"),
    "zero3_offload": zero(3, "stages.instruct.engine.offload_optimizer=true"),
}
HOW = ("nan_loss", "inf_loss", "inf_gradient", "spike")
MORE_RELOADED = {
    "ddp_reloaded": {"overrides": [*FULL], "reload": True},
    "zero1_reloaded": zero(1, reload=True),
    "zero3_reloaded": zero(3, reload=True),
}
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
    jobs = EQUAL | IDLE | UNEVEN | CHUNKED | CHUNKED_LORA | ROUNDED | FAULTY | ALIGN | LOOKED
    jobs |= NO_PICTURE | NO_PICTURE_AT_ALL
    return run_jobs(jobs | skipping(BAD, ("inf_loss", "inf_gradient")))


def skipping(engines: dict[str, Any], how: tuple[str, ...]) -> dict[str, Any]:
    return {f"{name}_{bad}": {**job, "bad": bad} for name, job in engines.items() for bad in (*how, "pass")}


@pytest.fixture(scope="module")
def plain(world: Path) -> Callable[..., Any]:
    return cache(partial(run_plain, world))


def differs(found: Results, name: str, expected: Any) -> bool:
    values = found.values[name]
    return not equal((values["losses"], values["norms"], found.weights(name), values["accuracies"]), expected)


def test_the_ranks_have_uneven_work(on_two_ranks: Results) -> None:
    values = on_two_ranks.values["zero2"]
    assert sum(first != second for first, second in values["counts"]) >= STEPS - 1, values["counts"]
    assert all(first != second for first, second in on_two_ranks.values["zero2_grouped"]["micro"])
    assert all(second == 0 for _, second in on_two_ranks.values["zero2_idle"]["micro"])


def check_equal(found: Results, name: str, expected: Any) -> None:
    assert not differs(found, name, expected), (name, found.values[name], expected[:2])


@pytest.mark.parametrize("name", EQUAL | CHUNKED)  # the loss in one piece, and in chunks
def test_equal_to_one_plain_process(on_two_ranks: Results, plain: Any, name: str) -> None:
    check_equal(on_two_ranks, name, plain())


@pytest.mark.parametrize("name", LOOKED)
def test_the_doctors_look_leaves_no_trace(on_two_ranks: Results, plain: Any, name: str) -> None:
    assert "the largest micro-batch" in on_two_ranks.values[name]["said"]
    check_equal(on_two_ranks, name, plain())


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [MORE_EQUAL, COMPILED])
def test_the_other_forms_are_equal_too(run_jobs: Callable[..., Results], plain: Any, jobs: Any) -> None:
    results = run_jobs(jobs)
    for name in jobs:
        check_equal(results, name, plain())


@pytest.mark.parametrize("name", CHUNKED_LORA)
def test_a_head_with_lora_runs_in_chunks_under_zero3(on_two_ranks: Results, plain: Any, name: str) -> None:
    check_equal(on_two_ranks, name, plain(LORA_HEAD, UNTIED))


@pytest.mark.parametrize("name", IDLE)
def test_a_rank_without_work_changes_nothing(on_two_ranks: Results, plain: Any, name: str) -> None:
    check_equal(on_two_ranks, name, plain(ONE_SAMPLE))


@pytest.mark.parametrize("name", UNEVEN)
def test_grouped_steps_of_uneven_ranks_are_equal_too(on_two_ranks: Results, plain: Any, name: str) -> None:
    assert plain(*GROUPED)[0] != plain()[0]
    check_equal(on_two_ranks, name, plain(*GROUPED))


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


def check_without_picture(found: Results, name: str, expected: Any) -> None:
    assert [True, False] in found.values[name]["pictures"]
    check_equal(found, name, expected)


@pytest.mark.parametrize("name", NO_PICTURE)
def test_a_rank_without_a_picture(on_two_ranks: Results, plain: Any, name: str) -> None:
    check_without_picture(on_two_ranks, name, plain(FROZEN, TWO_SAMPLES))


@pytest.mark.parametrize("name", NO_PICTURE_AT_ALL)
def test_a_step_of_text_on_every_rank(on_two_ranks: Results, plain: Any, name: str) -> None:
    pictures = on_two_ranks.values[name]["pictures"]
    assert [False, False] in pictures and [True, True] in pictures
    check_equal(on_two_ranks, name, plain(*([FROZEN] if "frozen" in name else []), *ALL_TEXT))


@pytest.mark.slow
def test_a_rank_without_a_picture_runs_the_same_modules(run_jobs: Callable[..., Results], plain: Any) -> None:
    found = run_jobs(MORE_NO_PICTURE)
    check_without_picture(found, "zero3_frozen_idle", plain(FROZEN, ONE_SAMPLE))
    for name in ("zero3_text", "ddp_text"):
        check_without_picture(found, name, plain(TWO_SAMPLES))


def check_skipped(found: Results, engine: str, how: tuple[str, ...]) -> None:
    """Nothing changed in the bad step, nothing of it was left for the later ones, all ranks heard of it."""
    left_out = found.values[f"{engine}_pass"]
    for bad in how:
        name = f"{engine}_{bad}"
        values = found.values[name]
        assert values["unchanged"], name
        (first, _), (error, bad_samples) = values["found"]
        assert first == error, "all ranks raise the same"
        assert error[0] == ("LossSpikeError" if bad == "spike" else "NonFiniteError"), name
        assert ("gradient" in error[1]) == (bad == "inf_gradient"), name
        assert bad_samples and set(bad_samples) <= set(error[2:]), name
        if bad.endswith("_loss"):
            assert error[2:] == bad_samples, "the samples of that micro-batch alone"
        assert (values["losses"], values["norms"]) == (left_out["losses"], left_out["norms"]), name
        weights, expected = found.weights(name), found.weights(f"{engine}_pass")
        assert all(value.equal(expected[key]) for key, value in weights.items()), name


@pytest.mark.parametrize("engine", BAD)
def test_a_bad_step_leaves_no_trace(on_two_ranks: Results, engine: str) -> None:
    check_skipped(on_two_ranks, engine, ("inf_loss", "inf_gradient"))
    assert distance(on_two_ranks.weights(engine), on_two_ranks.weights(f"{engine}_pass")) > 1e-3, (
        "a step is missing"
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", BAD | MORE_BAD)
def test_no_bad_step_leaves_a_trace_in_any_engine(run_jobs: Callable[..., Results], engine: str) -> None:
    check_skipped(run_jobs(skipping({engine: (BAD | MORE_BAD)[engine]}, HOW)), engine, HOW)


def check_reloaded(found: Results, name: str) -> None:
    reloaded, straight = f"{name}_reloaded", name
    for key in ("losses", "norms"):
        assert found.values[reloaded][key] == found.values[straight][key]
    weights, expected = found.weights(reloaded), found.weights(straight)
    assert all(value.equal(expected[key]) for key, value in weights.items())


def test_saved_and_loaded_goes_on_bit_for_bit(on_two_ranks: Results) -> None:
    check_reloaded(on_two_ranks, "zero2")


def test_frozen_tied_embeddings_are_no_obstacle_to_going_on(on_two_ranks: Results, plain: Any) -> None:
    check_equal(on_two_ranks, "zero2_align", plain(CONNECTOR))


@pytest.mark.slow
def test_saved_and_loaded_goes_on_bit_for_bit_in_any_engine(
    run_jobs: Callable[..., Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    # on some CPUs MKL's sums depend on where a tensor lies in memory, unless it is told
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found = run_jobs(MORE_RELOADED | {"zero1": zero(1)} | {name: EQUAL[name] for name in ("ddp", "zero3")})
    for name in ("ddp", "zero1", "zero3"):
        check_reloaded(found, name)


@pytest.mark.parametrize("name", [name for name in EQUAL if "full_disk" in EQUAL[name]])
def test_a_rank_that_cannot_write_ends_the_checkpoint_on_all(on_two_ranks: Results, name: str) -> None:
    values = on_two_ranks.values[name]
    assert all("step-000002: " in error for error in values["errors"]), values["errors"]
    assert values["left"] == ["step-000001"]
    assert values["again"] == ["", ""] and values["whole"] == [1, 2]
