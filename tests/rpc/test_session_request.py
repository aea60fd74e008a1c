"""What a client sends in an append session: framed by hand, as protobuf would."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.rpc.batch_fields import encode_varint
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.rpc.session_request import (
    SessionRequest,
    decode_session_request,
    encode_session_request,
)
from sharedlog.v1.log_pb2 import AppendSessionOpen, AppendSessionRequest

REQUESTS = st.builds(
    SessionRequest,
    st.one_of(st.binary(max_size=300), st.integers(120, 140).map(bytes)),
    st.none() | st.builds(AppendSessionOpen, log=st.text("abc", max_size=3)),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.text(max_size=3),
    st.none() | st.text(max_size=3),
)


@given(REQUESTS)
def test_a_request_is_what_protobuf_makes_of_it(request: SessionRequest) -> None:
    """Read by generated code, and back from what that would send."""
    wire = AppendSessionRequest.FromString(encode_session_request(request))
    assert wire.batch == request.batch
    for field in ("open", "match_offset", "fencing_token", "set_fencing_token"):
        value = getattr(request, field)
        assert wire.HasField(field) == (value is not None)
        assert value is None or getattr(wire, field) == value
    assert decode_session_request(wire.SerializeToString()) == request
    assert decode_session_request(encode_session_request(request)) == request


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 3_000_000])
def test_a_batch_of_any_size(size: int) -> None:
    """Where the number of bytes of its length changes."""
    request = SessionRequest(bytes(size))
    data = encode_session_request(request)
    assert data == AppendSessionRequest(batch=bytes(size)).SerializeToString()
    assert decode_session_request(data) == request


def test_the_last_of_two_batches_counts() -> None:
    """As in any message whose field comes twice; unknown fields are passed over."""
    first, second = (encode_session_request(SessionRequest(it)) for it in (b"first", b"2nd"))
    assert decode_session_request(first + second) == SessionRequest(b"2nd")
    assert decode_session_request(second + b"\xf8\x07\x01") == SessionRequest(b"2nd")


@pytest.mark.parametrize(
    "data",
    [
        *(b"\x12", b"\x12\x05abc", b"\x12\x80", b"\x12" + b"\xff" * 11, b"\x13", b"\xff"),
        b"\x12" + encode_varint(2**40) + b"abc",
    ],
)
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        APPEND_SESSION.decode_request(data)
