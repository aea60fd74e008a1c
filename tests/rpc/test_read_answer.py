"""Answers of a read stream: framed by hand, as protobuf would, and handed over as they are."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.ids import Offset
from sharedlog.rpc.batch_fields import encode_varint
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.read_answer import (
    DAMAGED,
    HOLE,
    TRIMMED,
    Gap,
    ReadAnswer,
    decode_read_answer,
    encode_read_answer,
)
from sharedlog.v1.log_server_pb2 import ReadLogletResponse

OFFSETS = st.integers(0, 2**64 - 1).map(Offset)
ANSWERS = st.builds(
    ReadAnswer,
    OFFSETS,
    st.lists(st.one_of(st.binary(max_size=300), st.integers(120, 140).map(bytes)), max_size=4),
    st.none() | st.builds(Gap, st.sampled_from((HOLE, DAMAGED, TRIMMED)), OFFSETS, OFFSETS),
    st.none() | OFFSETS,
    st.lists(st.tuples(OFFSETS, OFFSETS), max_size=3),
)


@given(ANSWERS)
def test_an_answer_is_what_protobuf_makes_of_it(answer: ReadAnswer) -> None:
    """Read by generated code, and back from what that would send."""
    wire = ReadLogletResponse.FromString(encode_read_answer(answer))
    assert wire.committed_tail == answer.committed_tail
    assert list(wire.batches) == answer.batches
    assert wire.HasField("gap") == (answer.gap is not None)
    assert wire.HasField("told_end") == (answer.told_end is not None)
    assert [(it.first, it.end) for it in wire.skipped] == answer.skipped
    assert decode_read_answer(wire.SerializeToString()) == answer
    assert decode_read_answer(encode_read_answer(answer)) == answer


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_batches_of_any_size(size: int) -> None:
    """Where the number of bytes of a length changes."""
    answer = ReadAnswer(Offset(0), [bytes(size), b"x", bytes(size)], None, None, [])
    assert decode_read_answer(encode_read_answer(answer)) == answer
    found = ReadLogletResponse.FromString(b"\x10" + encode_varint(size))
    assert found.committed_tail == size


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x0b", b"\xff"])
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        READ_LOGLET.decode_response(data)
