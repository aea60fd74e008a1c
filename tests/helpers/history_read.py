"""Reads a log as it is in the end, its control records too, for the checks of a history."""

from __future__ import annotations

from contextlib import aclosing

from helpers.history import Control, FinalRecord, Place

from sharedlog.batch import KIND_CONTROL, Placement, Record, decode_checked
from sharedlog.control import ControlRecord
from sharedlog.ids import Offset
from sharedlog.log import Log


async def read_records(log: Log, tail: int, start: int = 0) -> list[FinalRecord]:
    """All of [start, tail).

    Raises:
        SharedLogError: it can't be read.
    """
    found: list[FinalRecord] = []
    end = Offset(tail)
    first = Offset(start)
    async with aclosing(log._reads._reader().read(first, end, committed=end)) as chunks:
        async for chunk in chunks:
            for placed, placement in zip(chunk.batches, chunk.placements, strict=True):
                found += final_records(placed, placement)
    return [it for it in found if it.offset >= start]


def final_records(placed: bytes, placement: Placement) -> list[FinalRecord]:
    """A batch's records, or control record. Raises `CorruptBatch`."""
    found = []
    for record in decode_checked(placed, placement):
        control = control_of(record) if placement.kind == KIND_CONTROL else None
        offset, value, timestamp_ms = record.offset, record.value, record.timestamp_ms
        found.append(FinalRecord(offset, value, timestamp_ms, control, record.key))
    return found


def control_of(record: Record) -> Control:
    """What a control record says."""
    control = ControlRecord(*record)
    state = control.state
    producers = {it.name: Place(it.epoch, it.next_sequence) for it in state.producers}
    return Control(control.cause, state.fencing_token, producers)
