"""The few messages of etcd's API that the benchmark sends, encoded by hand. No I/O.

Names in the protobuf pool are global to a process, so taking in etcd's own files would collide with
any other etcd client there; and a put is two fields. Field numbers are those of etcd's
`rpc.proto`, which never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sharedlog.rpc.batch_fields import encode_varint

PUT_PATH = "/etcdserverpb.KV/Put"
TXN_PATH = "/etcdserverpb.KV/Txn"
STATUS_PATH = "/etcdserverpb.Maintenance/Status"

_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5


def encode_put(key: bytes, value: bytes) -> bytes:
    """`PutRequest{key = 1, value = 2}`."""
    return _bytes_field(1, key) + _bytes_field(2, value)


def encode_put_txn(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """`TxnRequest` without conditions: `success = 2` has a `RequestOp{request_put = 2}` each."""
    return b"".join(
        _bytes_field(2, _bytes_field(2, encode_put(key, value))) for key, value in entries
    )


def decode_put_revision(response: bytes) -> int:
    """Revision of the store after the put: `header = 1`, `revision = 3` within."""
    return _header_field(response, 3)


def decode_txn_succeeded(response: bytes) -> bool:
    """`TxnResponse.succeeded = 2`."""
    return any(number == 2 and bool(value) for number, value in decode_fields(response))


def decode_status(response: bytes) -> tuple[str, int, int]:
    """(version, id of the answering member, id of the leader; 0 while there is none)."""
    version, leader = "", 0
    for number, value in decode_fields(response):
        if number == 2 and isinstance(value, bytes):
            version = value.decode()
        elif number == 4 and isinstance(value, int):
            leader = value
    return version, _header_field(response, 2), leader


def _header_field(response: bytes, wanted: int) -> int:
    for number, header in decode_fields(response):
        if number == 1 and isinstance(header, bytes):
            for inner, value in decode_fields(header):
                if inner == wanted and isinstance(value, int):
                    return value
    return 0


def decode_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message, in order; nested messages stay bytes.

    Raises:
        ValueError: malformed.
    """
    position = 0
    while position < len(data):
        tag, position = _decode_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _decode_varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _decode_varint(data, position)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} is not one of proto3")
        if position + size > len(data):
            raise ValueError("the message is cut short")
        yield number, data[position : position + size]
        position += size


def _decode_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a varint is cut short")


def _bytes_field(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | _BYTES,)) + encode_varint(len(value)) + value
