"""Keys and small values of the LMDB store.

One unnamed database; the first byte of a key is its family. Numbers are big-endian, so that LMDB's
byte order is their order.

| family | rest of the key                            | value                               |
|--------|--------------------------------------------|-------------------------------------|
| 1      | `identity`                                 | crc32c, JSON: whose store, format   |
| 2      | log id (8), segment (4)                    | crc32c, the loglet's record         |
| 3      | log id (8), segment (4), end (8), count (4) | the placed batch, as it came       |

A batch lies under its *end*: the batch that holds an offset is then the first whose key is greater,
one seek. The count is in the key so that a batch whose bytes are damaged still says which offsets
it takes: it keeps its place.

The checksums of families 1 and 2 cover the key too, so a value under a wrong key is damage as well.
A batch has its own, and names its loglet and offsets.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Final

from loglet.store import PutLoglet
from sharedlog.checksum import crc32c
from sharedlog.errors import StoreFailed
from sharedlog.ids import (
    Generation,
    LogId,
    LogletId,
    NodeId,
    Offset,
    SequencerId,
    StorageId,
)

IDENTITY_KEY: Final = b"\x01identity"
LOGLET_PREFIX: Final = b"\x02"
BATCH_PREFIX: Final = b"\x03"
FORMAT_VERSION: Final = 2  # 1 had placements of version 1

_LOGLET_KEY: Final = struct.Struct(">cQI")
_BATCH_KEY: Final = struct.Struct(">cQIQI")
_BATCH_RANGE: Final = struct.Struct(">QI")  # its last two
_OWNER_BYTES: Final = _BATCH_KEY.size - _BATCH_RANGE.size
# crc32c of key and rest · version · flags · base · local start · generation; in version 2 the
# segment's end, as it was told; in version 3 the end, or 0 without its flag, and the last
# timestamp; then the node's name
_RECORD: Final = struct.Struct("<IBBQQQ")
_END: Final = struct.Struct("<Q")
_END_AND_TIME: Final = struct.Struct("<QQ")
_NO_END: Final = 1  # the version of a record of a loglet whose end was not told
_TOLD_END: Final = 2
_TRIMMED: Final = 3  # of one whose last timestamp its batches may not tell any more
_SEALED: Final = 1
_OPENED: Final = 2
_ENDED: Final = 4  # from version 3 on
_OFFSET_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose store it is."""

    node_id: NodeId
    cluster_id: str
    storage_id: StorageId


def encode_identity(identity: Identity) -> bytes:
    """Value of the identity record."""
    body = json.dumps(
        {
            "format": FORMAT_VERSION,
            "node_id": identity.node_id,
            "cluster_id": identity.cluster_id,
            "storage_id": identity.storage_id,
        }
    ).encode()
    return crc32c(IDENTITY_KEY + body).to_bytes(4, "little") + body


def decode_identity(value: bytes) -> Identity:
    """The inverse.

    Raises:
        StoreFailed: damaged, or of a format that this version does not know.
    """
    body = value[4:]
    if crc32c(IDENTITY_KEY + body).to_bytes(4, "little") != value[:4]:
        raise StoreFailed("the store's identity record is damaged")
    fields = json.loads(body)
    if fields["format"] != FORMAT_VERSION:
        raise StoreFailed(
            f"the store has format {fields['format']}; this version reads {FORMAT_VERSION}"
        )
    return Identity(
        node_id=NodeId(fields["node_id"]),
        cluster_id=fields["cluster_id"],
        storage_id=StorageId(fields["storage_id"]),
    )


def loglet_key(loglet: LogletId) -> bytes:
    """Key of a loglet's own record."""
    return _LOGLET_KEY.pack(LOGLET_PREFIX, loglet.log_id, loglet.segment_index)


def encode_loglet(key: bytes, write: PutLoglet) -> bytes:
    """Value of a loglet's own record, to be stored under `key`."""
    opener = write.opened_by
    flags = (_SEALED if write.sealed else 0) | (_OPENED if opener is not None else 0)
    generation = 0 if opener is None else opener.generation
    name = b"" if opener is None else opener.node_id.encode()
    version, more = _NO_END, b""
    if write.last_timestamp_ms:
        version, more = _TRIMMED, _END_AND_TIME.pack(write.told_end or 0, write.last_timestamp_ms)
        flags |= 0 if write.told_end is None else _ENDED
    elif write.told_end is not None:
        version, more = _TOLD_END, _END.pack(write.told_end)
    fields = (version, flags, write.base, write.local_start, generation)
    body = _RECORD.pack(0, *fields)[4:] + more + name
    return crc32c(key + body).to_bytes(4, "little") + body


