"""Batches and loglets in LMDB: how they are written, stepped through and found at a start.

For `lmdb_store.py`, whose threads call these with their transactions and cursors. Keys and values
are in `keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loglet import keys
from loglet.held import restored
from loglet.lmdb_file import Entry, LmdbFile, Reading
from loglet.store import DropBatches, LogletState, PutLoglet, PutRepaired, Write
from sharedlog.batch import HEADERS_BYTES
from sharedlog.errors import StoreFailed
from sharedlog.ids import LogletId, Offset


def put(txn: Any, write: Write) -> None:
    """Carry out one write of a commit.

    Raises:
        StoreFailed: a batch is there already.
    """
    if isinstance(write, PutLoglet):
        key = keys.loglet_key(write.loglet)
        txn.put(key, keys.encode_loglet(key, write))
        return
    if isinstance(write, DropBatches):
        with txn.cursor() as cursor:
            _delete_ended(cursor, write.loglet, write.end)
        return
    key = keys.batch_key(write.loglet, write.first, write.end)
    overwrite = isinstance(write, PutRepaired) and write.overwrites
    if not txn.put(key, write.placed, overwrite=overwrite):
        raise StoreFailed(f"loglet {write.loglet}: the batch at {write.first} is there already")


def walk(
    reading: Reading, loglet: LogletId, start: Offset, end: Offset
) -> Iterator[tuple[Offset, Offset, Entry]]:
    """Step through the batches that overlap [start, end): first and end of each, and where it is.

    By keys alone. Raises `StoreFailed`.
    """
    owner = keys.batch_owner(loglet)
    for entry in reading.entries(keys.batch_seek_key(loglet, start)):
        if not entry.key.startswith(owner):
            break
        first, last = keys.decode_batch_range(entry.key)
        if first >= end:
            break
        yield first, last, entry


def walk_ended(reading: Reading, loglet: LogletId, below: Offset) -> Iterator[tuple[Offset, Entry]]:
    """Step through the batches that end at or below `below`, in order: the end of each.

    Raises `StoreFailed`.
    """
    for _, end, entry in walk(reading, loglet, Offset(0), below):
        if end > below:
            break
        yield end, entry


def _delete_ended(cursor: Any, loglet: LogletId, below: Offset) -> None:
    """Delete the batches that end at or below `below`."""
    more = cursor.set_range(keys.batch_first_key(loglet))
    while more and cursor.key()[:1] == keys.BATCH_PREFIX:
        owner, _, end = keys.decode_batch_key(bytes(cursor.key()))
        if owner != loglet or end > below:
            break
        cursor.delete()
        more = bool(cursor.key())  # it stands on the next one now


def read_loglets(env: Any, file: LmdbFile) -> list[LogletState]:
    """Every loglet, with its tails from the last batch's key and placement.

    Raises:
        StoreFailed: a record is damaged.
    """
    with env.begin(buffers=True) as txn, txn.cursor() as cursor:
        records: list[PutLoglet] = []
        more = cursor.set_range(keys.LOGLET_PREFIX)
        while more and cursor.key()[:1] == keys.LOGLET_PREFIX:
            records.append(keys.decode_loglet(bytes(cursor.key()), bytes(cursor.value())))
            more = cursor.next()
        return [restored(it, _newest(cursor, file, it.loglet)) for it in records]


def _newest(
    cursor: Any, file: LmdbFile, loglet: LogletId
) -> Iterator[tuple[Offset, Offset, bytes]]:
    """First, end and fixed part of the loglet's batches, the last one first."""
    reading = file.reading(cursor)
    more = cursor.prev() if cursor.set_range(keys.batch_last_key(loglet)) else cursor.last()
    while more and cursor.key()[:1] == keys.BATCH_PREFIX:
        owner, first, end = keys.decode_batch_key(bytes(cursor.key()))
        if owner != loglet:
            break
        yield first, end, reading.beginning(reading.here(), HEADERS_BYTES)
        more = cursor.prev()
