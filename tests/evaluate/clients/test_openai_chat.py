"""The client against a real server with every fault that an endpoint has."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from typing import Any

import pytest
from faulty_server import Asked, FaultyServer, Reply, chat, faulty, refusal

from prismcap.configs.errors import ConfigError, DataError, MissingExtraError
from prismcap.configs.schema.prism import Decoding
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.clients.openai_chat import ChatClient, ChatOptions
from prismcap.evaluate.clients.pacing import Pace, Pacing

KEY = "sk-very-secret-0123456789"
QUICK = Pacing(base_s=0.001)


def prompts(num: int) -> list[list[dict[str, Any]]]:
    return [[{"role": "user", "content": f"question {i}"}] for i in range(num)]


def client(server: FaultyServer, pacing: Pacing = QUICK, **options: Any) -> ChatClient:
    return ChatClient(ChatOptions(url=server.url, model="m", **{"timeout_s": 5, **options}), pacing)


def ask(client: ChatClient, num: int = 1, **decoding: Any) -> list[Answer]:
    answers = dict(client.complete(prompts(num), Decoding(**decoding)))
    assert sorted(answers) == list(range(num)), "every request once"
    return [answers[i] for i in range(num)]


def always(reply: Reply) -> Callable[[Asked], Reply]:
    return lambda _: reply


def first(*replies: Reply, then: Reply | None = None) -> Callable[[Asked], Reply]:
    """These to the attempts of each prompt in turn, and afterwards `then` (its own number, by default)."""

    def script(asked: Asked) -> Reply:
        if asked.attempt < len(replies):
            return replies[asked.attempt]
        return then or chat(f"to {asked.prompt}")

    return script


def test_each_request_gets_its_own_answer_and_no_more_run_than_allowed() -> None:
    delays = itertools.cycle([0.03, 0.001, 0.01])
    with faulty(lambda asked: chat(f"to {asked.prompt}", delay_s=next(delays))) as server:
        answers = ask(client(server, max_concurrent=3), 30)
    assert [answer.text for answer in answers] == [f"to question {i}" for i in range(30)]
    assert server.busiest == 3
    one = answers[4]
    assert (one.status, one.finish_reason, one.retries, one.error) == ("ok", "stop", 0, None)
    assert (one.tokens_in, one.tokens_out) == (11, 7) and 0 < one.latency_s < 5


def test_answers_come_as_soon_as_they_are_known() -> None:
    released = threading.Event()

    def script(asked: Asked) -> Reply:
        if asked.prompt == "question 0":
            released.wait(20)
        return chat("a")

    with faulty(script) as server:
        answers = client(server, max_concurrent=2, timeout_s=30).complete(prompts(6), Decoding())
        early = [next(answers)[0] for _ in range(5)]
        assert sorted(early) == [1, 2, 3, 4, 5], "one slow request holds up no other"
        released.set()
        assert [position for position, _ in answers] == [0]


def test_requests_are_read_when_their_turn_comes() -> None:
    read: list[int] = []

    class Lazy(Sequence[Any]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, position: Any) -> Any:
            read.append(position)
            return prompts(50)[position]

    with faulty(always(chat("a", delay_s=0.02))) as server:
        answers = client(server, max_concurrent=2).complete(Lazy(), Decoding())
        next(answers)
        assert len(read) <= 6
        answers.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (refusal(429), "HTTP 429"),
        (refusal(500), "HTTP 500"),
        (refusal(503), "HTTP 503"),
        (Reply(body='{"choices": [{"mess'), "invalid JSON"),
        (Reply(body="<html>gateway</html>", headers={"Content-Type": "text/html"}), "invalid JSON"),
        (Reply(body='{"choices": []}'), "no chat completion"),
        (Reply(body='{"error": {"message": "overloaded"}}'), "overloaded"),
        (Reply(body=chat("never whole").body, cut_at=40), "RemoteProtocolError"),
        (Reply(drop=True), "ReadError"),
        (chat("late", delay_s=3.0), "timeout_s"),
    ],
    ids=["429", "500", "503", "json", "html", "choices", "error", "cut", "drop", "slow"],
)
def test_what_may_pass_is_tried_again_and_counted(fault: Reply, says: str) -> None:
    quick = {"timeout_s": 0.3} if "late" in fault.body else {}
    with faulty(first(fault, fault)) as server:
        answers = ask(client(server, max_retries=2, **quick), 2)
    assert [answer.text for answer in answers] == ["to question 0", "to question 1"]
    assert [answer.retries for answer in answers] == [2, 2]
    with faulty(lambda asked: fault if asked.prompt == "question 1" else chat("a")) as server:
        good, bad = ask(client(server, max_retries=2, max_concurrent=1, **quick), 2)
    assert good.status == "ok"
    assert (bad.status, bad.text, bad.retries) == ("failed", "", 2)
    assert bad.error is not None and says in bad.error and "3 attempts" in bad.error
    assert len(server.asked) == 4, "and no more often than max_retries says"


def test_what_will_not_pass_is_asked_once() -> None:
    with faulty(always(refusal(400, "context length exceeded"))) as server:
        (answer,) = ask(client(server))
    assert answer.status == "failed" and "context length exceeded" in (answer.error or "")
    assert len(server.asked) == 1 and answer.retries == 0


def test_in_a_storm_of_429_all_wait_as_long_as_the_server_asks() -> None:
    came: list[float] = []

    def script(asked: Asked) -> Reply:
        # the server refuses everything for a second from the first request on
        came.append(asked.at)
        return refusal(429, Retry_After="1.5") if asked.at < min(came) + 1 else chat("a")

    with faulty(script) as server:
        answers = ask(client(server, max_concurrent=4, max_retries=3), 40)
    assert all(answer.status == "ok" for answer in answers)
    times = sorted(asked.at for asked in server.asked)
    refused = [at for at in times if at < times[0] + 1]
    assert 1 <= len(refused) <= 4, "who has not been refused yet waits too"
    assert times[len(refused)] >= times[0] + 1.5


@pytest.mark.parametrize("value", ["7", "7.0", "soon", ""])
def test_retry_after_is_read_as_seconds(value: str) -> None:
    assert Pace.asked_for({"retry-after": value}) == (7 if value.startswith("7") else None)


def test_retry_after_is_read_as_a_date() -> None:
    asked = Pace.asked_for({"retry-after": formatdate(time.time() + 3600, usegmt=True)})
    assert asked is not None and 3000 < asked <= 3601


def test_waits_grow_up_to_a_limit_and_are_spread() -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    with faulty(always(refusal(500))) as server:
        ask(client(server, Pacing(base_s=1.0, longest_s=8.0, wait=wait), max_retries=6, max_concurrent=1), 8)
    for attempt, longest in enumerate([1, 2, 4, 8, 8, 8]):
        same = waits[attempt::6]
        assert len(same) == 8 and all(longest / 2 <= seconds <= longest for seconds in same)
        assert len(set(same)) > 1
    waits.clear()
    with faulty(first(refusal(503, Retry_After="5000"))) as server:
        ask(client(server, Pacing(wait=wait)))
    assert 600 <= waits[0] <= 601, "an endpoint's wish is obeyed, within reason"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_concerns_all_requests_ends_the_run_with_a_remedy_and_without_the_key(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    message = f"Incorrect API key provided: {KEY}"
    with faulty(always(refusal(status, message))) as server, pytest.raises(DataError) as raised:
        ask(client(server, api_key_env="TEST_ENDPOINT_KEY", max_concurrent=2), 100)
    assert len(server.asked) <= 4, "nothing more is asked"
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    said = str(raised.value)
    assert str(status) in said and server.url in said
    assert ("'m'" if status == 404 else "TEST_ENDPOINT_KEY") in said
    chain: BaseException | None = raised.value
    while chain is not None:
        assert KEY not in repr(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert caplog.records and KEY not in caplog.text


@pytest.mark.parametrize(
    "fault", [refusal(500, KEY), refusal(400, KEY), Reply(body=f"not JSON: {KEY}"), Reply(body=f'["{KEY}"]')]
)
def test_no_failure_holds_the_key(
    fault: Reply, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with faulty(always(fault)) as server:
        asking = client(server, api_key_env="TEST_ENDPOINT_KEY", max_retries=1)
        (answer,) = ask(asking)
    assert answer.status == "failed" and "***" in (answer.error or "")
    assert KEY not in repr(answer) + caplog.text + asking.identity + repr(asking.options)


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, KEY)
    with faulty(always(chat("a"))) as server:
        ask(client(server))
    assert "authorization" not in server.asked[0].headers
    assert KEY not in repr(server.asked[0].headers)
    with faulty(always(refusal(401))) as server, pytest.raises(DataError, match="api_key_env"):
        ask(client(server))


def test_a_key_that_is_not_set_or_stands_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_ENDPOINT_KEY", raising=False)
    with faulty(always(chat("a"))) as server, pytest.raises(DataError, match=r"TEST_ENDPOINT_KEY.*not set"):
        ask(client(server, api_key_env="TEST_ENDPOINT_KEY"))
    for value in (f"{KEY}\nX-Other: 1", f"“{KEY}”", f"{KEY} {KEY}"):
        monkeypatch.setenv("TEST_ENDPOINT_KEY", value)
        with faulty(always(chat("a"))) as server, pytest.raises(DataError, match="is no key") as raised:
            ask(client(server, api_key_env="TEST_ENDPOINT_KEY"))
        assert KEY not in str(raised.value) and not server.asked
    for options in (
        {"url": "http://x/v1", "api_key_env": KEY},
        {"url": f"https://user:{KEY}@x/v1"},
        {"url": f"https://x/v1?key={KEY}"},
    ):
        with pytest.raises(ConfigError, match="environment variable") as refused:
            ChatClient(ChatOptions(model="m", **options))
        assert KEY not in str(refused.value)
    with pytest.raises(ConfigError, match="http://"):
        ChatClient(ChatOptions(model="m", url="localhost:8000/v1"))


def test_an_endpoint_that_is_down_ends_the_run_at_first_and_fails_rows_later() -> None:
    with faulty(always(chat("a"))) as server:
        down = client(server, max_retries=2)
    with pytest.raises(DataError, match=r"cannot be reached.*start the server"):
        ask(down, 5)

    replies = iter([chat("a")])  # the second request may be on its way before the first answer is looked at
    with faulty(lambda _: next(replies, Reply(drop=True))) as server:
        answers = client(server, max_retries=1, max_concurrent=1).complete(prompts(3), Decoding())
        assert [answer.status for _, answer in answers] == ["ok", "failed", "failed"]


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with faulty(always(chat("a"))) as server:
        assert ask(client(server, max_retries=0))[0].text == "a"


@pytest.mark.parametrize(
    ("decoding", "sent"),
    [
        ({"max_new_tokens": 9}, {"max_tokens": 9, "temperature": 0}),
        ({"max_new_tokens": 9, "temperature": 0.7}, {"max_tokens": 9, "temperature": 0.7}),
        (
            {"max_new_tokens": 9, "thinking_tokens": 0},
            {"max_completion_tokens": 9, "reasoning_effort": "none", "temperature": 0},
        ),
        (
            {"max_new_tokens": 9, "thinking_tokens": 1000},
            {"max_completion_tokens": 1009, "reasoning_effort": "low"},
        ),
        (
            {"max_new_tokens": 9, "thinking_tokens": 20000, "temperature": 0.6},
            {"max_completion_tokens": 20009, "reasoning_effort": "high", "temperature": 0.6},
        ),
    ],
)
def test_decoding_is_sent_as_endpoints_understand_it(decoding: dict[str, Any], sent: dict[str, Any]) -> None:
    with faulty(always(chat("a"))) as server:
        ask(client(server), **decoding)
    assert server.asked[0].body == {"model": "m", "messages": prompts(1)[0], **sent}


def test_half_a_surrogate_pair_is_sent_as_the_sign_for_what_cannot_be_read() -> None:
    """As other models' cut-off texts end."""
    text = {"type": "text", "text": "A dog \ud83d"}
    with faulty(always(chat("a"))) as server:
        asked = [[{"role": "user", "content": "A dog \ud83d"}], [{"role": "user", "content": [text]}]]
        assert [answer.text for _, answer in client(server).complete(asked, Decoding())] == ["a", "a"]
    sent = sorted(str(request.body["messages"][0]["content"]) for request in server.asked)
    assert sent == ["A dog \ufffd", str([{"type": "text", "text": "A dog \ufffd"}])]


