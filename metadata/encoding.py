"""Records to bytes and back: one line of JSON after its CRC32C, `{8 hex digits} {json}`.

The checksum covers the key too, so that a value that turns up under another key is found out like a
flipped bit is. It is made by the process that writes a record and checked by each that reads it, so
it guards the whole way: network, memory, the store's disk (field note 24).

Fields that this version does not know are skipped when reading; a field that is missing takes its
default or, without one, makes the value corrupt. A field's meaning never changes: a new meaning
gets a new name. A log's chain has a form of its own (`chain_encoding.py`); as it was written at
first, a list of objects, it is still read.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Final, TypeVar

import msgspec

from metadata.chain_encoding import ChainBody, ChainDecoder, encode_chain
from metadata.errors import MetadataCorrupt
from metadata.records import (
    CLUSTER_KEY,
    CONTROLLER_KEY,
    CURSORS_PREFIX,
    LOGS_PREFIX,
    NAMESPACES_PREFIX,
    NODES_PREFIX,
    ClusterRecord,
    CreatedWith,
    CursorRecord,
    LeaseRecord,
    LogRecord,
    NamespaceRecord,
    NodeRecord,
    Segment,
    Spread,
)
from metadata.store import Entry
from sharedlog.checksum import crc32c
from sharedlog.ids import LogId, NodeId, Offset
from sharedlog.retention import NO_RETENTION, Retention


class _LogValue(msgspec.Struct):
    """A `LogRecord` as it is written, its chain not decoded yet."""

    log_id: LogId
    name: str
    replicas: int
    write_quorum: int
    created_ms: int
    create_nonce: str
    chain: ChainBody | list[Segment]
    spread: Spread = ()
    change_nonce: str = ""
    created_with: CreatedWith = ()
    start: Offset = Offset(0)
    trimmed: Offset = Offset(0)
    archived_end: Offset = Offset(0)
    retention: Retention = NO_RETENTION
    near: str = ""


_Plain = ClusterRecord | LeaseRecord | NodeRecord | NamespaceRecord | CursorRecord
Record = TypeVar(
    "Record", ClusterRecord, LeaseRecord, NodeRecord, NamespaceRecord, CursorRecord, _LogValue
)

_CHECKSUM_CHARS: Final = 8

_LOG_FIELDS: Final = tuple(it.name for it in fields(LogRecord) if it.name != "chain")
_SELDOM_FIELDS: Final = ("start", "trimmed", "archived_end", "retention", "near")

_encode_json: Final = msgspec.json.Encoder().encode
_cluster_decoder: Final = msgspec.json.Decoder(ClusterRecord)
_lease_decoder: Final = msgspec.json.Decoder(LeaseRecord)
_node_decoder: Final = msgspec.json.Decoder(NodeRecord)
_log_decoder: Final = msgspec.json.Decoder(_LogValue)
_namespace_decoder: Final = msgspec.json.Decoder(NamespaceRecord)
_cursor_decoder: Final = msgspec.json.Decoder(CursorRecord)


def node_key(node_id: NodeId) -> str:
    """Where a node's record lies."""
    return NODES_PREFIX + node_id


def log_key(name: str) -> str:
    """Where a log's record lies."""
    return LOGS_PREFIX + name


def namespace_key(prefix: str) -> str:
    """Where a namespace's record lies."""
    return NAMESPACES_PREFIX + prefix


def cursors_prefix(log_id: LogId) -> str:
    """How the keys of a log's cursors begin."""
    return f"{CURSORS_PREFIX}{log_id:016x}/"


def cursor_key(log_id: LogId, name: str) -> str:
    """Where a cursor's record lies."""
    return cursors_prefix(log_id) + name


def encode_cluster(record: ClusterRecord) -> bytes:
    """The value of the key `cluster`."""
    return _seal(CLUSTER_KEY, record)


def decode_cluster(entry: Entry) -> ClusterRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_cluster_decoder, entry)


def encode_lease(record: LeaseRecord) -> bytes:
    """The value of the key `controller`."""
    return _seal(CONTROLLER_KEY, record)


def decode_lease(entry: Entry) -> LeaseRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_lease_decoder, entry)


def encode_node(record: NodeRecord) -> bytes:
    """The value of the key `node_key(record.node_id)`."""
    return _seal(node_key(record.node_id), record)


def decode_node(entry: Entry) -> NodeRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_node_decoder, entry)


def encode_log(record: LogRecord) -> bytes:
    """The value of the key `log_key(record.name)`."""
    head = {name: getattr(record, name) for name in _LOG_FIELDS if name not in _SELDOM_FIELDS}
    seldom = _written_seldom(record)
    return _seal(log_key(record.name), head | seldom | {"chain": encode_chain(record.chain)})


def _written_seldom(record: LogRecord) -> dict[str, Any]:
    """What most logs don't have costs those nothing."""
    written = {name: getattr(record, name) for name in _SELDOM_FIELDS if name != "retention"}
    written["retention"] = {
        name: amount for name, amount in asdict(record.retention).items() if amount
    }
    return {name: value for name, value in written.items() if value}


def decode_log(entry: Entry, decoder: ChainDecoder | None = None) -> LogRecord:
    """Raises `MetadataCorrupt`, for a log without a segment too.

    A `decoder` that is kept makes only of what is new in a chain new objects.
    """
    value = _open(_log_decoder, entry)
    decoder = decoder or ChainDecoder()
    value.created_with = decoder.shared_settings(value.created_with)
    head = {name: getattr(value, name) for name in _LOG_FIELDS}
    try:
        if isinstance(value.chain, ChainBody):
            chain = decoder.decode(entry.key, value.chain)
        else:
            chain = tuple(value.chain)
    except (msgspec.DecodeError, msgspec.ValidationError, IndexError) as error:
        raise MetadataCorrupt(f"the chain can't be read: {error}", key=entry.key) from error
    if not chain:
        raise MetadataCorrupt("the log has no segment", key=entry.key)
    return LogRecord(chain=chain, **head)


def encode_namespace(record: NamespaceRecord) -> bytes:
    """The value of the key `namespace_key(record.prefix)`."""
    return _seal(namespace_key(record.prefix), record)


def decode_namespace(entry: Entry) -> NamespaceRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_namespace_decoder, entry)


def encode_cursor(record: CursorRecord) -> bytes:
    """The value of the key `cursor_key(record.log_id, record.name)`."""
    return _seal(cursor_key(record.log_id, record.name), record)


def decode_cursor(entry: Entry) -> CursorRecord:
    """Raises `MetadataCorrupt`."""
    return _open(_cursor_decoder, entry)


def sealed(key: str, body: bytes) -> bytes:
    """A value of `key`: JSON after its checksum."""
    return b"%08x %s" % (_checksum(key, body), body)


def _seal(key: str, record: _Plain | dict[str, Any]) -> bytes:
    return sealed(key, _encode_json(record))


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
