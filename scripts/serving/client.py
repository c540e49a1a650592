"""Talking to an OpenAI-compatible server over HTTP; never through a proxy, since the server is our own."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
ANSWER_TIMEOUT_S = (
    600.0  # between two pieces of an answer; a large model on a CPU reads a picture for minutes
)
# what a server listens on, and where it is then reached
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class ServerError(RuntimeError):
    """The server answered, and not with what was asked for."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        return ANYWHERE.get(self.host, self.host)

    @property
    def url(self) -> str:
        host = self.reachable_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK


def model_names(address: Address, timeout_s: float = 5.0) -> list[str]:
    """What the server offers. Raises OSError when there is none, ServerError when it says something else."""
    with closing(HTTPConnection(address.reachable_host, address.port, timeout=timeout_s)) as connection:
        try:
            connection.request("GET", MODELS)
            answer = _json(connection.getresponse())
        except HTTPException as error:
            raise ServerError(f"{address.url}: not an HTTP answer: {error!r}") from error
    try:
        return [str(entry["id"]) for entry in answer["data"]]
    except (KeyError, TypeError) as error:
        raise ServerError(f"{address.url}{MODELS}: not a list of models: {answer}") from error


def _refusal(response: HTTPResponse) -> ServerError:
    text = response.read().decode("utf-8", errors="replace")
    return ServerError(f"the server answered {response.status}: {text[:500]}")


def _json(response: HTTPResponse) -> Any:
    if response.status != 200:
        raise _refusal(response)
    text = response.read().decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ServerError(f"the server's answer is no JSON: {text[:500]}") from error


def chat_body(model: str, image_url: str, instruction: str, max_tokens: int) -> dict[str, Any]:
    """A request for `/v1/chat/completions`: one picture, then the instruction."""
    content = [
        {"type": "image_url", "image_url": {"url": image_url}},
        {"type": "text", "text": instruction},
    ]
    return {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": content}]}


def answer_pieces(address: Address, body: Mapping[str, Any]) -> Generator[str, None, None]:
    """The answer as it is written. Closing the iterator ends the writing.

    Raises OSError when the server cannot be reached, ServerError when it refuses or breaks off.
    """
    connection = HTTPConnection(address.reachable_host, address.port, timeout=ANSWER_TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    with closing(connection):
        try:
            connection.request("POST", CHAT, json.dumps({**body, "stream": True}), headers)
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    raise _refusal(response)
                yield from _pieces(response)
        except HTTPException as error:
            raise ServerError(f"the server broke off: {error!r}") from error


def _pieces(lines: Iterable[bytes]) -> Iterator[str]:
    """The texts of a stream of server-sent events, up to its end."""
    for line in lines:
        field, _, data = line.decode("utf-8").strip().partition(":")
        if field != "data" or data.strip() == "[DONE]":
            continue
        try:
            event = json.loads(data)
        except json.JSONDecodeError as error:
            raise ServerError(f"the server says: {data.strip()[:500]}") from error
        if "error" in event:
            raise ServerError(f"the server says: {event['error']}")
        for choice in event.get("choices", ()):
            piece = choice.get("delta", {}).get("content")
            if piece:
                yield piece


def growing_text(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text so far after each piece, without outer white space; it ends before the first stop string.

    An export's stop strings of several tokens are no part of its generation config: a server runs on.
    """
    text = ""
    for piece in pieces:
        text += piece
        places = [text.index(mark) for mark in stop if mark and mark in text]
        yield text[: min(places)].strip() if places else text.strip()
        if places:
            return
