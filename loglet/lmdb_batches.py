"""Batches and loglets in LMDB: how they are written, stepped through and found at a start.

For `lmdb_store.py`, whose threads call these with their transactions and cursors. Keys and values
are in `keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loglet import keys
from loglet.held import restored
from loglet.lmdb_file import LmdbFile, keys_to_end_of_leaf, large_value
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
            for _ in walk_ended(cursor, write.loglet, write.end, delete=True):
                pass
        return
    key = keys.batch_key(write.loglet, write.first, write.end)
    overwrite = isinstance(write, PutRepaired) and write.overwrites
    if not txn.put(key, write.placed, overwrite=overwrite):
        raise StoreFailed(f"loglet {write.loglet}: the batch at {write.first} is there already")


def walk(
    cursor: Any, loglet: LogletId, start: Offset, end: Offset
) -> Iterator[tuple[Offset, Offset]]:
    """Step through the batches that overlap [start, end): first and end of each, by its key."""
    more = cursor.set_range(keys.batch_seek_key(loglet, start))
    while more and cursor.key()[:1] == keys.BATCH_PREFIX:
        owner, first, last = keys.decode_batch_key(bytes(cursor.key()))
        if owner != loglet or first >= end:
            break
        yield first, last
        more = cursor.next()


def walk_keys(
    cursor: Any, file: LmdbFile, loglet: LogletId, start: Offset, end: Offset
) -> Iterator[tuple[Offset, Offset]]:
    """The same a leaf of the tree at a time, for who looks at no value.

    The cursor must be one of a reading transaction, with `buffers`.
    """
    reading = file.reading()
    more = cursor.set_range(keys.batch_seek_key(loglet, start))
    while more:
        if large_value(cursor.key()) is None:
            reading.leaf(cursor.key())  # the next one is near: there are small batches between
        found = keys_to_end_of_leaf(cursor.key(), file.page_bytes)
        for key in found:
            if key[:1] != keys.BATCH_PREFIX:
                return
            owner, first, last = keys.decode_batch_key(key)
            if owner != loglet or first >= end:
                return
            yield first, last
        more = cursor.set_range(found[-1] + b"\0")


def walk_ended(
    cursor: Any, loglet: LogletId, below: Offset, *, delete: bool = False
) -> Iterator[Offset]:
    """Step through the batches that end at or below `below`, in order: the end of each.

    With `delete` each of them is gone once the next is asked for.
    """
    more = cursor.set_range(keys.batch_first_key(loglet))
    while more and cursor.key()[:1] == keys.BATCH_PREFIX:
        owner, _, end = keys.decode_batch_key(bytes(cursor.key()))
        if owner != loglet or end > below:
            break
        yield end
        if delete:
            cursor.delete()
            more = bool(cursor.key())  # it stands on the next one now
        else:
            more = cursor.next()


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
    values = file.values(cursor)
    more = cursor.prev() if cursor.set_range(keys.batch_last_key(loglet)) else cursor.last()
    while more and cursor.key()[:1] == keys.BATCH_PREFIX:
        owner, first, end = keys.decode_batch_key(bytes(cursor.key()))
        if owner != loglet:
            break
        yield first, end, values.beginning(HEADERS_BYTES)
        more = cursor.prev()
