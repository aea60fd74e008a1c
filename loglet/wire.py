"""The log server's messages and their bytes: the replication stream, seals, repairs and reads.

A `StoreRequest` is encoded by hand around its batches, which are most of its bytes, and a
`RepairRequest` likewise: with 256 KiB of batches that takes 9 to 13 µs instead of 320 to 750, most
of which is fresh memory. Decoding is protobuf's own work; by hand it was no faster. Answers to
reads are in `sharedlog/rpc/read_answer.py`, since readers have no other part of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from loglet.messages import (
    CommittedTail,
    Confirmed,
    ConfirmUnsealed,
    OpenLoglet,
    RepairRequest,
    RepairResponse,
    SealRequest,
    SealResponse,
    Stored,
    StoreRefused,
    StoreRequest,
    StoreResponse,
    TellEndsRequest,
    TellEndsResponse,
)
from loglet.store import LogletState
from sharedlog.ids import (
    Generation,
    LogId,
    LogletId,
    NodeId,
    Offset,
    SequencerId,
    StorageId,
)
from sharedlog.rpc.batch_fields import join_batches
from sharedlog.rpc.errors import error_from_proto, error_to_proto
from sharedlog.rpc.transport import Method
from sharedlog.v1 import log_server_pb2, types_pb2


def loglet_to_proto(loglet: LogletId) -> types_pb2.LogletId:
    """The wire form of a loglet's id."""
    return types_pb2.LogletId(log_id=loglet.log_id, segment_index=loglet.segment_index)


def loglet_from_proto(wire: types_pb2.LogletId) -> LogletId:
    """The inverse."""
    return LogletId(LogId(wire.log_id), wire.segment_index)


def encode_store_request(request: StoreRequest) -> bytes:
    """Bytes of a `StoreRequest`; each batch is copied once."""
    sequencer = request.sequencer
    wire = log_server_pb2.StoreRequest(
        storage_id=request.storage_id,
        sequencer=types_pb2.SequencerId(node_id=sequencer.node_id, generation=sequencer.generation),
    )
    for opened in request.opens:
        wire.opens.add(loglet=loglet_to_proto(opened.loglet), base=opened.base)
    for hint in request.committed:
        wire.committed.add(loglet=loglet_to_proto(hint.loglet), tail=hint.tail)
    for confirm in request.confirms:
        wire.confirms.add(loglet=loglet_to_proto(confirm.loglet), round=confirm.round_id)
    field = log_server_pb2.StoreRequest.BATCHES_FIELD_NUMBER
    return join_batches(wire.SerializeToString(), field, request.batches)


def decode_store_request(data: bytes) -> StoreRequest:
    """The inverse."""
    wire = log_server_pb2.StoreRequest.FromString(data)
    sequencer = wire.sequencer
    request = StoreRequest(
        StorageId(wire.storage_id),
        SequencerId(NodeId(sequencer.node_id), Generation(sequencer.generation)),
        batches=list(wire.batches),
    )
    if wire.opens:
        request.opens = [
            OpenLoglet(loglet_from_proto(it.loglet), Offset(it.base)) for it in wire.opens
        ]
    if wire.committed:
        request.committed = [
            CommittedTail(loglet_from_proto(it.loglet), Offset(it.tail)) for it in wire.committed
        ]
    if wire.confirms:
        request.confirms = [
            ConfirmUnsealed(loglet_from_proto(it.loglet), it.round) for it in wire.confirms
        ]
    return request


def encode_store_response(response: StoreResponse) -> bytes:
    """Bytes of a `StoreResponse`."""
    wire = log_server_pb2.StoreResponse()
    for stored in response.stored:
        wire.stored.add(
            loglet=loglet_to_proto(stored.loglet),
            first=stored.first,
            end=stored.end,
            watched=stored.watched,
        )
    for refused in response.refused:
        wire.refused.add(
            loglet=loglet_to_proto(refused.loglet),
            first=refused.first,
            error=error_to_proto(refused.error),
        )
    for answer in response.confirmed:
        wire.confirmed.add(
            loglet=loglet_to_proto(answer.loglet), round=answer.round_id, sealed=answer.sealed
        )
    return wire.SerializeToString()


