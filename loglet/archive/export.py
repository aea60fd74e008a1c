"""Writes archived records to a file: NDJSON, as the command prints records, or Parquet.

Streaming: a block of an object at a time, for Parquet a row group. Control records are left out.
What is written goes to a file beside the wanted one, which takes its place at the end.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from sharedlog.batch import Record, decode_placed, has_records
from sharedlog.cli.records import json_line
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset
from sharedlog.limits import MIB

ROWS_MAX: Final = 50_000
"""Records of a row group, at most; the last block of one may be whole in it."""
GROUP_BYTES_MAX: Final = 32 * MIB
STDOUT: Final = "-"


class Writer(Protocol):
    """Takes records in order."""

    def write(self, records: Sequence[Record]) -> None:
        """Some more."""
        ...

    def close(self) -> None:
        """No more."""
        ...


class JsonWriter:
    """A line for each record, as `sharedlog read --format json` prints it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = sys.stdout.buffer if path is None else path.open("wb")

    def write(self, records: Sequence[Record]) -> None:
        """See `Writer`."""
        self._file.write(b"".join(map(json_line, records)))

    def close(self) -> None:
        """See `Writer`."""
        self._file.flush()
        if self._path is not None:
            self._file.close()


class ParquetWriter:
    """Columns `offset`, `timestamp` (UTC, milliseconds), `key`, `value` and `headers`."""

    def __init__(self, path: Path) -> None:
        if find_spec("pyarrow") is None:
            raise InvalidArgument("parquet needs a library: pip install 'sharedlog[parquet]'")
        # Untyped, and heavy: loaded by those who write Parquet.
        self._arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
        arrow = self._arrow
        self._schema = arrow.schema(
            [
                arrow.field("offset", arrow.int64(), nullable=False),
                arrow.field("timestamp", arrow.timestamp("ms", tz="UTC"), nullable=False),
                arrow.field("key", arrow.binary()),
                arrow.field("value", arrow.binary(), nullable=False),
                arrow.field("headers", arrow.map_(arrow.string(), arrow.binary())),
            ]
        )
        self._file = parquet.ParquetWriter(str(path), self._schema, compression="zstd")
        self._rows: list[Record] = []
        self._bytes = 0

    def write(self, records: Sequence[Record]) -> None:
        """See `Writer`."""
        self._rows += records
        self._bytes += sum(len(it.value) for it in records)
        if len(self._rows) >= ROWS_MAX or self._bytes >= GROUP_BYTES_MAX:
            self._flush()

    def close(self) -> None:
        """See `Writer`."""
        if self._rows:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        columns = {
            "offset": [it.offset for it in rows],
            "timestamp": [it.timestamp_ms for it in rows],
            "key": [it.key for it in rows],
            "value": [it.value for it in rows],
            "headers": [list(it.headers.items()) for it in rows],
        }
        self._file.write_table(self._arrow.table(columns, schema=self._schema))


def open_writer(kind: str, path: Path | None) -> Writer:
    """Of "ndjson" or "parquet"; None: to stdout.

    Raises:
        InvalidArgument: that can't be; the message says what is needed.
    """
    if kind == "ndjson":
        return JsonWriter(path)
    if path is None:
        raise InvalidArgument("parquet is written to a file; give its name with -o")
    return ParquetWriter(path)


async def export(
    batches: AsyncGenerator[list[bytes], None], writer: Writer, start: Offset, end: Offset | None
) -> int:
    """Write the records of [start, end); how many there were.

    Raises:
        What `batches` raises. CorruptBatch, CodecUnavailable.
    """
    count = 0
    async for part in batches:
        records = [
            record
            for placed in part
            if has_records(placed)
            for record in decode_placed(placed)
            if record.offset >= start and (end is None or record.offset < end)
        ]
        writer.write(records)
        count += len(records)
    return count
