"""Texts of a local causal LM in batches, equal to generating one by one.

Shape legend: B prompts, T positions of the longest prompt, G generated positions.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from prismcap.configs.schema.prism import Decoding

MIN_SHARED_TOKENS = 8  # below that computing the shared part apart saves nothing


@dataclass(frozen=True)
class Reply:
    """token_ids: up to the token that ended it, which num_tokens counts. seconds: its part of the batch's."""

    token_ids: tuple[int, ...]
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    seconds: float


class TextModel:
    """A causal LM of transformers and the tokens that end its texts.

    Of its generation config only those are kept: no temperature or repetition penalty of its own.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        self.ends -= {None}
        model.generation_config = GenerationConfig()
        self.model = model.to(device).eval()
        self.device = device
        self.pad_id = next(
            (int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )
        self.max_positions: int | None = getattr(model.config, "max_position_embeddings", None)

    def room(self, num_prompt_tokens: int, wanted: int) -> int:
        """How many tokens of those wanted fit after a prompt; 0 or less: none."""
        return wanted if self.max_positions is None else min(wanted, self.max_positions - num_prompt_tokens)

    def generate(
        self, prompts: Sequence[list[int]], decoding: Decoding, batch_size: int, seed: int = 0
    ) -> Iterator[tuple[int, Reply]]:
        """(position in prompts, reply) of each, batch by batch, prompts of like length together.

        Every prompt must have room. Greedy texts do not depend on the batch; sampled ones depend on the seed
        and the batch's prompts.
        """
        wanted = decoding.max_new_tokens + (decoding.thinking_tokens or 0)

        def size(position: int) -> tuple[int, int]:
            return self.room(len(prompts[position]), wanted), len(prompts[position])

        # the longest first: too large a batch fails at once
        order = sorted(range(len(prompts)), key=size, reverse=True)
        for limit, group in groupby(order, key=lambda position: size(position)[0]):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                positions = alike[start : start + batch_size]
                batch = [prompts[position] for position in positions]
                began = time.monotonic()
                rows = self._run(batch, decoding, limit, seed)
                seconds = (time.monotonic() - began) / len(batch)
                for position, row in zip(positions, rows, strict=True):
                    yield position, self._reply(row[:limit], seconds)

    def _reply(self, row: list[int], seconds: float) -> Reply:
        """Rows run on, padded, until the last of the batch has ended."""
        for position, token in enumerate(row):
            if token in self.ends:
                return Reply(tuple(row[:position]), position + 1, "stop", seconds)
        return Reply(tuple(row), len(row), "length", seconds)

    @torch.no_grad()
    def _run(
        self, prompts: Sequence[list[int]], decoding: Decoding, limit: int, seed: int
    ) -> list[list[int]]:
        shared = self._num_shared(prompts) if decoding.num_beams == 1 else 0
        input_ids_BT, mask_BT = self._padded(prompts, shared)
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=limit,
            num_beams=decoding.num_beams,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad_id,
            use_cache=True,
            **(sampling if decoding.temperature > 0 else {"do_sample": False}),
        )
        known = {"past_key_values": self._shared_cache(prompts[0][:shared], len(prompts))} if shared else {}
        with _seeded(seed, prompts, decoding.temperature > 0):
            sequences_BG = self.model.generate(
                input_ids=input_ids_BT, attention_mask=mask_BT, generation_config=config, **known
            )
        rows: list[list[int]] = sequences_BG[:, input_ids_BT.shape[1] :].tolist()
        return rows

    def _padded(self, prompts: Sequence[list[int]], shared: int) -> tuple[Tensor, Tensor]:
        """Token ids and mask: new tokens follow every prompt at once, and the shared beginnings lie above
        each other, so the padding is between the two. Positions are counted by the mask."""
        length = max(map(len, prompts))
        input_ids_BT = torch.full((len(prompts), length), self.pad_id)
        mask_BT = torch.zeros_like(input_ids_BT)
        for row, prompt in enumerate(prompts):
            rest = shared + length - len(prompt)
            input_ids_BT[row, :shared] = torch.tensor(prompt[:shared], dtype=torch.long)
            input_ids_BT[row, rest:] = torch.tensor(prompt[shared:], dtype=torch.long)
            mask_BT[row, :shared] = 1
            mask_BT[row, rest:] = 1
        return input_ids_BT.to(self.device), mask_BT.to(self.device)

    def _num_shared(self, prompts: Sequence[list[int]]) -> int:
        """How many first tokens are computed once for all prompts of a batch; 0 where it does not pay, or the
        model knows positions other than by their number (padding would be in the way of a window)."""
        # what the first and the last in order begin with, all begin with
        pairs = zip(min(prompts), max(prompts), strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        common = min(common, min(map(len, prompts)) - 1)
        if len(prompts) == 1 or common < MIN_SHARED_TOKENS:
            return 0
        numbered = "position_ids" in inspect.signature(self.model.forward).parameters
        layers = DynamicCache(config=self.model.config).layers
        return common if numbered and all(type(layer) is DynamicLayer for layer in layers) else 0

    def _shared_cache(self, prefix: Sequence[int], num_prompts: int) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        input_ids_1T = torch.tensor([list(prefix)], device=self.device)
        # the body alone: there is no next token to be told
        self.model.base_model(input_ids=input_ids_1T, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(num_prompts)
        return cache


@contextmanager
def _seeded(seed: int, prompts: Sequence[list[int]], sampling: bool) -> Iterator[None]:
    if not sampling:
        yield
        return
    digest = hashlib.sha256(repr((seed, [tuple(prompt) for prompt in prompts])).encode()).digest()
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        yield