def decode_store_response(data: bytes) -> StoreResponse:
    """The inverse."""
    wire = log_server_pb2.StoreResponse.FromString(data)
    return StoreResponse(
        [
            Stored(loglet_from_proto(it.loglet), Offset(it.first), Offset(it.end), it.watched)
            for it in wire.stored
        ],
        [
            StoreRefused(loglet_from_proto(it.loglet), Offset(it.first), error_from_proto(it.error))
            for it in wire.refused
        ],
        [Confirmed(loglet_from_proto(it.loglet), it.round, it.sealed) for it in wire.confirmed],
    )


def _encode_seal_request(request: SealRequest) -> bytes:
    return log_server_pb2.SealRequest(
        storage_id=request.storage_id,
        loglet=loglet_to_proto(request.loglet),
        base=request.base,
        skip_damage=request.skip_damage,
    ).SerializeToString()


def _decode_seal_request(data: bytes) -> SealRequest:
    wire = log_server_pb2.SealRequest.FromString(data)
    return SealRequest(
        StorageId(wire.storage_id),
        loglet_from_proto(wire.loglet),
        Offset(wire.base),
        wire.skip_damage,
    )


def _encode_seal_response(response: SealResponse) -> bytes:
    return log_server_pb2.SealResponse(
        local_tail=response.local_tail,
        committed_tail=response.committed_tail,
        last_timestamp_ms=response.last_timestamp_ms,
        damaged=ranges_to_proto(response.damaged),
        local_start=response.local_start,
    ).SerializeToString()


def _decode_seal_response(data: bytes) -> SealResponse:
    wire = log_server_pb2.SealResponse.FromString(data)
    return SealResponse(
        Offset(wire.local_tail),
        Offset(wire.committed_tail),
        wire.last_timestamp_ms,
        [(Offset(it.first), Offset(it.end)) for it in wire.damaged],
        Offset(wire.local_start),
    )


def ranges_to_proto(
    ranges: Iterable[tuple[Offset, Offset]],
) -> list[log_server_pb2.OffsetRange]:
    """The wire form of ranges [first, end)."""
    return [log_server_pb2.OffsetRange(first=first, end=end) for first, end in ranges]


def _encode_repair_request(request: RepairRequest) -> bytes:
    wire = log_server_pb2.RepairRequest(
        storage_id=request.storage_id,
        loglet=loglet_to_proto(request.loglet),
        committed_tail=request.committed_tail,
    )
    field = log_server_pb2.RepairRequest.BATCHES_FIELD_NUMBER
    return join_batches(wire.SerializeToString(), field, request.batches)


def _decode_repair_request(data: bytes) -> RepairRequest:
    wire = log_server_pb2.RepairRequest.FromString(data)
    return RepairRequest(
        StorageId(wire.storage_id),
        loglet_from_proto(wire.loglet),
        Offset(wire.committed_tail),
        list(wire.batches),
    )


def _encode_repair_response(_: RepairResponse) -> bytes:
    return log_server_pb2.RepairResponse().SerializeToString()


def _decode_repair_response(data: bytes) -> RepairResponse:
    log_server_pb2.RepairResponse.FromString(data)
    return RepairResponse()


def _encode_tell_ends_request(request: TellEndsRequest) -> bytes:
    wire = log_server_pb2.TellEndsRequest(storage_id=request.storage_id)
    for loglet, end in request.ends:
        wire.ends.add(loglet=loglet_to_proto(loglet), end=end)
    return wire.SerializeToString()


def _decode_tell_ends_request(data: bytes) -> TellEndsRequest:
    wire = log_server_pb2.TellEndsRequest.FromString(data)
    ends = [(loglet_from_proto(it.loglet), Offset(it.end)) for it in wire.ends]
    return TellEndsRequest(StorageId(wire.storage_id), ends)


