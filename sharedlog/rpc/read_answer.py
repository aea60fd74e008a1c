"""The messages by which a log server, or the archive, answers `ReadLoglet`, and their bytes.

Within a process they are handed over as they are, batches and all. protobuf's own message would
copy each batch twice on that way: as it goes in, and whenever it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sharedlog.ids import Offset
from sharedlog.rpc.batch_fields import join_batches
from sharedlog.v1.log_server_pb2 import ReadGap, ReadLogletResponse

HOLE: Final = ReadGap.REASON_HOLE
DAMAGED: Final = ReadGap.REASON_DAMAGED
TRIMMED: Final = ReadGap.REASON_TRIMMED

_BATCHES: Final = ReadLogletResponse.BATCHES_FIELD_NUMBER


class Gap(NamedTuple):
    """A range [first, end) that another replica must serve."""

    reason: ReadGap.Reason.ValueType
    first: Offset
    end: Offset


class ReadAnswer(NamedTuple):
    """One message of a read stream; None is a field that is absent."""

    committed_tail: Offset  # that the server knows, exclusive
    batches: Sequence[bytes] = ()  # placed, in order, without gaps but for `skipped`
    gap: Gap | None = None  # the server can't go on here, and ends the stream
    told_end: Offset | None = None  # the server was told that the segment ends here
    skipped: Sequence[tuple[Offset, Offset]] = ()  # ranges without the key that is asked for


def encode_read_answer(answer: ReadAnswer) -> bytes:
    """Bytes of a `ReadLogletResponse`; each batch is copied once."""
    wire = ReadLogletResponse(committed_tail=answer.committed_tail, told_end=answer.told_end)
    for first, end in answer.skipped:
        wire.skipped.add(first=first, end=end)
    if answer.gap is not None:
        wire.gap.reason, wire.gap.first, wire.gap.end = answer.gap
    return join_batches(wire.SerializeToString(), _BATCHES, answer.batches)


def decode_read_answer(data: bytes) -> ReadAnswer:
    """The inverse."""
    wire = ReadLogletResponse.FromString(data)
    gap = wire.gap
    return ReadAnswer(
        Offset(wire.committed_tail),
        list(wire.batches),
        Gap(gap.reason, Offset(gap.first), Offset(gap.end)) if wire.HasField("gap") else None,
        Offset(wire.told_end) if wire.HasField("told_end") else None,
        [(Offset(it.first), Offset(it.end)) for it in wire.skipped],
    )
