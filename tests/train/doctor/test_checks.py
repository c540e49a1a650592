"""Each check says ok of a run that is fine, and error with a remedy when its fault is planted."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prismcap.configs.schema.run import RunConfig
from prismcap.data.mix import Mix
from prismcap.data.schema import IGNORE_INDEX, Encoded, Message, Sample, TextPart
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.trainable import prepare_stage
from prismcap.train.distributed import Ranks
from prismcap.train.doctor import memory as memory_checks
from prismcap.train.doctor.agreement import check_agreement, config_hash, data_hash, require_agreement
from prismcap.train.doctor.disk import StageSize, check_disk, run_bytes
from prismcap.train.doctor.findings import DoctorError, Finding, errors
from prismcap.train.doctor.memory import check_estimate, try_largest
from prismcap.train.doctor.samples import Drawn, check_samples, draw_samples, mask_problem, show
from prismcap.train.doctor.saving import check_reload
from prismcap.train.doctor.trained import check_groups, check_learning
from prismcap.train.plan.memory import Memory
from prismcap.train.plan.static import StaticBytes
from prismcap.train.plan.worst_case import worst_batch
from prismcap.train.run import build_engine, run_training, stage_data

Make = Callable[..., RunConfig]


@dataclass
class Ready:
    """A stage of the tiny run, as it stands before its first step."""

    config: RunConfig
    name: str
    captioner: Captioner
    drawn: Drawn
    encoder: Any
    mix: Mix

    @property
    def stage(self) -> Any:
        return self.config.stages[self.name]


@pytest.fixture
def ready(make_config: Make) -> Callable[..., Ready]:
    def make(name: str = "instruct", *overrides: str) -> Ready:
        config = make_config(*overrides)
        captioner = build_captioner(config.model, seed=config.seed)
        prepare_stage(captioner, config.stages[name].train, seed=config.seed)
        mix, encoder, images = stage_data(config, name, captioner)
        return Ready(config, name, captioner, draw_samples(mix, encoder, images), encoder, mix)

    return make


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_run_that_is_fine(ready: Callable[..., Ready], stage: str) -> None:
    it = ready(stage)
    assert len(it.drawn.samples) == 3
    assert levels(check_samples(stage, it.drawn, it.encoder)) == {"ok"}
    assert levels(check_groups(stage, it.captioner, it.stage)) == {"ok"}
    before = {name: value.clone() for name, value in it.captioner.named_parameters()}
    findings = check_learning(stage, it.captioner, it.drawn.batch, it.stage)
    assert not errors(findings)
    assert len(findings) == 1 + len(it.stage.train)
    for name, value in it.captioner.named_parameters():
        assert torch.equal(value, before[name]) and value.grad is None


def test_supervised_text_is_marked(ready: Callable[..., Ready]) -> None:
    it = ready()
    sample, encoded = it.drawn.samples[0]
    (answer,) = (message.text() for message in sample.messages if message.role == "assistant")
    plain, coloured = (show(encoded, it.encoder, colour) for colour in (False, True))
    assert f"⟦{answer}<|im_end|>⟧" in plain and "\x1b" not in plain
    assert f"\x1b[32m{answer}<|im_end|>\x1b[0m" in coloured and "⟦" not in coloured
    assert plain.count("⟦") == 1 and "Say it." in plain.partition("⟦")[0]


def shifted(encoded: Encoded, by: int) -> Encoded:
    """A mask that is off by some tokens, as when it was found by searching."""
    trained = (encoded.labels != IGNORE_INDEX).roll(by)
    return replace(encoded, labels=torch.where(trained, encoded.input_ids, IGNORE_INDEX))


@pytest.mark.parametrize("by", [-1, 2, -8])
def test_a_shifted_mask_is_an_error(ready: Callable[..., Ready], by: int) -> None:
    it = ready()
    wrong = tuple((sample, shifted(encoded, by)) for sample, encoded in it.drawn.samples)
    assert all(mask_problem(*item, it.encoder) for item in wrong)
    (finding,) = check_samples("instruct", replace(it.drawn, samples=wrong), it.encoder)
    assert finding.level == "error" and "data inspect" in finding.remedy


def test_a_mask_over_the_question_is_an_error(ready: Callable[..., Ready]) -> None:
    it = ready()
    sample, encoded = it.drawn.samples[0]
    question = Message("user", (TextPart("What is the colour of the bird?"),))
    text = "What is the colour of the bird?" + next(m.text() for m in sample.messages if m.train)
    ids = torch.tensor(it.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
    everything = replace(encoded, input_ids=ids, labels=ids, spans=(), images=())
    asked = replace(sample, messages=(question, *(m for m in sample.messages if m.train)))
    problem = mask_problem(asked, everything, it.encoder)
    assert problem is not None and "does not say" in problem


def test_no_usable_sample_is_an_error(ready: Callable[..., Ready]) -> None:
    it = ready()
    (finding,) = check_samples("instruct", Drawn((), ("too_long: x",) * 4, it.drawn.batch), it.encoder)
    assert finding.level == "error" and "too_long" in finding.what


def test_weights_that_should_be_frozen_are_an_error(ready: Callable[..., Ready]) -> None:
    it = ready("align")
    next(it.captioner.llm.parameters()).requires_grad_(True)
    (finding,) = errors(check_groups("align", it.captioner, it.stage))
    assert "llm" in finding.what and "frozen" in finding.remedy
    it.captioner.requires_grad_(False)
    (finding,) = errors(check_groups("align", it.captioner, it.stage))
    assert "connector" in finding.what


def test_with_lora_the_base_is_frozen(ready: Callable[..., Ready]) -> None:
    it = ready()
    it.captioner.llm.get_input_embeddings().requires_grad_(True)
    (finding,) = errors(check_groups("instruct", it.captioner, it.stage))
    assert "no adapter" in finding.what


def test_a_gradient_that_does_not_arrive_is_an_error(
    ready: Callable[..., Ready], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = ready()
    forward = it.captioner.connector.forward
    monkeypatch.setattr(it.captioner.connector, "forward", lambda features: forward(features).detach())
    findings = errors(check_learning("instruct", it.captioner, it.drawn.batch, it.stage))
    assert len(findings) == 1 and "connector" in findings[0].what


def test_a_group_that_learns_nothing_is_an_error(
    ready: Callable[..., Ready], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = ready()
    forward = it.captioner.connector.forward
    monkeypatch.setattr(it.captioner.connector, "forward", lambda features: 0.0 * forward(features))
    (finding,) = errors(check_learning("instruct", it.captioner, it.drawn.batch, it.stage))
    assert "connector" in finding.what and "learns nothing" in finding.remedy


def test_a_loss_that_cannot_be_is_told(ready: Callable[..., Ready]) -> None:
    it = ready()
    with torch.no_grad():
        it.captioner.llm.get_output_embeddings().weight.mul_(1000)
    assert "warning" in levels(check_learning("instruct", it.captioner, it.drawn.batch, it.stage))
    with torch.no_grad():
        it.captioner.llm.get_output_embeddings().weight.fill_(float("nan"))
    assert errors(check_learning("instruct", it.captioner, it.drawn.batch, it.stage))
    masked = replace(it.drawn.batch, labels=torch.full_like(it.drawn.batch.labels, IGNORE_INDEX))
    assert (
        "Nothing is learned" in errors(check_learning("instruct", it.captioner, masked, it.stage))[0].remedy
    )


@dataclass(frozen=True)
class FakeRanks(Ranks):
    """Ranks whose other members say `others`."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def test_ranks_of_another_config_are_an_error(make_config: Make) -> None:
    mine, other = config_hash(make_config()), config_hash(make_config("seed=4"))
    assert mine == config_hash(make_config()) != other
    assert check_agreement("config", mine, FakeRanks(world_size=3, others=(mine, mine))).level == "ok"
    ranks = FakeRanks(world_size=3, others=(mine, other))
    finding = check_agreement("config", mine, ranks)
    assert finding.level == "error" and "rank 2" in finding.what and finding.remedy
    with pytest.raises(DoctorError, match="differs between ranks"):
        require_agreement("config", lambda: mine, ranks)


