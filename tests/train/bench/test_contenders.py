"""Contenders do the same work: the same samples, the same losses, the same weights after a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prismcap.data.schema import IGNORE_INDEX, Encoded
from prismcap.train.bench import llava
from prismcap.train.bench.cases import StageName, TrainCase
from prismcap.train.bench.contender import Contender
from prismcap.train.bench.llava import Llava, LlavaOptions
from prismcap.train.bench.ours import Ours
from prismcap.train.bench.race import BenchError
from prismcap.train.bench.samples import DrawnFeatures, all_samples, features_of
from prismcap.train.bench.train import require_equal

CPU = torch.device("cpu")


def step_of(case: TrainCase, step: int) -> tuple[list[Encoded], DrawnFeatures]:
    size = case.samples_per_step
    samples = all_samples(case)[step * size : (step + 1) * size]
    features = features_of(case)
    features.draw(samples)
    return samples, features


def contenders(case: TrainCase) -> dict[str, Contender]:
    return {
        "ours": Ours(case, CPU),
        "llava": Llava(case, CPU, LlavaOptions(rows=4)),
        "llava, single rows": Llava(case, CPU, LlavaOptions(rows=1)),
        "llava_tuned": Llava(case, CPU, LlavaOptions(rows=3, tuned=True)),
    }


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_all_contenders_train_alike(case: TrainCase, stage: StageName) -> None:
    """The second loss is that of the weights after a step: optimisers and what trains are the same too."""
    case = case.model_copy(update={"stage": stage})
    losses: dict[str, list[float]] = {}
    for name, contender in contenders(case).items():
        losses[name] = [contender.step(*step_of(case, step)).loss for step in (0, 1)]
    first, second = ({name: pair[i] for name, pair in losses.items()} for i in (0, 1))
    require_equal(first)
    require_equal(second)
    assert first["ours"] != pytest.approx(second["ours"], rel=1e-3)


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_step_trains_what_the_stage_says(case: TrainCase, stage: StageName) -> None:
    reference = Llava(case.model_copy(update={"stage": stage}), CPU, LlavaOptions(rows=2))
    before = {name: value.clone() for name, value in reference.model.named_parameters()}
    reference.step(*step_of(case, 0))
    changed = {name for name, value in reference.model.named_parameters() if not value.equal(before[name])}
    assert any("multi_modal_projector" in name for name in changed)
    assert any("language_model" in name for name in changed) is (stage == "instruct")
    assert not any("vision_tower" in name for name in changed)


@pytest.mark.parametrize("fault", ["labels shifted", "picture of another sample", "mean of means"])
def test_unequal_work_is_found(case: TrainCase, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    made = llava.padded

    def faulty(samples: list[Encoded], features: DrawnFeatures, token: int) -> dict[str, Tensor]:
        batch = made(samples, features, token)
        if fault == "labels shifted":
            batch["labels"] = batch["labels"].roll(1, dims=1)
        elif "pixel_values" in batch:
            batch["pixel_values"] = 3 * batch["pixel_values"].flip(1)
        return batch

    reference = Llava(case, CPU, LlavaOptions(rows=2))
    if fault == "mean of means":
        forward = reference.model.forward

        def averaged(**inputs: Any) -> Any:
            output = forward(**{name: one for name, one in inputs.items() if name != "num_items_in_batch"})
            output.loss = output.loss / 3  # of three micro-batches
            return output

        monkeypatch.setattr(reference.model, "forward", averaged)
    else:
        monkeypatch.setattr(llava, "padded", faulty)
    losses = {"ours": Ours(case, CPU).step(*step_of(case, 0)).loss}
    losses["llava"] = reference.step(*step_of(case, 0)).loss
    with pytest.raises(BenchError, match="same loss"):
        require_equal(losses)


def test_padding_keeps_every_sample_whole(case: TrainCase) -> None:
    samples, features = step_of(case, 0)
    batch = llava.padded(samples, features, 511)
    assert batch["input_ids"].shape[1] == max(map(len, samples))
    for row, sample in enumerate(samples):
        size = len(sample)
        assert int(batch["attention_mask"][row].sum()) == size
        assert batch["labels"][row, :size].equal(sample.labels)
        assert bool((batch["labels"][row, size:] == IGNORE_INDEX).all())
        assert int((batch["input_ids"][row] == 511).sum()) == sum(span[2] for span in sample.spans)
    assert len(batch["pixel_values"]) == sum(len(sample.images) for sample in samples) > 0


@pytest.mark.parametrize("tuned", [False, True])
def test_micro_batches_hold_every_sample_once(case: TrainCase, tuned: bool) -> None:
    samples, _ = step_of(case, 0)
    groups = Llava(case, CPU, LlavaOptions(rows=4, tuned=tuned))._groups(samples)
    assert [len(group) for group in groups] == [4, 2]
    assert sorted(sample.id for group in groups for sample in group) == sorted(s.id for s in samples)
    if tuned:
        lengths = [len(sample) for group in groups for sample in group]
        assert lengths == sorted(lengths, reverse=True)


def test_logits_are_kept_where_the_next_token_is_a_target() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100, 7, -100, -100, 8]])
    kept = llava.where_supervised(labels)
    assert kept["logits_to_keep"].nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 3]]
    assert kept["shift_labels"].tolist() == [5, 6, 7, 8]


def test_samples_are_those_of_the_mix(case: TrainCase) -> None:
    from prismcap.data.length_mixes import load_length_mix

    lengths = load_length_mix(case.mix).sample(12, visual_tokens=16, seed=case.seed, max_tokens=256)
    samples = all_samples(case)
    assert [len(sample) for sample in samples] == [length.tokens for length in lengths]
    assert [s.num_target_tokens for s in samples] == [length.target_tokens for length in lengths]
    assert [len(s.images) for s in samples] == [length.num_images for length in lengths]
    again = all_samples(case)
    assert all(first.input_ids.equal(second.input_ids) for first, second in zip(samples, again, strict=True))


def test_a_reference_too_large_for_memory_says_so(case: TrainCase, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Llava(case, CPU, LlavaOptions(rows=4))
    monkeypatch.setattr(llava, "available_mb", lambda: 1.0)
    with pytest.raises(llava.UnfitError, match="4 padded rows"):
        reference.step(*step_of(case, 0))


def test_executed_operations_follow_the_reference(case: TrainCase) -> None:
    """Every logit for (a), the supervised ones for (a+); what is asked for is the same for all."""
    samples, features = step_of(case, 0)
    flops = {name: one.flops(samples, features) for name, one in contenders(case).items()}
    asked = [round(one.total_model) for one in flops.values()]
    assert len(set(asked)) == 1
    heads = {name: one.executed["head"] for name, one in flops.items()}
    supervised = sum(sample.num_target_tokens for sample in samples)
    positions = sum(map(len, samples))
    assert heads["llava, single rows"] / heads["llava_tuned"] == pytest.approx(positions / supervised)
    assert heads["llava"] > heads["llava, single rows"]  # padding has logits too
    assert heads["ours"] == pytest.approx(heads["llava_tuned"])
