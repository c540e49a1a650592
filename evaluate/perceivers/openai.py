"""A model behind an OpenAI-compatible endpoint; pictures go there as PNG within the request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prismcap.configs.schema.prism import Decoding
from prismcap.data.schema import DataError
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.clients.data_url import data_url
from prismcap.evaluate.clients.openai_chat import ChatClient, ChatOptions
from prismcap.evaluate.perceivers._contract import PerceiverContext
from prismcap.evaluate.perceivers._local import chunks_by_picture
from prismcap.evaluate.perceivers._several import PictureOptions, View, ViewPerceiver

ROUNDS_AT_ONCE = 8  # pictures in memory, in units of max_concurrent; few waits for a round's last reply


class Options(PictureOptions, ChatOptions):
    """detail: how finely the endpoint is asked to look; none: it is not told."""

    detail: Literal["low", "high", "auto"] | None = None


@dataclass(frozen=True)
class Endpoint:
    """Describes views as ChatModel does."""

    options: Options
    client: ChatClient
    decoding: Decoding

    @property
    def identity(self) -> str:
        return f"openai {self.client.identity} detail {self.options.detail}"

    def describe_views(self, views: Sequence[View]) -> Iterator[tuple[int, Answer]]:
        for chunk in chunks_by_picture(views, ROUNDS_AT_ONCE * self.options.max_concurrent):
            urls: dict[Any, str] = {}
            bad: dict[Any, str] = {}
            for image in dict.fromkeys(views[position].image for position in chunk):
                try:
                    urls[image] = data_url(image.load())
                except DataError as error:
                    bad[image] = str(error)
            for position in chunk:
                if views[position].image in bad:
                    yield position, failed(bad[views[position].image])
            good = [position for position in chunk if views[position].image in urls]
            requests = [
                self._request(urls[views[position].image], views[position].instruction) for position in good
            ]
            for number, answer in self.client.complete(requests, self.decoding):
                yield good[number], answer

    def _request(self, url: str, instruction: str) -> list[dict[str, Any]]:
        picture = {"url": url} if self.options.detail is None else {"url": url, "detail": self.options.detail}
        content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": instruction}]
        return [{"role": "user", "content": content}]


def build(options: Options, context: PerceiverContext) -> ViewPerceiver:
    """Raises ConfigError for an address or a key's name that holds a secret."""
    endpoint = Endpoint(options, ChatClient(options), context.decoding)
    return ViewPerceiver(options, endpoint.describe_views, lambda: endpoint.identity)
