"""Any OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prismcap.configs.errors import ConfigError
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.clients.openai_chat import ChatClient, ChatOptions
from prismcap.evaluate.reasoners._contract import ReasonerContext, ReasonRequest


class Options(ChatOptions):
    """The endpoint's, and nothing else."""


def build(options: Options, context: ReasonerContext) -> EndpointReasoner:
    """Raises ConfigError naming the reasoner for options that hold a secret."""
    try:
        return EndpointReasoner(ChatClient(options), context)
    except ConfigError as error:
        raise ConfigError(f"reasoners.{context.name}.{error}") from None


class EndpointReasoner:
    """Each prompt is one user turn. Nothing is sent before the first request."""

    def __init__(self, client: ChatClient, context: ReasonerContext) -> None:
        self.client = client
        self.context = context

    @property
    def identity(self) -> str:
        return f"openai {self.client.identity}"

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        """Raises as ChatClient.complete."""
        messages = [[{"role": "user", "content": request.prompt}] for request in requests]
        return self.client.complete(messages, self.context.decoding)
