"""Records to bytes and back: one line of JSON after its CRC32C, `{8 hex digits} {json}`.

The checksum covers the key too, so that a value that turns up under another key is found out like a
flipped bit is. It is made by the process that writes a record and checked by each that reads it, so
it guards the whole way: network, memory, the store's disk (field note 24).

Fields that this version does not know are skipped when reading; a field that is missing takes its
default or, without one, makes the value corrupt. A field's meaning never changes: a new meaning
gets a new name.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from metadata.errors import MetadataCorrupt
from metadata.records import (
    CLUSTER_KEY,
    LOGS_PREFIX,
    NODES_PREFIX,
    ClusterRecord,
    LogRecord,
    NodeRecord,
)
from metadata.store import Entry
from sharedlog.checksum import crc32c
from sharedlog.ids import NodeId

Record = TypeVar("Record", ClusterRecord, NodeRecord, LogRecord)

_CHECKSUM_CHARS: Final = 8

_encode_json: Final = msgspec.json.Encoder().encode
_cluster_decoder: Final = msgspec.json.Decoder(ClusterRecord)
_node_decoder: Final = msgspec.json.Decoder(NodeRecord)
_log_decoder: Final = msgspec.json.Decoder(LogRecord)


def node_key(node_id: NodeId) -> str:
    """Where a node's record lies."""
    return NODES_PREFIX + node_id


def log_key(name: str) -> str:
    """Where a log's record lies."""
    return LOGS_PREFIX + name


def encode_cluster(record: ClusterRecord) -> bytes:
    """The value of the key `cluster`."""
    return _seal(CLUSTER_KEY, record)


def decode_cluster(entry: Entry) -> ClusterRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_cluster_decoder, entry)


def encode_node(record: NodeRecord) -> bytes:
    """The value of the key `node_key(record.node_id)`."""
    return _seal(node_key(record.node_id), record)


def decode_node(entry: Entry) -> NodeRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_node_decoder, entry)


def encode_log(record: LogRecord) -> bytes:
    """The value of the key `log_key(record.name)`."""
    return _seal(log_key(record.name), record)


def decode_log(entry: Entry) -> LogRecord:
    """Raises `MetadataCorrupt`, for a log without a segment too."""
    record = _open(_log_decoder, entry)
    if not record.chain:
        raise MetadataCorrupt("the log has no segment", key=entry.key)
    return record


def _seal(key: str, record: ClusterRecord | NodeRecord | LogRecord) -> bytes:
    body = _encode_json(record)
    return b"%08x %s" % (_checksum(key, body), body)


def _open(decoder: msgspec.json.Decoder[Record], entry: Entry) -> Record:
    value = entry.value
    body = value[_CHECKSUM_CHARS + 1 :]
    if value[: _CHECKSUM_CHARS + 1] != b"%08x " % _checksum(entry.key, body):
        raise MetadataCorrupt("the value does not match its checksum", key=entry.key)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise MetadataCorrupt(f"the value can't be read: {error}", key=entry.key) from error


def _checksum(key: str, body: bytes) -> int:
    return crc32c(body, crc32c(key.encode()))
