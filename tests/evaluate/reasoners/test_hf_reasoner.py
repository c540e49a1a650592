"""A local LLM: batches say what single prompts say, and texts end where the model ends them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from reasoner_context import context
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaModel

from prismcap.configs.cache import cache_dir
from prismcap.configs.errors import ConfigError
from prismcap.evaluate import local_models
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.local_models import folder_hash, local_device
from prismcap.evaluate.reasoners import _generation, hf
from prismcap.evaluate.reasoners._contract import ReasonRequest

SMOLLM2 = "cache:models/smollm2-135m-instruct"
TASK = "You are required to answer.\n\nDescription: "
PROMPTS = [f"{TASK}{'a cat and ' * (i % 5)}{i} dogs.\nWhat is there?" for i in range(14)]


def ask(
    path: Path | str, prompts: Sequence[str], options: dict[str, Any] | None = None, **c: Any
) -> list[Answer]:
    reasoner = hf.build(hf.Options(path=str(path), **(options or {})), context(**c))
    answers = dict(reasoner.answer([ReasonRequest(prompt) for prompt in prompts]))
    return [answers[i] for i in range(len(prompts))]


def reference(path: Path, prompt: str, limit: int = 12) -> tuple[list[int], str, int]:
    """transformers alone, step by step without a cache: (token ids, finish_reason, length of the prompt)."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    ends = {*model.generation_config.eos_token_id, tokenizer.eos_token_id}
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    start = len(ids)
    while len(ids) < start + limit:
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            return ids[start:], "stop", start
        ids = [*ids, token]
    return ids[start:], "length", start


