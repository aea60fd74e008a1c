"""From input bytes to records, and from records to output bytes. No I/O here.

Input formats: `lines` (a record for each line, without its newline), `raw` (all of one input is
one record) and `ndjson` (an object for each line). Output formats: `text`, `json`, `hex` and `raw`.
What `read --format json` prints, `append --format ndjson` takes.

The JSON of a record: `value`, `key` and `headers` are text where the bytes are UTF-8; where they
are not, `value_base64`, `key_base64` and `headers_base64` hold them instead.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sharedlog.cli.failures import CliFailure
from sharedlog.cli.output import iso_time
from sharedlog.errors import RecordTooLarge
from sharedlog.limits import RECORD_BYTES_MAX

if TYPE_CHECKING:
    from sharedlog import Record

SHOWN: Final = ("offset", "timestamp", "key", "headers")
"""What `--show` can put before a value, in this order."""

_NEWLINE: Final = b"\n"
_LINE_BYTES_MAX: Final = 4 * RECORD_BYTES_MAX
"""A line of NDJSON is longer than its record: base64, escapes."""


class RecordIn(NamedTuple):
    """A record to append."""

    value: bytes
    key: bytes | None = None
    headers: Mapping[str, bytes] | None = None


class LineSplitter:
    """Cuts a stream of chunks into lines; the newline belongs to none."""

    def __init__(self, *, line_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self._rest = b""
        self._line_bytes_max = line_bytes_max

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes.

        Raises:
            RecordTooLarge: A line exceeds the limit; it is not gathered further.
        """
        lines = (self._rest + chunk).split(_NEWLINE)
        self._rest = lines.pop()
        if len(self._rest) > self._line_bytes_max:
            raise RecordTooLarge(size_bytes=len(self._rest), max_bytes=self._line_bytes_max)
        return lines

    def finish(self) -> list[bytes]:
        """The last line, if it had no newline."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class RecordParser:
    """Turns the chunks of one input after another into records.

    Args:
        kind: "lines", "raw" or "ndjson".
        key: Of records that bring no key of their own.
        headers: Of all records; a record's own header of the same name wins.
        key_field: For NDJSON, the field that holds the key.
    """

    def __init__(
        self,
        kind: str,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        key_field: str = "key",
    ) -> None:
        self._kind = kind
        self._key = key
        self._headers = headers or None
        self._key_field = key_field
        self._splitter = self._new_splitter()
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._line = 0

    def feed(self, chunk: bytes) -> list[RecordIn]:
        """The records that this chunk completes.

        Raises:
            CliFailure: A line of NDJSON is not what it should be; says which line. The records of
                the lines before it in this chunk are lost, so `parsed_until_failure` has them.
            RecordTooLarge: The input can't be a record.
        """
        if self._kind == "raw":
            self._raw.append(chunk)
            self._raw_bytes += len(chunk)
            if self._raw_bytes > RECORD_BYTES_MAX:
                raise RecordTooLarge(size_bytes=self._raw_bytes, max_bytes=RECORD_BYTES_MAX)
            return []
        return self._from_lines(self._splitter.feed(chunk))

    def finish(self) -> list[RecordIn]:
        """The records that the end of an input completes; the next input may follow."""
        if self._kind == "raw":
            raw, self._raw, self._raw_bytes = self._raw, [], 0
            return [RecordIn(b"".join(raw), self._key, self._headers)]
        records = self._from_lines(self._splitter.finish())
        self._line = 0
        return records

    def _new_splitter(self) -> LineSplitter:
        longest = _LINE_BYTES_MAX if self._kind == "ndjson" else RECORD_BYTES_MAX
        return LineSplitter(line_bytes_max=longest)

    def _from_lines(self, lines: list[bytes]) -> list[RecordIn]:
        if self._kind == "lines":
            key, headers = self._key, self._headers
            return [RecordIn(line, key, headers) for line in lines]
        records: list[RecordIn] = []
        self.parsed_until_failure = records
        for line in lines:
            self._line += 1
            if line.strip():
                records.append(self._from_json(line))
        return records

    parsed_until_failure: Sequence[RecordIn] = ()
    """After `feed` has raised: the records of the good lines before the bad one."""

    def _from_json(self, line: bytes) -> RecordIn:
        try:
            return self._from_object(json.loads(line))
        except json.JSONDecodeError as error:
            raise CliFailure(
                f"line {self._line} of the input is no JSON: {error.msg} at column {error.colno}"
            ) from None
        except (ValueError, TypeError) as error:
            raise CliFailure(f"line {self._line} of the input: {error}") from None

    def _from_object(self, found: Any) -> RecordIn:
        if not isinstance(found, dict):
            raise TypeError(f"an object is expected, not {type(found).__name__}")
        known = {"value", "value_base64", "key", "key_base64", "headers", "headers_base64"}
        known |= {"offset", "timestamp_ms", self._key_field}
        unknown = sorted(found.keys() - known)
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        value = _bytes_of(found, "value")
        if value is None:
            raise ValueError("there is neither `value` nor `value_base64`")
        key = _bytes_of(found, self._key_field)
        if key is None:
            key = self._key
        return RecordIn(value, key, {**(self._headers or {}), **_headers_of(found)} or None)


def _bytes_of(found: dict[str, Any], name: str) -> bytes | None:
    """The field as bytes, whichever of its two forms it has; None if it has none."""
    text, coded = found.get(name), found.get(f"{name}_base64")
    if text is not None and coded is not None:
        raise ValueError(f"both `{name}` and `{name}_base64` are given")
    if coded is not None:
        return _from_base64(f"{name}_base64", coded)
    return None if text is None else _from_text(name, text)


def _headers_of(found: dict[str, Any]) -> dict[str, bytes]:
    headers: dict[str, bytes] = {}
    for field, convert in (("headers", _from_text), ("headers_base64", _from_base64)):
        entries = found.get(field)
        if entries is None:
            continue
        if not isinstance(entries, dict):
            raise TypeError(f"`{field}` is an object of names and values")
        headers |= {name: convert(f"{field}.{name}", entry) for name, entry in entries.items()}
    return headers


def _from_text(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"`{name}` is text; for bytes there is `{name}_base64`")
    return text.encode("utf-8", "surrogateescape")


def _from_base64(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"`{name}` is text")
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"`{name}` is no base64") from None


Formatter = Callable[[Sequence["Record"]], bytes]
"""Turns the records of a batch into output bytes."""


def make_formatter(kind: str, show: Sequence[str] = ()) -> Formatter:
    """How a batch of records is printed.

    Args:
        kind: "text", "json", "hex" or "raw".
        show: For text and hex, what of `SHOWN` goes before the value, separated by tabs.
    """
    if kind == "json":
        return lambda records: b"".join([json_line(record) for record in records])
    if kind == "raw":
        return lambda records: b"".join([record.value for record in records])
    if not show:
        if kind == "hex":
            return lambda records: _join_lines([r.value.hex().encode() for r in records])
        return lambda records: _join_lines([record.value for record in records])
    columns = [_COLUMNS[name] for name in SHOWN if name in show]
    columns.append(_hex_value if kind == "hex" else _plain_value)
    return lambda records: _join_lines([b"\t".join([c(r) for c in columns]) for r in records])


def named(name: str, line: bytes, kind: str) -> bytes:
    """One printed record with its log's name before it; `raw` has nothing but values."""
    if kind == "raw":
        return line
    if kind == "json":
        return f'{{"log": {encode_basestring(name)}, '.encode() + line[1:]
    return name.encode() + b"\t" + line


