"""Reads a log as it is in the end, its control records too, for the checks of a history."""

from __future__ import annotations

from contextlib import aclosing

from helpers.history import Control, FinalRecord, Place

from sharedlog.batch import KIND_CONTROL, Record, decode_checked
from sharedlog.control import ControlRecord
from sharedlog.ids import Offset
from sharedlog.log import Log


async def read_records(log: Log, tail: int) -> list[FinalRecord]:
    """All of [0, tail).

    Raises:
        SharedLogError: it can't be read.
    """
    found: list[FinalRecord] = []
    end = Offset(tail)
    async with aclosing(log._reads._reader().read(Offset(0), end, committed=end)) as chunks:
        async for chunk in chunks:
            for placed, placement in zip(chunk.batches, chunk.placements, strict=True):
                is_control = placement.kind == KIND_CONTROL
                for record in decode_checked(placed, placement):
                    control = control_of(record) if is_control else None
                    offset, value, timestamp_ms = record.offset, record.value, record.timestamp_ms
                    found.append(FinalRecord(offset, value, timestamp_ms, control, record.key))
    return found


def control_of(record: Record) -> Control:
    """What a control record says."""
    control = ControlRecord(*record)
    state = control.state
    producers = {it.name: Place(it.epoch, it.next_sequence) for it in state.producers}
    return Control(control.cause, state.fencing_token, producers)
