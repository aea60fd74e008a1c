"""The bytes of the replication stream are protobuf's, whoever made them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from helpers.log_servers import LOGLET, ME, OTHER, STORAGE, opened, placed, request

from loglet.messages import (
    CommittedTail,
    Confirmed,
    ConfirmUnsealed,
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
from loglet.wire import (
    REPAIR,
    SEAL,
    STORE,
    TELL_ENDS,
    decode_store_request,
    decode_store_response,
    encode_store_request,
    encode_store_response,
)
from sharedlog.errors import Sealed, VersionMismatch
from sharedlog.ids import Offset
from sharedlog.v1 import log_server_pb2, types_pb2

BATCHES = [placed(0), placed(1, 300), placed(0, loglet=OTHER, record_bytes=100_000)]


def full_request() -> StoreRequest:
    message = request(BATCHES, opens=[opened(), opened(OTHER, 2**40)])
    message.committed = [CommittedTail(LOGLET, Offset(2**63))]
    message.confirms = [ConfirmUnsealed(OTHER, 77)]
    return message


@pytest.mark.parametrize("message", [full_request(), request(), request(BATCHES[:1])])
def test_a_store_request_is_what_protobuf_makes_of_it(message: StoreRequest) -> None:
    """Framed by hand, read by generated code, and back."""
    wire = log_server_pb2.StoreRequest.FromString(encode_store_request(message))
    assert list(wire.batches) == message.batches
    assert wire.storage_id == STORAGE
    assert (wire.sequencer.node_id, wire.sequencer.generation) == (ME.node_id, ME.generation)
    assert decode_store_request(wire.SerializeToString()) == message
    assert decode_store_request(encode_store_request(message)) == message


def test_fields_of_a_later_version_are_passed_over() -> None:
    """Unknown fields of every kind neither disturb nor count as batches."""
    extra = (
        b"\xf8\x07\x96\x01" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4) + b"\xfa\x07\x02hi"
    )
    data = extra + encode_store_request(full_request()) + extra
    assert decode_store_request(data) == full_request()


@pytest.mark.parametrize(
    "data",
    [b"\x22", b"\x22\x05abc", b"\x22" + b"\xff" * 11, b"\x23", b"\xff", b"\x0a\x02\xff\xfe"],
)
def test_garbage_is_an_error(data: bytes) -> None:
    """Malformed bytes raise, they are never half a request."""
    with pytest.raises(DecodeError):
        decode_store_request(data)


def test_every_cut_request_is_an_error_or_a_shorter_one() -> None:
    """Cut anywhere: an error, or a request whose batches are the first of the whole."""
    whole = full_request()
    data = encode_store_request(whole)
    for size in range(0, len(data), 97):
        try:
            found = decode_store_request(data[:size])
        except DecodeError:
            continue
        assert found.batches == whole.batches[: len(found.batches)]


def test_responses_survive() -> None:
    """Ranges, typed errors with their fields, and confirmations."""
    error = VersionMismatch(key="k", expected=None, actual=5)
    response = StoreResponse(
        [Stored(LOGLET, Offset(0), Offset(0)), Stored(OTHER, Offset(1), Offset(2**50))],
        [StoreRefused(LOGLET, Offset(7), error), StoreRefused(OTHER, Offset(8), Sealed("sealed"))],
        [Confirmed(LOGLET, 3, sealed=True), Confirmed(OTHER, 4, sealed=False)],
    )
    found = decode_store_response(encode_store_response(response))
    assert found.stored == response.stored
    assert found.confirmed == response.confirmed
    assert [(it.loglet, it.first) for it in found.refused] == [(LOGLET, 7), (OTHER, 8)]
    mismatch, sealed = (it.error for it in found.refused)
    assert isinstance(mismatch, VersionMismatch)
    assert (mismatch.key, mismatch.expected, mismatch.actual) == ("k", None, 5)
    assert isinstance(sealed, Sealed)
    assert STORE.decode_response(b"") == StoreResponse()


def test_seals_survive() -> None:
    """Both directions of a seal."""
    asked = SealRequest(STORAGE, OTHER, Offset(9))
    assert SEAL.decode_request(SEAL.encode_request(asked)) == asked
    wire = log_server_pb2.SealRequest.FromString(SEAL.encode_request(asked))
    assert wire.loglet == types_pb2.LogletId(log_id=8, segment_index=3)
    told = SealResponse(Offset(12), Offset(10), 2**41, [(Offset(10), Offset(11))])
    assert SEAL.decode_response(SEAL.encode_response(told)) == told


@pytest.mark.parametrize("batches", [BATCHES, []])
def test_repairs_survive(batches: list[bytes]) -> None:
    """Framed by hand as stores are, read by generated code, and back."""
    asked = RepairRequest(STORAGE, OTHER, Offset(2**62), batches)
    raw = REPAIR.encode_request(asked)
    wire = log_server_pb2.RepairRequest.FromString(raw)
    assert list(wire.batches) == batches
    assert wire.committed_tail == 2**62
    assert wire.SerializeToString() == raw
    assert REPAIR.decode_request(raw) == asked
    assert REPAIR.decode_response(REPAIR.encode_response(RepairResponse())) == RepairResponse()
    with pytest.raises(DecodeError):
        REPAIR.decode_response(b"\x22")


def test_told_ends_survive() -> None:
    """In their order, an empty message too."""
    for asked in (
        TellEndsRequest(STORAGE, [(OTHER, Offset(0)), (LOGLET, Offset(2**62))]),
        TellEndsRequest(STORAGE),
    ):
        raw = TELL_ENDS.encode_request(asked)
        assert log_server_pb2.TellEndsRequest.FromString(raw).storage_id == STORAGE
        assert TELL_ENDS.decode_request(raw) == asked
    told = TellEndsResponse()
    assert TELL_ENDS.decode_response(TELL_ENDS.encode_response(told)) == told
    with pytest.raises(DecodeError):
        TELL_ENDS.decode_response(b"\x22")
