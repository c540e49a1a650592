"""A real HTTP server on 127.0.0.1 that answers chat completions as a script says, faults included."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came. prompt: the last message's text; attempt: how often that prompt came before."""

    prompt: str
    attempt: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    at: float


@dataclass(frozen=True)
class Reply:
    """What is sent. cut_at: so many bytes of the body, then the end; drop: a reset, before any byte."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut_at: int | None = None
    drop: bool = False


def chat(text: str | None, finish_reason: str = "stop", delay_s: float = 0.0, **message: Any) -> Reply:
    said = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Reply(body=json.dumps({**body, "usage": usage}), delay_s=delay_s)


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply(
        status,
        json.dumps({"error": {"message": message}}),
        {k.replace("_", "-"): v for k, v in headers.items()},
    )


class FaultyServer(ThreadingHTTPServer):
    """asked: every request, in order. busiest: the most that were under way at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Callable[[Asked], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[Asked] = []
        self.busiest = 0
        self.hung_up = 0  # clients that left before their reply
        self.under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            before = sum(asked.prompt == prompt for asked in self.server.asked)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(prompt, before, body, headers, time.monotonic())
            self.server.asked.append(asked)
            self.server.under_way += 1
            self.server.busiest = max(self.server.busiest, self.server.under_way)
        try:
            self._send(self.server.script(asked))
        except OSError:
            self.server.hung_up += 1
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _send(self, reply: Reply) -> None:
        self._wait(reply.delay_s)
        if reply.drop:
            reset = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            self.connection.close()
            self.close_connection = True
            return
        data = reply.body.encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: reply.cut_at])
        self.close_connection = reply.cut_at is not None

    def _wait(self, delay_s: float) -> None:
        """Raises ConnectionError as soon as the client has left."""
        end = time.monotonic() + delay_s
        self.connection.setblocking(False)
        try:
            while time.monotonic() < end:
                try:
                    if not self.connection.recv(1, socket.MSG_PEEK):
                        raise ConnectionResetError("the client has left")
                except BlockingIOError:
                    pass
                time.sleep(0.005)
        finally:
            self.connection.setblocking(True)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def faulty(script: Callable[[Asked], Reply]) -> Iterator[FaultyServer]:
    server = FaultyServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
