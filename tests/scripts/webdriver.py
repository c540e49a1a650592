"""As much of the WebDriver protocol (W3C) as a test of a page needs: Chromium, headless, over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

from served import free_port

# what the protocol calls an element's key in JSON
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
# no connection of Chromium's own to anywhere
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
WAIT_S = 60.0
T = TypeVar("T")


def why_no_browser() -> str | None:
    """What is missing, or None."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return (
        f"no {' and no '.join(missing)} (Debian: apt-get install chromium chromium-driver)"
        if missing
        else None
    )


def until(look: Callable[[], T | None], what: str) -> T:
    """The first result that is true, looked for again and again."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {WAIT_S:.0f} s in vain for {what}")


class Browser:
    """One window."""

    def __init__(self, port: int, profile: Path) -> None:
        self.port = port
        self.session = ""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", *QUIET]
        options = {
            "binary": shutil.which("chromium"),
            "args": [*arguments, "--no-proxy-server", "--window-size=1200,900", f"--user-data-dir={profile}"],
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        wanted = {"capabilities": {"alwaysMatch": always}}
        self.session = f"/session/{self.call('POST', '/session', wanted)['sessionId']}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, self.session + path, text, {"Content-Type": "application/json"})
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{path}: {value['error']}: {value['message']}")
        return value

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def find(self, css: str) -> str:
        """The first element, waited for."""

        def look() -> str | None:
            found = self.call("POST", "/elements", {"using": "css selector", "value": css})
            return str(found[0][ELEMENT]) if found else None

        return until(look, css)

    def type(self, css: str, text: str) -> None:
        """Into a field; a file's path into a field for files."""
        self.call("POST", f"/element/{self.find(css)}/value", {"text": text})

    def clear(self, css: str) -> None:
        self.call("POST", f"/element/{self.find(css)}/clear", {})

    def click(self, css: str) -> None:
        self.call("POST", f"/element/{self.find(css)}/click", {})

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What Chromium has noted since the last call: of kind `browser` (the console) or `performance`."""
        return list(self.call("POST", "/se/log", {"type": kind}))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Chromium with a new profile in `folder`."""
    port = free_port()
    with (folder / "chromedriver.log").open("w") as log:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: _answers(port), "chromedriver")
            window = Browser(port, folder / "profile")
            try:
                yield window
            finally:
                window.call("DELETE", "")
        finally:
            driver.terminate()
            driver.wait(timeout=30)


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/status")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