def _encode_tell_ends_response(_: TellEndsResponse) -> bytes:
    return log_server_pb2.TellEndsResponse().SerializeToString()


def _decode_tell_ends_response(data: bytes) -> TellEndsResponse:
    log_server_pb2.TellEndsResponse.FromString(data)
    return TellEndsResponse()


STORE: Final = Method(
    path="/sharedlog.v1.LogServerService/Store",
    encode_request=encode_store_request,
    decode_request=decode_store_request,
    encode_response=encode_store_response,
    decode_response=decode_store_response,
    streaming=True,
)
"""The replication stream."""

SEAL: Final = Method(
    path="/sharedlog.v1.LogServerService/Seal",
    encode_request=_encode_seal_request,
    decode_request=_decode_seal_request,
    encode_response=_encode_seal_response,
    decode_response=_decode_seal_response,
)
"""Seals a loglet."""

REPAIR: Final = Method(
    path="/sharedlog.v1.LogServerService/Repair",
    encode_request=_encode_repair_request,
    decode_request=_decode_repair_request,
    encode_response=_encode_repair_response,
    decode_response=_decode_repair_response,
)
"""Stores batches for a repair or a backfill."""

TELL_ENDS: Final = Method(
    path="/sharedlog.v1.LogServerService/TellEnds",
    encode_request=_encode_tell_ends_request,
    decode_request=_decode_tell_ends_request,
    encode_response=_encode_tell_ends_response,
    decode_response=_decode_tell_ends_response,
)
"""Tells where segments end."""


class ReadQuery(NamedTuple):
    """A `ReadLogletRequest`; None is a field that is absent."""

    storage_id: StorageId
    loglet: LogletId
    start: Offset
    end: Offset | None
    segment_end: Offset | None
    no_wait: bool
    for_repair: bool
    headers_only: bool
    key_hash: int | None  # batches that can't have a key of this hash may be left out
    include_control: bool  # but not those that are no batches of records


def read_query(wire: log_server_pb2.ReadLogletRequest) -> ReadQuery:
    """The request of a read stream."""
    return ReadQuery(
        StorageId(wire.storage_id),
        loglet_from_proto(wire.loglet),
        Offset(wire.start),
        Offset(wire.end) if wire.HasField("end") else None,
        Offset(wire.segment_end) if wire.HasField("segment_end") else None,
        wire.no_wait,
        wire.for_repair,
        wire.headers_only,
        wire.key_digest if wire.HasField("key_digest") else None,
        wire.include_control,
    )


def time_query(wire: log_server_pb2.FindTimeRequest) -> ReadQuery:
    """The range in which a moment is looked for, as a read of it."""
    return ReadQuery(
        StorageId(wire.storage_id),
        loglet_from_proto(wire.loglet),
        Offset(wire.start),
        Offset(wire.end),
        Offset(wire.segment_end) if wire.HasField("segment_end") else None,
        no_wait=True,
        for_repair=False,
        headers_only=True,
        key_hash=None,
        include_control=False,
    )


def loglets_answer(states: Iterable[LogletState]) -> log_server_pb2.ListLogletsResponse:
    """What the server knows of its loglets."""
    return log_server_pb2.ListLogletsResponse(loglets=map(loglet_status, states))


def loglet_status(state: LogletState) -> log_server_pb2.LogletStatus:
    """What the server knows of one."""
    status = log_server_pb2.LogletStatus(
        loglet=loglet_to_proto(state.loglet),
        base=state.base,
        local_start=state.local_start,
        local_tail=state.local_tail,
        committed_tail=state.committed_tail,
        sealed=state.sealed,
        told_end=state.told_end,
    )
    if state.opened_by is not None:
        status.opened_by.node_id = state.opened_by.node_id
        status.opened_by.generation = state.opened_by.generation
    return status
