"""etcd's API as the metadata store uses it: methods, requests, and the form of a stored value.

**Values.** What lies under a key in etcd is

    u8 form (1), u32 CRC32C, u8 length of the nonce, the nonce, the value

with numbers big-endian. The checksum covers the key, as the store's user names it, and all that
follows the checksum: a value that was written by other means or under another key, or of which a
bit was flipped, is found out and never taken for absence (field note 24). The nonce is new with
each put, and the same in each try of it: so a put whose answer was lost is told from a lost race.
"""

from __future__ import annotations

import struct
from typing import Final

from metadata.errors import MetadataCorrupt
from metadata.store import Version
from sharedlog.checksum import crc32c
from sharedlog.rpc.methods import ReqMessage, RespMessage
from sharedlog.rpc.transport import Method
from sharedlog.v1 import etcd_pb2 as pb

NONCE_CHARS_MAX: Final = 255

_FORM: Final = 1
_HEAD: Final = struct.Struct(">BI")
_HEAD_BYTES: Final = _HEAD.size + 1  # and the nonce's length


def _method(
    path: str, request: type[ReqMessage], response: type[RespMessage]
) -> Method[ReqMessage, RespMessage]:
    return Method(
        path=f"/etcdserverpb.{path}",
        encode_request=request.SerializeToString,
        decode_request=request.FromString,
        encode_response=response.SerializeToString,
        decode_response=response.FromString,
    )


RANGE: Final = _method("KV/Range", pb.EtcdRangeRequest, pb.EtcdRangeResponse)
TXN: Final = _method("KV/Txn", pb.EtcdTxnRequest, pb.EtcdTxnResponse)
WATCH: Final = _method("Watch/Watch", pb.EtcdWatchRequest, pb.EtcdWatchResponse)
AUTHENTICATE: Final = _method(
    "Auth/Authenticate", pb.EtcdAuthenticateRequest, pb.EtcdAuthenticateResponse
)

PROGRESS: Final = pb.EtcdWatchRequest(progress_request=pb.EtcdWatchProgressRequest())
"""Asks a watch for a sign of life."""


def put_if(key: bytes, stored: bytes, expected: Version) -> pb.EtcdTxnRequest:
    """Put if the key's last change is `expected` (0: it is absent); else read what is there."""
    put = pb.EtcdRequestOp(request_put=pb.EtcdPutRequest(key=key, value=stored))
    return _swap(key, expected, put)


def delete_if(key: bytes, expected: Version) -> pb.EtcdTxnRequest:
    """Delete if the key's last change is `expected`; else read what is there."""
    delete = pb.EtcdRequestOp(request_delete_range=pb.EtcdDeleteRangeRequest(key=key))
    return _swap(key, expected, delete)


def _swap(key: bytes, expected: Version, change: pb.EtcdRequestOp) -> pb.EtcdTxnRequest:
    condition = pb.EtcdCompare(
        result=pb.EtcdCompare.EQUAL, target=pb.EtcdCompare.MOD, key=key, mod_revision=expected
    )
    read = pb.EtcdRequestOp(request_range=pb.EtcdRangeRequest(key=key))
    return pb.EtcdTxnRequest(compare=[condition], success=[change], failure=[read])


def found_instead(response: pb.EtcdTxnResponse) -> pb.EtcdKeyValue | None:
    """What a transaction whose condition did not hold found there; None: nothing."""
    kvs = response.responses[0].response_range.kvs
    return kvs[0] if kvs else None


def watch_from(start: bytes, end: bytes, revision: int) -> pb.EtcdWatchRequest:
    """Begin to watch the keys of [start, end) with the changes of `revision`."""
    return pb.EtcdWatchRequest(
        create_request=pb.EtcdWatchCreateRequest(
            key=start, range_end=end, start_revision=revision, progress_notify=True, fragment=True
        )
    )


def end_of_prefix(prefix: bytes) -> bytes:
    """The least key that is greater than all that start with `prefix`, which is ASCII."""
    assert prefix
    assert prefix[-1] < 0xFF
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def encode_value(key: str, value: bytes, nonce: str) -> bytes:
    """As it is stored; see the module's docstring."""
    name = nonce.encode("ascii")
    assert 0 < len(name) <= NONCE_CHARS_MAX
    rest = bytes((len(name),)) + name + value
    return _HEAD.pack(_FORM, crc32c(key.encode("ascii") + rest)) + rest


def decode_value(key: str, stored: bytes) -> tuple[bytes, str]:
    """Value and nonce.

    Raises:
        MetadataCorrupt: it is not what a put has stored under this key.
    """
    if len(stored) < _HEAD_BYTES or stored[0] != _FORM:
        raise MetadataCorrupt("what etcd has was not written by a metadata store", key=key)
    checksum = _HEAD.unpack_from(stored)[1]
    rest = stored[_HEAD.size :]
    if crc32c(key.encode("ascii") + rest) != checksum:
        raise MetadataCorrupt("the checksum of what etcd has does not match", key=key)
    value_at = 1 + rest[0]
    return rest[value_at:], rest[1:value_at].decode("ascii")
