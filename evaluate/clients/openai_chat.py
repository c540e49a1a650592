"""Chat completions of any OpenAI-compatible endpoint: many at a time, patiently, and never a lost failure."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from prismcap.configs.errors import ConfigError, DataError, MissingExtraError
from prismcap.configs.schema.base import Section
from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.clients.background import Emit, results_of
from prismcap.evaluate.clients.completion import MalformedReply, read_completion
from prismcap.evaluate.clients.pacing import Pace, Pacing

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Messages = Sequence[Mapping[str, Any]]
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# of an environment variable that holds a key; a key itself, given by mistake, seldom looks so
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
KEY = re.compile(r"[!-~]+")
# besides every 5xx: the request came too late, met another, came too early, or too many came
RETRIED_STATUS = frozenset({408, 409, 425, 429})
# up to so many thinking tokens an effort's name stands for; source: Gemini API, "OpenAI compatibility"
EFFORTS = ((0, "none"), (1024, "low"), (8192, "medium"))
MAX_ERROR_CHARACTERS = 300
HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates: a text that was cut within a character
CONNECT_S = 10.0


class ChatOptions(Section):
    """An endpoint and one of its models."""

    url: str = Field(description="up to and with /v1: http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(
        default=None, description="name of the environment variable that holds the key; none: no key"
    )
    max_concurrent: int = Field(default=8, ge=1)
    timeout_s: float = Field(default=120.0, gt=0, description="of one attempt, up to the whole reply")
    max_retries: int = Field(default=6, ge=0, description="attempts beyond the first")


class ChatClient:
    """Requests to one model. Nothing is sent, nor the key looked up, before the first request.

    pacing: how long to wait before an attempt is repeated.
    """

    def __init__(self, options: ChatOptions, pacing: Pacing | None = None) -> None:
        """Raises ConfigError for an address or name that holds a secret."""
        self.options = options
        self.pacing = pacing or Pacing()
        parts = urlsplit(options.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("url: must begin with http:// or https:// and a host, and end as a rule in /v1")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "url: must hold no user, password or `?…`: it is kept in files. Put the key into an "
                "environment variable and name that in api_key_env"
            )
        if options.api_key_env is not None and not VARIABLE.fullmatch(options.api_key_env):
            # not quoted: it may be the key
            raise ConfigError(
                "api_key_env: must be the NAME of an environment variable (capital letters, digits, _), "
                "not the key"
            )

    @property
    def identity(self) -> str:
        """The address and the model."""
        return f"{self.options.url.rstrip('/')} {self.options.model}"

    def complete(self, requests: Sequence[Messages], decoding: Decoding) -> Iterator[tuple[int, Answer]]:
        """(position in requests, answer) of every request once, each as soon as it is known.

        A request is read when its turn comes. thinking_tokens: none sends nothing about it; 0 or more sends
        `reasoning_effort`, and a token limit that holds thoughts and reply (`max_completion_tokens`); above 0
        no temperature of 0 is sent, which models that think refuse. Thoughts are no part of the answer.
        latency_s is of the last attempt.
        Raises, as soon as it shows, what concerns all requests: MissingExtraError; ConfigError for beams;
        DataError for a wrong key (401, 403), an unknown model or address (404), and an endpoint that nobody
        can connect to before it has ever answered.
        """
        if not requests:
            return
        parameters = self._parameters(decoding)
        key = self._key()
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("openai", "eval", "asking an OpenAI-compatible endpoint") from error

        def work(emit: Emit[tuple[int, Answer]]) -> Coroutine[Any, Any, None]:
            return _Run(self, key, parameters, emit).answer_all(requests)

        yield from results_of(work)

    def _key(self) -> str:
        name = self.options.api_key_env
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise DataError(f"{self.options.url}: the environment variable {name} (api_key_env) is not set")
        if not KEY.fullmatch(key):
            # a client's error about it would quote it
            raise DataError(
                f"{self.options.url}: what the environment variable {name} (api_key_env) holds is no key: "
                "visible ASCII characters and no blanks"
            )
        return key

    def _parameters(self, decoding: Decoding) -> dict[str, Any]:
        """What a request says beside its messages."""
        if decoding.num_beams > 1:
            raise ConfigError(
                f"{self.options.url}: num_beams is {decoding.num_beams}, and the OpenAI protocol has no beam "
                "search: set it to 1"
            )
        parameters: dict[str, Any] = {"model": self.options.model}
        budget = decoding.thinking_tokens
        if budget is None:
            parameters["max_tokens"] = decoding.max_new_tokens
        else:
            parameters["max_completion_tokens"] = decoding.max_new_tokens + budget
            parameters["reasoning_effort"] = next((name for most, name in EFFORTS if budget <= most), "high")
        if decoding.temperature > 0 or not budget:
            parameters["temperature"] = decoding.temperature
        return parameters


class _Run:
    """The requests of one call of `complete`, in its event loop."""

    def __init__(
        self,
        client: ChatClient,
        key: str,
        parameters: Mapping[str, Any],
        emit: Emit[tuple[int, Answer]],
    ) -> None:
        self.options = client.options
        self.key = key
        self.parameters = parameters
        self.emit = emit
        self.pace = Pace(client.pacing)
        self.reached = False  # whether the endpoint has ever taken a connection

    async def answer_all(self, requests: Sequence[Messages]) -> None:
        positions = iter(range(len(requests)))

        async def worker(endpoint: AsyncOpenAI) -> None:
            for position in positions:
                self.emit((position, await self._answer(endpoint, requests[position])))

        try:
            async with AsyncExitStack() as stack:
                endpoint = await stack.enter_async_context(self._endpoint())
                group = await stack.enter_async_context(asyncio.TaskGroup())
                for _ in range(min(self.options.max_concurrent, len(requests))):
                    group.create_task(worker(endpoint))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _endpoint(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        # a proxy of the environment knows nothing of this machine's own ports
        loopback = urlsplit(self.options.url).hostname in LOOPBACK
        return AsyncOpenAI(
            base_url=self.options.url,
            api_key=self.key or "none",
            # connecting ends before the attempt's own limit, so that the two are told apart
            timeout=Timeout(self.options.timeout_s, connect=min(CONNECT_S, self.options.timeout_s / 2)),
            max_retries=0,  # counted and paced here
            http_client=DefaultAsyncHttpxClient(trust_env=not loopback),
        )

    async def _answer(self, endpoint: AsyncOpenAI, messages: Messages) -> Answer:
        """One request's answer, after as many attempts as it takes and options allow."""
        attempts = self.options.max_retries + 1
        for attempt in range(attempts):
            await self.pace.ready()
            started = time.monotonic()
            try:
                text = await self._send(endpoint, messages)
                return read_completion(text, latency_s=time.monotonic() - started, retries=attempt)
            except _Retriable as error:
                latency_s, reason = time.monotonic() - started, error
            except _Refused as error:
                return failed(str(error), latency_s=time.monotonic() - started, retries=attempt)
            except MalformedReply as error:
                latency_s, reason = time.monotonic() - started, _Retriable(self._plain(str(error)))
            if attempt + 1 < attempts:
                await self.pace.wait(attempt, reason.retry_after_s)
        if not self.reached:
            raise DataError(
                f"{self.options.url}: cannot be reached ({reason}): start the server, or correct the url"
            )
        return failed(f"{reason} (after {attempts} attempts)", latency_s=latency_s, retries=attempts - 1)

    async def _send(self, endpoint: AsyncOpenAI, messages: Messages) -> str:
        """The body of one reply. Raises _Retriable, _Refused, and DataError for what concerns all."""
        import openai

        try:
            # the client's own limit is one between two pieces of the reply
            async with asyncio.timeout(self.options.timeout_s):
                reply = await endpoint.chat.completions.with_raw_response.create(
                    messages=_readable([*messages]),
                    extra_headers=None if self.key else {"Authorization": openai.Omit()},
                    **self.parameters,
                )
            self.reached = True
            return str(reply.text)
        except TimeoutError:
            self.reached = True
            raise _Retriable(f"no reply within timeout_s = {self.options.timeout_s:g}") from None
        except openai.APIConnectionError as error:  # an APITimeoutError is one
            cause = error.__cause__ or error
            kind = type(cause).__name__
            self.reached |= kind not in ("ConnectError", "ConnectTimeout")
            raise _Retriable(self._plain(f"{kind}: {cause}")) from None
        except openai.APIStatusError as error:
            self.reached = True
            raise self._of_status(error.status_code, error.response.text, error.response.headers) from None

    def _of_status(self, status: int, body: str, headers: Mapping[str, str]) -> Exception:
        said = self._plain(f"HTTP {status}: {body}")
        at = f"{self.options.url}: {said}"
        if status in RETRIED_STATUS or status >= 500:
            return _Retriable(said, self.pace.asked_for(headers))
        if status in (401, 403):
            name = self.options.api_key_env
            remedy = f"the key in {name} is refused" if name else "a key is wanted: name it in api_key_env"
            return DataError(f"{at}. {remedy}")
        if status == 404:
            return DataError(
                f"{at}. No model {self.options.model!r} there, or the url is wrong (it ends as a rule in /v1)"
            )
        if "max_completion_tokens" in said and "max_completion_tokens" not in self.parameters:
            said += " (a model that thinks: set thinking_tokens of this stage's decoding)"
        return _Refused(said)

    def _plain(self, text: str) -> str:
        """One short line, without the key, which a server may have sent back."""
        clean = text.replace(self.key, "***") if self.key else text
        line = " ".join(clean.split())
        return line if len(line) <= MAX_ERROR_CHARACTERS else f"{line[:MAX_ERROR_CHARACTERS]} …"


class _Refused(Exception):
    """The endpoint does not answer this request, and will not."""


class _Retriable(Exception):
    """An attempt that may go well another time. retry_after_s: what the endpoint asks for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def _readable(value: Any) -> Any:
    """Messages that UTF-8 can hold: U+FFFD stands for half a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else HALF_A_PAIR.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {key: _readable(part) for key, part in value.items()}
    return [_readable(part) for part in value] if isinstance(value, list | tuple) else value
