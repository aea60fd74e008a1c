"""From input bytes to records and from records to output bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.batch import Record
from sharedlog.cli.failures import CliFailure
from sharedlog.cli.records import LineSplitter, RecordParser, json_line, make_formatter
from sharedlog.errors import RecordTooLarge
from sharedlog.ids import Offset
from sharedlog.limits import RECORD_BYTES_MAX

HEADER_NAMES = st.text(st.characters(codec="utf-8"), max_size=8)


def _record(
    value: bytes, key: bytes | None = None, headers: dict[str, bytes] | None = None
) -> Record:
    return Record(Offset(7), value, key, headers or {}, 1_700_000_000_123)


@given(st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"x", b"\n"))))
def test_lines_do_not_depend_on_where_the_input_is_cut(pieces: list[bytes]) -> None:
    """Any cutting of the input into chunks gives the lines of the whole."""
    splitter = LineSplitter()
    found = [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()
    whole = b"".join(pieces)
    assert found == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


def test_empty_lines_are_records_and_the_last_line_needs_no_newline() -> None:
    """`printf 'a\\n\\nb'` is three records."""
    parser = RecordParser("lines")
    records = [*parser.feed(b"a\n\nb"), *parser.finish()]
    assert [record.value for record in records] == [b"a", b"", b"b"]


def test_bytes_that_are_no_utf8_stay_as_they_are() -> None:
    """A record is bytes; nothing decodes them on the way in."""
    parser = RecordParser("lines", key=b"k", headers={"h": b"1"})
    (record,) = parser.feed(b"\xff\x00\r\n")
    assert record == (b"\xff\x00\r", b"k", {"h": b"1"})


def test_raw_takes_each_input_as_one_record() -> None:
    """Chunks are joined, newlines kept; the next input is the next record."""
    parser = RecordParser("raw")
    assert parser.feed(b"a\n") == parser.feed(b"b") == []
    assert [record.value for record in parser.finish()] == [b"a\nb"]
    assert [record.value for record in parser.finish()] == [b""]


@pytest.mark.parametrize("kind", ["lines", "raw"])
def test_what_exceeds_a_record_is_refused_before_it_is_all_in_memory(kind: str) -> None:
    """An endless line ends with an error at the limit, not with the machine's memory."""
    parser = RecordParser(kind)
    chunk = b"x" * (1 << 20)
    for _ in range(RECORD_BYTES_MAX // len(chunk)):
        parser.feed(chunk)
    with pytest.raises(RecordTooLarge):
        parser.feed(chunk)


def test_ndjson_takes_text_base64_keys_and_headers() -> None:
    """Each form of each field."""
    parser = RecordParser("ndjson", key=b"default", headers={"all": b"1", "h": b"0"})
    lines = (
        b'{"value": "v"}\n'
        b'{"value_base64": "/wA=", "key": "k", "headers": {"h": "2"}}\n'
        b"\n"
        b'{"value": "", "key_base64": "/w==", "headers_base64": {"b": "/w=="}}\n'
    )
    first, second, third = parser.feed(lines)
    assert first == (b"v", b"default", {"all": b"1", "h": b"0"})
    assert second == (b"\xff\x00", b"k", {"all": b"1", "h": b"2"})
    assert third == (b"", b"\xff", {"all": b"1", "h": b"0", "b": b"\xff"})


def test_ndjson_key_field_names_where_the_key_is() -> None:
    """`--key-field user`."""
    (record,) = RecordParser("ndjson", key_field="user").feed(b'{"value": "v", "user": "u1"}\n')
    assert record.key == b"u1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", "no JSON"),
        (b"3", "an object is expected, not int"),
        (b"{}", "neither `value` nor `value_base64`"),
        (b'{"value": 3}', "`value` is text"),
        (b'{"vale": "v"}', "unknown field 'vale'"),
        (b'{"value": "v", "value_base64": ""}', "both `value` and `value_base64`"),
        (b'{"value_base64": "?"}', "no base64"),
        (b'{"value": "v", "headers": []}', "`headers` is an object"),
        (b'{"value": "v", "headers": {"h": 1}}', "`headers.h` is text"),
        (b'\xff{"value": "v"}', "line 2"),
    ],
)
def test_a_bad_line_is_named_and_the_good_ones_before_it_are_kept(
    line: bytes, expected: str
) -> None:
    """The error says which line; what was good before it can still be appended."""
    parser = RecordParser("ndjson")
    with pytest.raises(CliFailure) as raised:
        parser.feed(b'{"value": "good"}\n' + line + b"\n")
    assert expected in raised.value.message
    assert "line 2 of the input" in raised.value.message
    assert [record.value for record in parser.parsed_until_failure] == [b"good"]


@given(
    st.binary(max_size=30),
    st.none() | st.binary(max_size=10),
    st.dictionaries(HEADER_NAMES, st.binary(max_size=10), max_size=3),
)
def test_what_read_prints_as_json_append_takes(
    value: bytes, key: bytes | None, headers: dict[str, bytes]
) -> None:
    """Any record survives `read --format json | append --format ndjson`."""
    line = json_line(_record(value, key, headers))
    assert line.count(b"\n") == 1
    (record,) = RecordParser("ndjson").feed(line)
    assert (record.value, record.key, record.headers or {}) == (value, key, headers)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_the_short_way_to_json_writes_what_the_general_one_does(text: str) -> None:
    """Records without key and headers are formatted by hand; a reader sees no difference."""
    line = json_line(_record(text.encode()))
    expected: dict[str, object] = {
        "offset": 7,
        "timestamp_ms": 1_700_000_000_123,
        "key": None,
        "value": text,
        "headers": {},
    }
    assert line == json.dumps(expected, ensure_ascii=False).encode() + b"\n"


def test_formats_of_a_batch() -> None:
    """text, hex and raw, and what goes before a value."""
    batch = [_record(b"a\xff"), _record(b"", b"k", {"h": b"1", "i": b"2"})]
    assert make_formatter("text")(batch) == b"a\xff\n\n"
    assert make_formatter("hex")(batch) == b"61ff\n\n"
    assert make_formatter("raw")(batch) == b"a\xff"
    shown = make_formatter("text", ["headers", "key", "timestamp", "offset"])(batch)
    assert shown == (
        b"7\t2023-11-14T22:13:20.123Z\t-\t-\ta\xff\n7\t2023-11-14T22:13:20.123Z\tk\th=1,i=2\t\n"
    )
    assert make_formatter("hex", ["offset"])(batch) == b"7\t61ff\n7\t\n"
