"""The reader of TSV rows equals Python's csv module, and knows where in the file each row lies."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prismcap.data.schema import DataError
from prismcap.evaluate.benchmarks._tsv_rows import MAX_ROW_BYTES, read_rows, split_row, unquoted

FIELDS = st.lists(
    st.lists(st.text(alphabet='aé"\t\n\r', max_size=6), min_size=2, max_size=4), min_size=1, max_size=5
)
RAW = st.text(alphabet='a"\t\n', max_size=24)
PER_EXAMPLE = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def fields_of(path: Path) -> list[list[str]]:
    return [[unquoted(row.raw(i)).decode() for i in range(len(row.spans))] for row in read_rows(path)]


@PER_EXAMPLE
@given(
    rows=FIELDS,
    end=st.sampled_from(["\n", "\r\n"]),
    closed=st.booleans(),
    bom=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_csv_writes_is_read_back(
    tmp_path: Path, rows: list[list[str]], end: str, closed: bool, bom: bool, quoting: Literal[0, 1]
) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # leaves a lone carriage return bare, and then cannot read it back
        rows = [[text.replace("\r", "\r\n") for text in row] for row in rows]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter="\t", lineterminator=end, quoting=quoting).writerows(rows)
    text = stream.getvalue()
    path = tmp_path / "x.tsv"
    content = (text if closed else text.removesuffix(end)).encode()
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + content)
    assert fields_of(path) == rows
    whole = path.read_bytes()
    for row in read_rows(path):
        cut = whole[row.offset : row.offset + len(row.content)]
        assert cut == row.content
        assert split_row(cut, "") == [unquoted(row.raw(i)) for i in range(len(row.spans))]


@PER_EXAMPLE
@given(text=RAW)
def test_odd_quoting_is_read_as_csv_reads_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(text.encode())
    # a row behind the text is swallowed exactly where a quote stays open
    *expected, last = csv.reader(io.StringIO(text + "\nZ", newline=""), delimiter="\t")
    if last == ["Z"]:
        assert fields_of(path) == [row for row in expected if row]
    else:
        with pytest.raises(DataError, match="never closed"):
            fields_of(path)


def test_a_lone_carriage_return_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"a\tb\n1\t2\r3\n")
    with pytest.raises(DataError, match=r"x\.tsv, row 1: a carriage return"):
        fields_of(path)


def test_csv_settings_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(b"a\tb\n1\t" + b"A" * 300_000 + b"\n")
    before = csv.field_size_limit()
    assert len(fields_of(path)[1][1]) == 300_000 > before
    assert csv.field_size_limit() == before


def test_an_open_quote_is_not_read_to_the_end_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    with path.open("wb") as file:
        file.write(b'a\tb\n1\t"open\n')
        file.truncate(3 * MAX_ROW_BYTES)  # zeros, without a line end
    with pytest.raises(DataError, match="row 1: longer than 128 MiB"):
        fields_of(path)
