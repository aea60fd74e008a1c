"""The messages that a client sends in an append session, and their bytes.

Nearly all of them are one batch and nothing else, which protobuf would copy twice on either side.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sharedlog.rpc.batch_fields import decode_varint, join_batches, tag_of
from sharedlog.v1.log_pb2 import AppendSessionOpen, AppendSessionRequest

_BATCH: Final = AppendSessionRequest.BATCH_FIELD_NUMBER
_BATCH_TAG: Final = tag_of(_BATCH)


class SessionRequest(NamedTuple):
    """One `AppendSessionRequest`; None is a field that is absent."""

    batch: bytes = b""
    open: AppendSessionOpen | None = None  # in the first message only
    match_offset: int | None = None
    fencing_token: str | None = None
    set_fencing_token: str | None = None


_NOTHING_ELSE: Final = (None,) * 4


def encode_session_request(request: SessionRequest) -> bytes:
    """Bytes of an `AppendSessionRequest`; the batch is copied once."""
    batch, rest = request.batch, b""
    if request[1:] != _NOTHING_ELSE:
        rest = AppendSessionRequest(
            open=request.open,
            match_offset=request.match_offset,
            fencing_token=request.fencing_token,
            set_fencing_token=request.set_fencing_token,
        ).SerializeToString()
    return join_batches(rest, _BATCH, (batch,) if batch else ())


def decode_session_request(data: bytes) -> SessionRequest:
    """The inverse. A message that is only a batch is copied once."""
    if data.startswith(_BATCH_TAG):
        size, start = decode_varint(data, len(_BATCH_TAG))
        if start + size == len(data):
            return SessionRequest(data[start:])
    wire = AppendSessionRequest.FromString(data)
    return SessionRequest(
        wire.batch,
        wire.open if wire.HasField("open") else None,
        wire.match_offset if wire.HasField("match_offset") else None,
        wire.fencing_token if wire.HasField("fencing_token") else None,
        wire.set_fencing_token if wire.HasField("set_fencing_token") else None,
    )