def test_beams_are_refused() -> None:
    with faulty(always(chat("a"))) as server, pytest.raises(ConfigError, match="num_beams"):
        ask(client(server), num_beams=5)
    assert not server.asked


@pytest.mark.parametrize(
    ("reply", "status", "text", "finish_reason", "says"),
    [
        (chat("half of", "length"), "ok", "half of", "length", ""),
        (chat(" B \n", reasoning_content="A? no, B"), "ok", "B", "stop", ""),
        (chat("<think>A? no</think>\n\nB"), "ok", "B", "stop", ""),
        (chat(None, refusal="I cannot help."), "ok", "I cannot help.", "stop", ""),
        (chat(""), "failed", "", "stop", "empty reply"),
        (chat(None, "content_filter"), "failed", "", "content_filter", "content filter"),
        (chat("", "length", reasoning_content="A? B?"), "failed", "", "length", "thinking"),
        (chat("<think>A? B? C?", "length"), "failed", "", "length", "thinking"),
    ],
)
def test_a_reply_becomes_an_answer(
    reply: Reply, status: str, text: str, finish_reason: str, says: str
) -> None:
    with faulty(always(reply)) as server:
        (answer,) = ask(client(server))
    assert (answer.status, answer.text, answer.finish_reason) == (status, text, finish_reason)
    assert answer.cut_off == (finish_reason == "length") and answer.tokens_out == 7
    assert says in (answer.error or "") and bool(says) == bool(answer.error)
    assert len(server.asked) == 1, "a model that says nothing is not asked again"


