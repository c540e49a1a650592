"""Batched generation gives exactly what generating one by one gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from prismcap.configs.cache import cache_dir
from prismcap.configs.schema.run import ModelConfig
from prismcap.data.schema import IGNORE_INDEX, DataError, Encoded
from prismcap.model import generate as generate_module
from prismcap.model.build import build_captioner
from prismcap.model.captioner import Captioner
from prismcap.model.generate import Generated, generate, stop_ids

MakeConfig = Callable[..., ModelConfig]
MakeSample = Callable[..., Encoded]
TOKENS = 16
NEW = 12


@pytest.fixture
def captioner(model_config: MakeConfig) -> Captioner:
    return build_captioner(model_config())


@pytest.fixture
def prompts(make_sample: MakeSample) -> list[Encoded]:
    shapes = [(1, 3), (0, 9), (2, 1), (1, 30)]
    return [
        make_sample(f"p{i}", images, TOKENS, prompt, 1, seed=i) for i, (images, prompt) in enumerate(shapes)
    ]


def one_by_one(
    captioner: Captioner, prompts: list[Encoded], tiles: torch.Tensor, **options: Any
) -> list[Generated]:
    results, first = [], 0
    for prompt in prompts:
        count = len(prompt.images)
        part = tiles[first : first + count] if count else None
        results += generate(captioner, [prompt], tiles_P3SS=part, **options)
        first += count
    return results


def test_batched_equals_single(captioner: Captioner, prompts: list[Encoded]) -> None:
    tiles = torch.randn(4, 3, 16, 16)
    batched = generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW)
    assert batched == one_by_one(captioner, prompts, tiles, max_new_tokens=NEW)
    assert len({result.token_ids for result in batched}) == 4
    features = captioner.encode_images(tiles).detach()
    assert generate(captioner, prompts, features_PKD=features, max_new_tokens=NEW) == batched
    # guard: the pictures do decide the words
    flipped = generate(captioner, prompts, tiles_P3SS=tiles.flip(0), max_new_tokens=NEW)
    assert flipped != batched and flipped[1] == batched[1]


def test_a_planted_fault_in_the_padding_is_caught(
    captioner: Captioner, prompts: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = torch.randn(4, 3, 16, 16)
    single = one_by_one(captioner, prompts, tiles, max_new_tokens=NEW)
    real = generate_module._left_padded

    def padding_attended(*arguments: Any) -> Any:
        batch = real(*arguments)
        batch.segment_ids = torch.ones_like(batch.segment_ids)
        return batch

    monkeypatch.setattr(generate_module, "_left_padded", padding_attended)
    assert generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW) != single


def test_greedy_is_the_most_likely_token_of_the_training_forward(
    captioner: Captioner, make_sample: MakeSample, pack: Callable[..., Any]
) -> None:
    prompt, tiles = make_sample("p", 1, TOKENS, 4, 1, seed=3), torch.randn(1, 3, 16, 16)
    result = generate(captioner, [prompt], tiles_P3SS=tiles, max_new_tokens=5)[0]
    ids = prompt.input_ids
    for token in result.token_ids:
        labels = torch.full_like(ids, IGNORE_INDEX)
        so_far = Encoded("p", ids, labels, prompt.images, prompt.spans)
        with torch.no_grad():
            assert int(captioner.logits(pack([[so_far]], tiles))[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([token])])


def test_modes_and_defaults_are_as_before(captioner: Captioner, prompts: list[Encoded]) -> None:
    captioner.llm.generation_config = defaults = GenerationConfig(repetition_penalty=50.0, max_length=3)
    captioner.train()
    captioner.enable_gradient_checkpointing()
    modes = [module.training for module in captioner.modules()]
    tiles = torch.randn(4, 3, 16, 16)
    results = generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW)
    assert [module.training for module in captioner.modules()] == modes
    assert captioner.llm.generation_config is defaults
    assert captioner.llm.is_activation_checkpointing
    captioner.llm.generation_config = GenerationConfig()
    captioner.disable_gradient_checkpointing()
    assert generate(captioner.eval(), prompts, tiles_P3SS=tiles, max_new_tokens=NEW) == results


def test_pictures_and_prompts_must_agree(captioner: Captioner, prompts: list[Encoded]) -> None:
    with pytest.raises(DataError, match="3 pictures were given for prompts with 4"):
        generate(captioner, prompts, tiles_P3SS=torch.zeros(3, 3, 16, 16), max_new_tokens=2)
    assert generate(captioner, [], max_new_tokens=2) == []


@pytest.fixture
def tokenizer(tiny_gguf: tuple[Path, Any], tmp_path: Path) -> Any:
    from transformers import AutoTokenizer

    from prismcap.model.llm.gguf import converted

    tokenizer = AutoTokenizer.from_pretrained(converted(tiny_gguf[0], tmp_path / "converted"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return tokenizer


def test_stops(prompts: list[Encoded], tokenizer: Any, model_config: MakeConfig) -> None:
    """Special tokens stop by id, other strings in the text; the batch goes on for the other rows."""
    assert stop_ids(tokenizer, ["<|turn|>", "\n", "USER:"]) == ({0, len(tokenizer) - 1}, ("\n", "USER:"))
    llama = {**model_config().llm.options["config"], "vocab_size": len(tokenizer)}
    captioner = build_captioner(model_config(llm={"name": "random", "config": llama}))
    captioner.tokenizer = tokenizer
    tiles = torch.randn(4, 3, 16, 16)
    free = generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW)
    assert {result.finish_reason for result in free} == {"length"}
    # a string that spans two tokens of a row (random tokens are bytes: not every pair is text)
    row, string = next(
        (row, text)
        for row, result in enumerate(free)
        for i in range(2, NEW - 3)
        if "\ufffd" not in (text := tokenizer.decode(result.token_ids[i : i + 2])) and text in result.text
    )
    stopped = generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW, stop=[string])
    assert stopped[row].finish_reason == "stop"
    assert stopped[row].text == free[row].text[: free[row].text.index(string)]
    assert len(stopped[row].token_ids) < NEW
    for result, without in zip(stopped, free, strict=True):
        assert result.token_ids == without.token_ids[: len(result.token_ids)]
        assert string in without.text or result == without
    assert stopped == one_by_one(captioner, prompts, tiles, max_new_tokens=NEW, stop=[string])


def test_a_special_token_ends_a_row(captioner: Captioner, prompts: list[Encoded], tokenizer: Any) -> None:
    tiles = torch.randn(4, 3, 16, 16)
    free = generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW)
    token = free[2].token_ids[4]
    content = tokenizer.convert_ids_to_tokens(token)
    tokenizer.add_special_tokens({"additional_special_tokens": [content]})
    captioner.tokenizer = tokenizer
    results = generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=NEW, stop=[content])
    for result, without in zip(results, free, strict=True):
        ids = without.token_ids
        cut = min((ids.index(end) for end in (token, 0) if end in ids), default=len(ids))
        assert result.token_ids == ids[:cut]
        assert result.finish_reason == ("stop" if cut < len(ids) else "length")
    assert results[2].finish_reason == "stop"


@pytest.mark.slow
def test_smollm2_batched_equals_single_and_stops(model_config: MakeConfig) -> None:
    folder = cache_dir() / "models/smollm2-135m-instruct"
    captioner = build_captioner(model_config(llm={"name": "causal_lm", "path": str(folder)}))
    tokenizer = captioner.tokenizer
    prompts = []
    for i, question in enumerate(["What is the capital of France?", "Name one colour."]):
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
        prompts.append(Encoded(f"q{i}", ids, torch.full_like(ids, IGNORE_INDEX), (), ()))
    batched = generate(captioner, prompts, max_new_tokens=24, stop=["<|im_end|>"])
    single = [generate(captioner, [prompt], max_new_tokens=24, stop=["<|im_end|>"])[0] for prompt in prompts]
    assert batched == single
    assert "Paris" in batched[0].text and batched[0].finish_reason == "stop"


def test_beams_find_the_most_likely_of_all_texts(captioner: Captioner, prompts: list[Encoded]) -> None:
    """With as many beams as words, two tokens are searched exhaustively: compared with all pairs."""
    tiles = torch.randn(4, 3, 16, 16)
    words = captioner.llm.config.vocab_size
    options: dict[str, Any] = {"max_new_tokens": 2, "num_beams": words}
    found = generate(captioner, prompts, tiles_P3SS=tiles, **options)
    assert found == one_by_one(captioner, prompts, tiles, **options)
    assert found != generate(captioner, prompts, tiles_P3SS=tiles, max_new_tokens=2), "greedy misses one"
    prompt = prompts[1]  # without pictures: all its continuations in one batch
    assert not prompt.images
    rows = torch.cat([prompt.input_ids.expand(words, -1), torch.arange(words)[:, None]], dim=1)
    with torch.no_grad():
        logits = captioner.llm(input_ids=rows).logits.double().log_softmax(-1)
    pairs = logits[0, -2][:, None] + logits[:, -1]
    assert found[1].token_ids == tuple(divmod(int(pairs.argmax()), words))


def test_beams_end_where_greedy_ends(captioner: Captioner, prompts: list[Encoded]) -> None:
    """Sequences that have ended are kept beside those that run on, and nothing follows their end."""

    class Tokenizer:
        eos_token_id, pad_token_id = 5, 5
        all_special_tokens = ()

        def __init__(self) -> None:
            self.added_tokens_decoder: dict[int, Any] = {}

        def decode(self, ids: list[int], **_: Any) -> str:
            return " ".join(map(str, ids))

    captioner.tokenizer = Tokenizer()
    with torch.no_grad():
        captioner.llm.get_output_embeddings().weight[5] *= 3  # an end that comes often
    tiles = torch.randn(4, 3, 16, 16)
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": 4}
    found = generate(captioner, prompts, tiles_P3SS=tiles, **options)
    assert found == one_by_one(captioner, prompts, tiles, **options)
    assert {result.finish_reason for result in found} & {"stop"}
    assert all(5 not in result.token_ids for result in found)