def json_line(record: Record) -> bytes:
    """A record as one line of JSON."""
    offset, value, key, headers, timestamp_ms = record
    if key is None and not headers:
        # Most records; a third of the time that the general way takes.
        try:
            text = encode_basestring(value.decode("utf-8"))
        except UnicodeDecodeError:
            pass
        else:
            return (
                f'{{"offset": {offset}, "timestamp_ms": {timestamp_ms}, "key": null, '
                f'"value": {text}, "headers": {{}}}}\n'
            ).encode()
    entry: dict[str, object] = {"offset": record.offset, "timestamp_ms": record.timestamp_ms}
    if record.key is None:
        entry["key"] = None
    else:
        _put_bytes(entry, "key", record.key)
    _put_bytes(entry, "value", record.value)
    _put_headers(entry, record.headers)
    return json.dumps(entry, ensure_ascii=False).encode() + _NEWLINE


def _put_bytes(entry: dict[str, object], name: str, data: bytes) -> None:
    try:
        entry[name] = data.decode("utf-8")
    except UnicodeDecodeError:
        entry[f"{name}_base64"] = _base64(data)


def _put_headers(entry: dict[str, object], headers: Mapping[str, bytes]) -> None:
    text: dict[str, str] = {}
    coded: dict[str, str] = {}
    for name, data in headers.items():
        try:
            text[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            coded[name] = _base64(data)
    entry["headers"] = text
    if coded:
        entry["headers_base64"] = coded


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _join_lines(lines: Iterable[bytes]) -> bytes:
    return b"".join([line + _NEWLINE for line in lines])


def _plain_value(record: Record) -> bytes:
    return record.value


def _hex_value(record: Record) -> bytes:
    return record.value.hex().encode()


_COLUMNS: Final[Mapping[str, Callable[[Record], bytes]]] = {
    "offset": lambda record: b"%d" % record.offset,
    "timestamp": lambda record: iso_time(record.timestamp_ms).encode(),
    "key": lambda record: b"-" if record.key is None else record.key,
    "headers": lambda record: (
        b",".join([name.encode() + b"=" + value for name, value in record.headers.items()]) or b"-"
    ),
}