@dataclass(frozen=True)
class ListSource:
    rows: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        message = Message("assistant", (TextPart(self.rows[index]),), train=True)
        return Sample(str(index), (), (message,), "list")


def test_other_data_has_another_hash() -> None:
    rows = tuple("abcdefgh")
    hashes = [
        data_hash(Mix(((ListSource(rows), 1),), seed=0)),
        data_hash(Mix(((ListSource(rows[:-1]), 1),), seed=0)),
        data_hash(Mix(((ListSource((*rows[:-1], "x")), 1),), seed=0)),
        data_hash(Mix(((ListSource(rows), 2),), seed=0)),
        data_hash(Mix(((ListSource(rows * 50), 1),), seed=0)),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == data_hash(Mix(((ListSource(rows), 1),), seed=1))


def test_disk_is_counted_as_it_will_be_used(make_config: Make) -> None:
    """Against the folder of a finished run: the dry export is the largest thing that is there for a while."""
    config = make_config("stages.instruct.checkpoint.keep=2", "stages.align.checkpoint.every_steps=1")
    run_dir = run_training(config)
    sizes, weights = {}, 0
    for name, stage in config.stages.items():
        captioner = build_captioner(config.model, seed=config.seed)
        prepare_stage(captioner, stage.train, seed=config.seed)
        parameters = list(captioner.parameters())
        weights = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        sizes[name] = StageSize(trained, stage.schedule.max_steps or 0)
    files = [path for path in run_dir.rglob("*.safetensors")]
    tensors = sum(path.stat().st_size for path in files)
    besides = max(weights * 4, *(12 * size.trained for size in sizes.values()))
    # headers of files and step counters are small change beside tensors of real models
    assert run_bytes(config, sizes, weights) - besides == pytest.approx(tensors, rel=0.2)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check_disk(tmp_path, free // 2).level == "ok"
    finding = check_disk(tmp_path, free * 2)
    assert finding.level == "error" and "output_dir" in finding.remedy
    assert check_disk(tmp_path, free * 2, used_bytes=free * 2).level == "ok"


def test_memory_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(StaticBytes(10**9, 10**8, 10**8, 0), Counter(activations=8 * 10**8))
    for free, level in ((2 * 10**9, "ok"), (105 * 10**7, "warning"), (9 * 10**8, "error")):
        monkeypatch.setattr(memory_checks, "free_bytes", lambda _, free=free: free)
        assert check_estimate("align", memory, Ranks()).level == level


def test_a_batch_that_does_not_fit_is_an_error(ready: Callable[..., Ready]) -> None:
    it = ready()
    batch = worst_batch(it.captioner, it.stage)

    def take() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    finding = try_largest("instruct", take, batch)
    assert finding.level == "error" and "rows_per_micro_batch" in finding.remedy
    # a real one, of the CPU's allocator
    assert try_largest("instruct", lambda: torch.empty(2**56), batch).level == "error"
    with pytest.raises(RuntimeError, match="something else"):
        try_largest("instruct", lambda: (_ for _ in ()).throw(RuntimeError("something else")), batch)


def test_a_checkpoint_comes_back(ready: Callable[..., Ready], monkeypatch: pytest.MonkeyPatch) -> None:
    it = ready()
    engine: Any = build_engine(it.config, it.name, it.captioner, 7, Ranks())
    engine.train_step([it.drawn.batch])
    before = {key: value.clone() for key, value in engine.gathered_state().items()}
    finding = check_reload(it.config, it.name, engine, it.drawn.batch, Ranks())
    assert finding.level == "ok", finding
    assert engine.step == 1
    assert all(torch.equal(value, before[key]) for key, value in engine.gathered_state().items())
    run_dir = Path(it.config.output_dir) / it.config.name
    assert list(run_dir.iterdir()) == []
    # a load that leaves the weights as they are
    monkeypatch.setattr(engine, "load", lambda _: setattr(engine, "step", 1))
    finding = check_reload(it.config, it.name, engine, it.drawn.batch, Ranks())
    assert finding.level == "error" and "tensors differ" in finding.what
