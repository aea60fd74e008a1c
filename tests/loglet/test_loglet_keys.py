"""Keys and records of the store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.log_servers import CLUSTER, LOGLET, ME, OTHER, STORAGE

from loglet import keys
from loglet.store import PutLoglet
from sharedlog.checksum import crc32c
from sharedlog.errors import StoreFailed
from sharedlog.ids import LogId, LogletId, NodeId, Offset

IDENTITY = keys.Identity(node_id=NodeId("n1"), cluster_id=CLUSTER, storage_id=STORAGE)
RECORDS = [
    PutLoglet(LOGLET, Offset(0), ME, sealed=False, local_start=Offset(0)),
    PutLoglet(LOGLET, Offset(9), ME, sealed=True, local_start=Offset(12)),
    PutLoglet(OTHER, Offset(2**63 - 1), None, sealed=True, local_start=Offset(2**63 - 1)),
    PutLoglet(LOGLET, Offset(9), ME, sealed=True, local_start=Offset(9), told_end=Offset(2**62)),
    PutLoglet(OTHER, Offset(0), None, sealed=True, local_start=Offset(0), told_end=Offset(0)),
    PutLoglet(LOGLET, Offset(9), ME, False, Offset(12), None, last_timestamp_ms=1),
    PutLoglet(LOGLET, Offset(9), ME, True, Offset(12), Offset(12), last_timestamp_ms=2**63),
    PutLoglet(OTHER, Offset(0), None, True, Offset(1), Offset(2**62), last_timestamp_ms=7),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_loglet_record_survives(record: PutLoglet) -> None:
    """What was written is what is read."""
    key = keys.loglet_key(record.loglet)
    assert keys.decode_loglet(key, keys.encode_loglet(key, record)) == record


def test_a_record_from_before_ends_were_kept_is_read() -> None:
    """A format change adds a version: these bytes were written by the first one."""
    value = bytes.fromhex("ac448d1d010309000000000000000c0000000000000004000000000000006e31")
    key = keys.loglet_key(LOGLET)
    record = keys.decode_loglet(key, value)
    assert record == RECORDS[1]
    assert record.told_end is None
    assert keys.encode_loglet(key, record) == value, "and it is still readable there"


def test_a_record_of_a_later_version_is_refused() -> None:
    """Half of a record is not read."""
    key = keys.loglet_key(LOGLET)
    body = b"\x04" + keys.encode_loglet(key, RECORDS[0])[5:]
    value = crc32c(key + body).to_bytes(4, "little") + body
    with pytest.raises(StoreFailed, match="version 4"):
        keys.decode_loglet(key, value)


@pytest.mark.parametrize("record", RECORDS)
def test_any_flipped_bit_of_a_record_is_noticed(record: PutLoglet) -> None:
    """Field note 24: damage of the store's own metadata is an error, wherever it lies."""
    key = keys.loglet_key(record.loglet)
    value = keys.encode_loglet(key, record)
    for index, bit in ((index, bit) for index in range(len(value)) for bit in range(8)):
        damaged = bytearray(value)
        damaged[index] ^= 1 << bit
        with pytest.raises(StoreFailed):
            keys.decode_loglet(key, bytes(damaged))
    with pytest.raises(StoreFailed):
        keys.decode_loglet(keys.loglet_key(LogletId(LogId(99), 0)), value)


def test_the_identity_survives_and_damage_is_noticed() -> None:
    """Field note 24: a damaged identity is an error."""
    value = keys.encode_identity(IDENTITY)
    assert keys.decode_identity(value) == IDENTITY
    for index in range(len(value)):
        damaged = bytearray(value)
        damaged[index] ^= 1
        with pytest.raises(StoreFailed):
            keys.decode_identity(bytes(damaged))


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that a later version has written is not touched."""
    monkeypatch.setattr(keys, "FORMAT_VERSION", 3)
    value = keys.encode_identity(replace(IDENTITY))
    monkeypatch.undo()
    with pytest.raises(StoreFailed, match="format 3"):
        keys.decode_identity(value)


def test_the_batch_that_holds_an_offset_is_the_next_key() -> None:
    """One seek finds the batch of an offset: the first key above the seek key."""
    ranges = [(0, 1), (1, 300), (300, 301), (500, 70_000)]
    batches = [keys.batch_key(LOGLET, Offset(a), Offset(b)) for a, b in ranges]
    assert batches == sorted(batches)
    for offset, expected in ((0, 0), (1, 1), (299, 1), (300, 2), (301, 3), (69_999, 3)):
        seek = keys.batch_seek_key(LOGLET, Offset(offset))
        assert next(key for key in batches if key >= seek) == batches[expected]
    assert keys.batch_last_key(LOGLET) > batches[-1]
    assert keys.batch_last_key(LOGLET) < keys.batch_key(OTHER, Offset(0), Offset(1))


def test_batch_keys_of_the_wrong_form_are_errors() -> None:
    """Exact lengths, a known family, a range that can be."""
    key = keys.batch_key(LOGLET, Offset(5), Offset(8))
    assert keys.decode_batch_key(key) == (LOGLET, 5, 8)
    for bad in (
        key[:-1],
        key + b"\0",
        b"\x02" + key[1:],
        key[:-4] + bytes(4),
        key[:-4] + b"\xff" * 4,
    ):
        with pytest.raises(StoreFailed):
            keys.decode_batch_key(bad)
