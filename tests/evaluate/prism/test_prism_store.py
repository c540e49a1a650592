"""Rows of answers: torn lines, claims between processes, failures, retries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prismcap.configs.errors import DataError
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.prism.store import Store, append_line, now, request_key

A, B, C = (request_key("perceive", 1, {"text": text}) for text in "abc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perceive" / "rows.jsonl"


def test_rows_come_back_as_they_were(path: Path) -> None:
    answer = Answer("naïve\n\u2028 text", "ok", None, "length", 7, 8, 0.25, 2)
    Store(path).append(A, "17", answer, {"part": None, "fallback": "why"})
    entry = Store(path).get(A)
    assert entry is not None
    assert (entry.id, entry.answer, entry.notes) == ("17", answer, {"part": None, "fallback": "why"})
    row = json.loads(path.read_text())
    assert {"key", "id", "status", "text", "error", "finish_reason", "tokens_in", "tokens_out"} <= row.keys()


def test_a_failure_has_no_text(path: Path) -> None:
    Store(path).append(A, "1", failed("timed out", retries=6))
    assert json.loads(path.read_text())["text"] is None
    entry = Store(path).get(A)
    assert entry is not None and entry.answer == failed("timed out", retries=6)


def test_a_key_changes_with_every_part() -> None:
    keys = {
        request_key("perceive", 1, {"a": 1, "b": [2]}),
        request_key("reason", 1, {"a": 1, "b": [2]}),
        request_key("perceive", 2, {"a": 1, "b": [2]}),
        request_key("perceive", 1, {"a": 1, "b": ["2"]}),
        request_key("perceive", 1, {"a": 1, "b": [2], "c": None}),
    }
    assert len(keys) == 5
    assert request_key("perceive", 1, {"b": [2], "a": 1}) in keys


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_last_line_is_left_out_and_then_cut_off(path: Path, cut: int) -> None:
    store = Store(path)
    store.append(A, "1", Answer("one"))
    whole = path.read_bytes()
    store.append(B, "2", Answer("two " * 100))
    path.write_bytes(path.read_bytes()[:-cut])
    again = Store(path)
    assert A in again and B not in again
    again.append(C, "3", Answer("three"))
    assert path.read_bytes().startswith(whole)
    last = Store(path)
    assert [key in last for key in (A, B, C)] == [True, False, True]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_named(path: Path) -> None:
    store = Store(path)
    store.append(A, "1", Answer("one"))
    append_line(path, {"key": B})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: a row without id"):
        Store(path)
    path.write_bytes(b"\x00\x00 nothing\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: not JSON"):
        Store(path)


def test_the_newest_row_counts_and_others_are_seen_after_a_refresh(path: Path) -> None:
    ours, theirs = Store(path), Store(path)
    ours.append(A, "1", Answer("old"))
    theirs.append(A, "1", Answer("new"))
    ours.refresh()
    entry = ours.get(A)
    assert entry is not None and entry.answer.text == "new"


def test_failures_are_asked_again_only_on_request_and_once(path: Path) -> None:
    Store(path).append(A, "1", failed("down"))
    Store(path).append(B, "2", Answer("two"))
    assert A in Store(path)
    since = now()
    retrying = Store(path, retry_before=since)
    assert A not in retrying and B in retrying
    retrying.append(A, "1", failed("still down"))
    assert A in retrying
    assert A in Store(path, retry_before=since), "the other process would ask a third time"


def test_a_claim_keeps_other_processes_out_until_its_row_is_there(path: Path) -> None:
    theirs = f"""
import sys
from pathlib import Path
from prismcap.evaluate.prism.store import Store
with Store(Path({str(path)!r})) as store:
    print(",".join(store.claim({[A, B, C]!r}, 9)), flush=True)
"""

    def others() -> list[str]:
        done = subprocess.run([sys.executable, "-c", theirs], capture_output=True, text=True, check=True)
        return [key for key in done.stdout.strip().split(",") if key]

    with Store(path) as store:
        assert store.claim([A, B, C], 2) == [A, B]
        assert others() == [C]
        store.append(A, "1", Answer("one"))
        assert others() == [C]  # A is done, B is ours
    assert others() == [B, C]


def test_what_was_finished_since_the_last_look_is_not_claimed(path: Path) -> None:
    with Store(path) as store:
        Store(path).append(A, "1", Answer("one"))
        assert store.claim([A, B], 1) == [] and store.claim([A, B], 1) == [B]
        found = store.get(A)
        assert found is not None and found.answer.text == "one"


def test_claims_go_with_a_killed_process(path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from prismcap.evaluate.prism.store import Store
with Store(Path({str(path)!r})) as store:
    store.claim({[A]!r}, 1)
    print("claimed", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"claimed\n"
    with Store(path) as store:
        assert store.claim([A], 1) == []
        process.kill()
        process.wait()
        assert store.claim([A], 1) == [A]
    process.stdout.close()


def test_rows_of_processes_that_write_at_once_stay_whole(path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from prismcap.evaluate.clients.answer import Answer
from prismcap.evaluate.prism.store import Store, request_key
store = Store(Path({str(path)!r}))
for number in range(200):
    key = request_key("perceive", 1, {{"number": number, "by": sys.argv[1]}})
    store.append(key, str(number), Answer("x" * 5000))
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(name)]) for name in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(path.read_bytes().splitlines()) == len(list(Store(path))) == 600


def test_a_torn_line_longer_than_a_block_is_cut_off(path: Path) -> None:
    Store(path).append(A, "1", Answer("one"))
    with path.open("ab") as file:
        file.write(b'{"key": "' + b"x" * (3 << 16))
        os.fsync(file.fileno())
    Store(path).append(B, "2", Answer("two"))
    assert {entry.key for entry in Store(path)} == {A, B}