def test_closing_the_iterator_hangs_up() -> None:
    with faulty(lambda asked: chat("a", delay_s=0.01 if asked.prompt == "question 0" else 30)) as server:
        answers = client(server, timeout_s=60).complete(prompts(50), Decoding())
        next(answers)
        wait_until(lambda: server.under_way == 8)
        num_threads = threading.active_count()
        answers.close()  # type: ignore[attr-defined]
        assert threading.active_count() < num_threads
        wait_until(lambda: server.under_way == 0)
        assert server.hung_up == 8 and len(server.asked) == 9


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler: a process that a shell started in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_waiting() -> None:
    with faulty(always(chat("a", delay_s=30))) as server:
        answers = client(server, timeout_s=60).complete(prompts(3), Decoding())

        def interrupt() -> None:
            wait_until(lambda: server.under_way == 3)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            next(answers)
        wait_until(lambda: server.under_way == 0)


def test_without_the_package_the_error_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    asking = ChatClient(ChatOptions(url="http://127.0.0.1:9/v1", model="m"))
    assert list(asking.complete([], Decoding())) == []
    with pytest.raises(MissingExtraError, match=r"'openai'.*\[eval\]"):
        ask(asking)


def test_the_identity_is_address_and_model() -> None:
    one = ChatClient(ChatOptions(url="http://x/v1/", model="m", api_key_env="A_KEY"))
    same = ChatClient(ChatOptions(url="http://x/v1", model="m", max_concurrent=2, timeout_s=9))
    other = ChatClient(ChatOptions(url="http://x/v1", model="n"))
    assert one.identity == same.identity != other.identity


def wait_until(true: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