def decode_loglet(key: bytes, value: bytes) -> PutLoglet:
    """The inverse of `loglet_key` and `encode_loglet`.

    Raises:
        StoreFailed: damaged, or of a version that is not known.
    """
    if len(key) != _LOGLET_KEY.size or len(value) < _RECORD.size:
        raise StoreFailed(f"a loglet's record is damaged: key {key.hex()}")
    crc, version, flags, base, local_start, generation = _RECORD.unpack_from(value)
    if crc32c(key + value[4:]) != crc:
        raise StoreFailed(f"a loglet's record is damaged: key {key.hex()}")
    rest, told_end, last_timestamp_ms = value[_RECORD.size :], None, 0
    if version == _TOLD_END and len(rest) >= _END.size:
        (told_end,), rest = _END.unpack_from(rest), rest[_END.size :]
    elif version == _TRIMMED and len(rest) >= _END_AND_TIME.size:
        (end, last_timestamp_ms), rest = _END_AND_TIME.unpack_from(rest), rest[_END_AND_TIME.size :]
        told_end = end if flags & _ENDED else None
    elif version != _NO_END:
        raise StoreFailed(f"a loglet's record has version {version}; this one reads 1 to 3")
    _, log_id, segment_index = _LOGLET_KEY.unpack(key)
    opener = SequencerId(NodeId(rest.decode()), Generation(generation)) if flags & _OPENED else None
    return PutLoglet(
        LogletId(LogId(log_id), segment_index),
        Offset(base),
        opener,
        bool(flags & _SEALED),
        Offset(local_start),
        None if told_end is None else Offset(told_end),
        last_timestamp_ms,
    )


def batch_key(loglet: LogletId, first: Offset, end: Offset) -> bytes:
    """Key of the batch with offsets [first, end)."""
    assert first < end
    return _BATCH_KEY.pack(BATCH_PREFIX, loglet.log_id, loglet.segment_index, end, end - first)


def batch_seek_key(loglet: LogletId, offset: Offset) -> bytes:
    """A key below that of the batch which holds `offset`, and above all batches before it."""
    return _BATCH_KEY.pack(BATCH_PREFIX, loglet.log_id, loglet.segment_index, offset + 1, 0)


def batch_first_key(loglet: LogletId) -> bytes:
    """A key below all batches of the loglet."""
    return _BATCH_KEY.pack(BATCH_PREFIX, loglet.log_id, loglet.segment_index, 0, 0)


def batch_last_key(loglet: LogletId) -> bytes:
    """A key above all batches of the loglet."""
    return _BATCH_KEY.pack(
        BATCH_PREFIX, loglet.log_id, loglet.segment_index, _OFFSET_MAX, 2**32 - 1
    )


def batch_owner(loglet: LogletId) -> bytes:
    """With what the keys of a loglet's batches begin, and no others."""
    return batch_first_key(loglet)[:_OWNER_BYTES]


def decode_batch_range(key: bytes) -> tuple[Offset, Offset]:
    """First and end of a batch.

    Raises:
        StoreFailed: not a batch's key.
    """
    if len(key) != _BATCH_KEY.size or key[:1] != BATCH_PREFIX:
        raise StoreFailed(f"a batch's key is damaged: {key.hex()}")
    end, count = _BATCH_RANGE.unpack_from(key, _OWNER_BYTES)
    if not 0 < count <= end:
        raise StoreFailed(f"a batch's key is damaged: {key.hex()}")
    return Offset(end - count), Offset(end)


def decode_batch_key(key: bytes) -> tuple[LogletId, Offset, Offset]:
    """Loglet, first and end of a batch. Raises as `decode_batch_range`."""
    first, end = decode_batch_range(key)
    _, log_id, segment_index, _, _ = _BATCH_KEY.unpack(key)
    return LogletId(LogId(log_id), segment_index), first, end
