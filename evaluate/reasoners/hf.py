"""A causal language model of transformers in this process, from a directory or the hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from prismcap.configs.errors import ConfigError
from prismcap.configs.schema.base import Section
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.clients.thoughts import without_thoughts
from prismcap.evaluate.local_models import local_device, model_identity
from prismcap.evaluate.reasoners._contract import ReasonerContext, ReasonRequest
from prismcap.evaluate.reasoners._generation import Reply, TextModel
from prismcap.model.huggingface import load_pretrained, local_or_hub, refuse_unconverted, unreachable

logger = logging.getLogger(__name__)


class Options(Section):
    """dtype: of the weights; auto: as they are saved. system: a first turn before the prompt."""

    path: str = Field(description="directory (or cache:…) or hub name")
    revision: str | None = Field(default=None, description="commit or tag of a hub name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    system: str | None = Field(default=None, description="only with a chat template")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")


def build(options: Options, context: ReasonerContext) -> LocalReasoner:
    """Raises ConfigError for a directory that is not there."""
    local_or_hub(options.path)
    return LocalReasoner(options, context)


class LocalReasoner:
    """Greedy texts are those of the prompt alone, whatever the batch; equal prompts are answered once.

    A tokenizer's chat template is used where there is one, else the prompt is plain text. thinking_tokens: 0
    turns thinking off (`enable_thinking` of the template); more are added to max_new_tokens for thoughts and
    reply together, since a local model keeps no count of its own. Thoughts are no part of the answer.
    """

    def __init__(self, options: Options, context: ReasonerContext) -> None:
        self.options = options
        self.context = context

    @cached_property
    def identity(self) -> str:
        """Of the model's files; of sampled texts also the seed."""
        options = self.options
        parts = [f"hf {model_identity(options.path, options.revision)} {options.dtype}"]
        if options.system is not None:
            parts.append(f"system {options.system!r}")
        if self.context.decoding.temperature > 0:
            parts.append(f"seed {self.context.seed}")
        return ", ".join(parts)

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        """Raises ConfigError where the model cannot be loaded."""
        if not requests:
            return
        copies: dict[str, list[int]] = {}
        for position, request in enumerate(requests):
            copies.setdefault(request.prompt, []).append(position)
        model, tokenizer = self._loaded
        prompts: list[list[int]] = []
        asked: list[list[int]] = []
        for prompt, positions in copies.items():
            ids = self._encode(tokenizer, prompt)
            if ids and model.room(len(ids), 1) > 0:
                prompts.append(ids)
                asked.append(positions)
            else:
                for position in positions:
                    yield position, failed(_why_not(ids, model))
        decoding, batch_size = self.context.decoding, self.context.batch_size
        for index, reply in model.generate(prompts, decoding, batch_size, self.context.seed):
            answer = _answer(tokenizer, reply, len(prompts[index]), len(asked[index]))
            for position in asked[index]:
                yield position, answer

    @cached_property
    def _loaded(self) -> tuple[TextModel, Any]:
        options = self.options
        if options.trust_remote_code:
            logger.warning("trust_remote_code: running code that comes with %s", options.path)
        else:
            refuse_unconverted(options.path, options.revision)
        name = local_or_hub(options.path)
        shared = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
        try:
            model = load_pretrained(AutoModelForCausalLM, name, dtype=options.dtype, **shared)
            tokenizer = AutoTokenizer.from_pretrained(name, **shared)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise unreachable(options.path, error) from error
        if options.system is not None and not tokenizer.chat_template:
            raise ConfigError(f"{options.path}: its tokenizer has no chat template, so leave `system` out")
        return TextModel(model, tokenizer, local_device(self.context.device)), tokenizer

    def _encode(self, tokenizer: Any, prompt: str) -> list[int]:
        if not tokenizer.chat_template:
            return list(tokenizer(prompt)["input_ids"])
        turns = [{"role": "user", "content": prompt}]
        if self.options.system is not None:
            turns.insert(0, {"role": "system", "content": self.options.system})
        budget = self.context.decoding.thinking_tokens
        thinking = {} if budget is None else {"enable_thinking": budget > 0}
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **thinking)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _why_not(ids: Sequence[int], model: TextModel) -> str:
    if not ids:
        return "the prompt is empty"
    return f"the prompt of {len(ids)} tokens leaves no room in the model's {model.max_positions}"


def _answer(tokenizer: Any, reply: Reply, tokens_in: int, num_copies: int) -> Answer:
    """A text without a word is a failure, as it is of an endpoint."""
    text = without_thoughts(tokenizer.decode(reply.token_ids, skip_special_tokens=True))
    cut = reply.finish_reason == "length"
    why = "the token limit was spent on thinking" if cut else "the model ended it before it wrote a word"
    return Answer(
        text=text,
        status="ok" if text else "failed",
        error=None if text else f"empty reply: {why}",
        finish_reason=reply.finish_reason,
        tokens_in=tokens_in,
        tokens_out=reply.num_tokens,
        latency_s=reply.seconds / num_copies,
    )
