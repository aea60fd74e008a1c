"""Control batches: what a log's sequencer keeps in the log itself (`proto/.../control.proto`).

A control batch holds one record: its key says why it was written, its value is the whole state of
the log as of the batch's own offset. It takes an offset as any record does, and readers pass over
it unless they ask for it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from google.protobuf.message import DecodeError

from sharedlog.batch import (
    PLACEMENT_BYTES,
    BatchBuilder,
    BatchProducer,
    Record,
    decode_payload,
    parse_batch_header,
)
from sharedlog.errors import CorruptBatch, InvalidArgument
from sharedlog.limits import FENCING_TOKEN_CHARS_MAX, PRODUCER_NAME_CHARS_MAX
from sharedlog.v1 import control_pb2

_KEYS: Final = {
    control_pb2.LogState.CAUSE_FENCE: b"fence",
    control_pb2.LogState.CAUSE_PRODUCER: b"producer",
    control_pb2.LogState.CAUSE_CHECKPOINT: b"checkpoint",
}


class ControlRecord(Record):
    """A record of a control batch, as a reader gets it that asked for those, too."""

    __slots__ = ()

    @property
    def cause(self) -> str:
        """Why it was written: "fence", "producer", "checkpoint", or what a newer version has."""
        return (self.key or b"").decode("utf-8", "replace")

    @property
    def state(self) -> control_pb2.LogState:
        """The log's state as of this record.

        Raises:
            CorruptBatch: the record holds none.
        """
        return _parse(self.value)


def encode_control(state: control_pb2.LogState, producer: BatchProducer) -> bytes:
    """The control batch of a state, by whom it was asked for."""
    builder = BatchBuilder()
    builder.append(state.SerializeToString(deterministic=True), _KEYS[state.cause])
    return builder.encode(producer)


def decode_control(placed: bytes) -> control_pb2.LogState:
    """The state in a placed control batch that `check_placed` has passed.

    Raises:
        CorruptBatch: there is none.
    """
    header = parse_batch_header(placed, PLACEMENT_BYTES)
    values, _, _ = decode_payload(header, placed, PLACEMENT_BYTES)
    if len(values) != 1:
        raise CorruptBatch(f"a control batch has one record, not {len(values)}")
    return _parse(values[0])


def _parse(value: bytes) -> control_pb2.LogState:
    try:
        return control_pb2.LogState.FromString(value)
    except DecodeError as error:
        raise CorruptBatch("a control record that can't be read") from error


def check_fencing_token(token: str) -> None:
    """Raise `InvalidArgument` unless a log can have this fencing token ("" is none)."""
    if not isinstance(token, str):
        raise InvalidArgument(f"a fencing token is a str, not {type(token).__name__}")
    if len(token) > FENCING_TOKEN_CHARS_MAX:
        raise InvalidArgument(
            f"the fencing token has {len(token)} characters; at most {FENCING_TOKEN_CHARS_MAX} are "
            "taken"
        )
    if not _is_text(token):
        raise InvalidArgument("the fencing token has characters that are none in Unicode")


def check_producer_name(name: str) -> None:
    """Raise `InvalidArgument` unless a producer can have this name."""
    if not isinstance(name, str) or not 1 <= len(name) <= PRODUCER_NAME_CHARS_MAX:
        raise InvalidArgument(
            f"a producer's name has 1 to {PRODUCER_NAME_CHARS_MAX} characters, not {name!r:.200}"
        )
    if not _is_text(name):
        raise InvalidArgument("the producer's name has characters that are none in Unicode")


def _is_text(given: str) -> bool:
    try:
        given.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def producer_id_of(name: str) -> int:
    """The id that a named producer's batches carry."""
    return int.from_bytes(blake2b(name.encode()).digest()[:8], "little") or 1