@pytest.mark.parametrize("batch_size", [1, 4, 14])
def test_batched_equals_one_by_one(tiny_llm: Path, batch_size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    answers = ask(tiny_llm, PROMPTS, batch_size=batch_size)
    reasons = set()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids, reason, start = reference(tiny_llm, prompt)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer.finish_reason == reason and answer.cut_off == (reason == "length")
        assert answer.tokens_in == start
        assert answer.tokens_out == len(ids) + (reason == "stop")
        assert answer.status == ("ok" if answer.text else "failed")
        reasons.add(reason)
    assert reasons == {"stop", "length"}, "both kinds of end are among them"


def test_what_prompts_share_is_computed_once_and_changes_nothing(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[int, int]] = []
    forward = LlamaModel.forward

    def noted(self: Any, input_ids: Any = None, **rest: Any) -> Any:
        computed.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(LlamaModel, "forward", noted)
    together = ask(tiny_llm, PROMPTS, batch_size=14)
    (rows, shared), (all_rows, rest) = computed[:2]
    assert (rows, all_rows) == (1, 14) and shared > len(TASK), "bytes are tokens here"
    assert shared + rest == max(answer.tokens_in or 0 for answer in together)
    monkeypatch.setattr(_generation, "MIN_SHARED_TOKENS", 10**6)
    computed.clear()
    assert [a.text for a in ask(tiny_llm, PROMPTS, batch_size=14)] == [a.text for a in together]
    assert computed[0] == (14, shared + rest)


def test_a_window_of_attention_sees_no_padding(save_model: Any) -> None:
    # of the shortest the window reaches well into what all share
    prompts = [f"{TASK}{'a cat and ' * i}?" for i in range(6)]
    folder = save_model(model_type="mistral", sliding_window=24)
    together = [answer.text for answer in ask(folder, prompts, batch_size=6)]
    assert together == [answer.text for answer in ask(folder, prompts, batch_size=1)]
    wide = save_model(model_type="mistral", sliding_window=None)
    assert together != [answer.text for answer in ask(wide, prompts)], "the window is at work"


def test_equal_prompts_are_generated_once(tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = _generation.TextModel._run
    monkeypatch.setattr(
        _generation.TextModel, "_run", lambda self, batch, *a: rows.append(len(batch)) or run(self, batch, *a)
    )
    answers = ask(tiny_llm, [PROMPTS[0]] * 5 + [PROMPTS[1]])
    assert sum(rows) == 2
    assert len({answer.text for answer in answers[:5]}) == 1 and answers[0].text != answers[5].text


def test_answers_come_batch_by_batch_and_nothing_loads_before(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    load = hf.load_pretrained
    monkeypatch.setattr(hf, "load_pretrained", lambda *a, **k: loads.append(1) or load(*a, **k))
    batches: list[int] = []
    run = _generation.TextModel._run
    monkeypatch.setattr(_generation.TextModel, "_run", lambda self, *a: batches.append(1) or run(self, *a))
    reasoner = hf.build(hf.Options(path=str(tiny_llm)), context())
    assert reasoner.identity and list(reasoner.answer([])) == [] and not loads
    answers = reasoner.answer([ReasonRequest(prompt) for prompt in PROMPTS])
    next(answers)
    assert len(batches) == 1 and loads == [1]
    assert len(list(answers)) == len(PROMPTS) - 1
    list(reasoner.answer([ReasonRequest("again")]))
    assert loads == [1]


def test_a_prompt_without_room_fails_and_the_last_positions_are_used(save_model: Any) -> None:
    folder = save_model(template=None, max_position_embeddings=40)
    prompts = ["x" * 10, "y" * 35, "z" * 45, "w" * 36, ""]
    answers = ask(folder, prompts)
    assert answers[2].status == "failed" and "45 tokens" in (answers[2].error or "")
    assert answers[4].status == "failed"
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer.tokens_in is not None:
            assert answer.tokens_in == len(prompt)  # plain text: no template, and a byte is a token
            assert answer.tokens_in + (answer.tokens_out or 0) <= 40
            (alone,) = ask(folder, [prompt], batch_size=1)
            assert (alone.text, alone.finish_reason) == (answer.text, answer.finish_reason)


def test_decoding_is_obeyed(tiny_llm: Path) -> None:
    few = ask(tiny_llm, PROMPTS, max_new_tokens=3)
    assert max(answer.tokens_out or 0 for answer in few) == 3
    beams = [ask(tiny_llm, PROMPTS[:6], num_beams=3, batch_size=size) for size in (1, 6)]
    assert [a.text for a in beams[0]] == [a.text for a in beams[1]]
    sampled = {seed: [a.text for a in ask(tiny_llm, PROMPTS, temperature=1.5, seed=seed)] for seed in (1, 2)}
    assert sampled[1] == [a.text for a in ask(tiny_llm, PROMPTS, temperature=1.5, seed=1)] != sampled[2]
    without = ask(tiny_llm, PROMPTS[:1], thinking_tokens=0)
    assert without[0].tokens_in == (ask(tiny_llm, PROMPTS[:1])[0].tokens_in or 0) + len("<think></think>")
    longer = ask(tiny_llm, PROMPTS, thinking_tokens=20)
    assert 12 < max(answer.tokens_out or 0 for answer in longer) <= 32


def test_the_identity_follows_what_decides_the_text(
    tiny_llm: Path, save_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(path: Path, seed: int = 0, temperature: float = 0.0, **options: Any) -> str:
        reasoner = hf.build(
            hf.Options(path=str(path), **options), context(seed=seed, temperature=temperature)
        )
        return reasoner.identity

    one = identity(tiny_llm)
    assert one == identity(tiny_llm, seed=5), "greedy texts know no seed"
    others = {
        identity(save_model(seed=1)),
        identity(save_model(template=None)),
        identity(tiny_llm, dtype="bfloat16"),
        identity(tiny_llm, system="Be brief."),
        identity(tiny_llm, seed=5, temperature=1.0),
        identity(tiny_llm, seed=6, temperature=1.0),
    }
    assert len(others) == 6 and one not in others

    read: list[Path] = []
    file_hash = local_models._file_hash
    monkeypatch.setattr(local_models, "_file_hash", lambda path: read.append(path) or file_hash(path))
    copy = save_model()
    before = folder_hash(copy)
    assert read and before == folder_hash(tiny_llm)
    read.clear()
    assert folder_hash(copy) == before and not read, "remembered"
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    os.utime(weights, ns=(1, 1))
    assert folder_hash(copy) != before and read == [weights.resolve()]


def test_what_cannot_be_loaded_is_named(tmp_path: Path, save_model: Any) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        hf.build(hf.Options(path=str(tmp_path / "no")), context())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty"):
        ask(tmp_path / "empty", ["x"])
    with pytest.raises(ConfigError, match="chat template"):
        ask(save_model(template=None), ["x"], {"system": "Be brief."})
    with pytest.raises(ConfigError, match="device"):
        local_device("quantum")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="0 GPU"):
            local_device("cuda")


@pytest.mark.slow
def test_smollm2_answers_alike_alone_and_in_a_batch() -> None:
    if not (cache_dir() / "models/smollm2-135m-instruct/tokenizer.json").is_file():
        pytest.skip("SmolLM2 is not fetched: prismcap fetch")
    prompts = [PROMPTS[0], PROMPTS[3], "Say yes."]
    together = ask(SMOLLM2, prompts, max_new_tokens=8)
    alone = ask(SMOLLM2, prompts, max_new_tokens=8, batch_size=1)
    assert [(a.text, a.tokens_in, a.tokens_out) for a in together] == [
        (a.text, a.tokens_in, a.tokens_out) for a in alone
    ]
    assert all(answer.status == "ok" for answer in together)
