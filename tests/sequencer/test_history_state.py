"""What a takeover needs is read from where a purge, or a restore, has left it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from random import Random

from helpers.log_servers import LOGLET, ME
from prometheus_client import CollectorRegistry

from metadata.history_rules import ArchivedHistory, with_history
from metadata.records import LogRecord, Replica, Segment
from sequencer.config import SequencerConfig
from sequencer.history import HistoryPage, _ranges
from sequencer.metrics import SequencerMetrics
from sequencer.state import FENCE, StateRange
from sequencer.state_recovery import StateRecovery
from sharedlog.batch import NO_PRODUCER, Placement, parse_batch_header, place_batch
from sharedlog.clock import SystemClock
from sharedlog.control import encode_control
from sharedlog.ids import NodeId, Offset, StorageId
from sharedlog.v1 import control_pb2

STATE = encode_control(control_pb2.LogState(cause=FENCE, fencing_token="token"), NO_PRODUCER)


def log(**fields: object) -> LogRecord:
    opened = Segment(
        index=0,
        base=Offset(0),
        sequencer=ME,
        nodeset=(Replica(node_id=NodeId("n1"), storage_id=StorageId("s")),),
        write_quorum=1,
    )
    record = LogRecord(
        log_id=LOGLET.log_id,
        name="orders",
        replicas=1,
        write_quorum=1,
        created_ms=1,
        create_nonce="",
        chain=(opened,),
    )
    return replace(record, **fields)  # type: ignore[arg-type]  # fields of the class


class History:
    """A control batch at offset 8, and a batch [9, 12)."""

    async def scan(
        self, record: LogRecord, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        crc = parse_batch_header(STATE).crc32c
        state = (Offset(8), Offset(9))
        control = Placement(LOGLET, Offset(8), 1, 70, Offset(0), crc, 1, *state)
        records = Placement(LOGLET, Offset(9), 3, 77, Offset(0), 0, 0, *state)
        for _, first, limit in _ranges(record, start, end):
            found = [it for it in (control, records) if it.first < limit and it.end > first]
            controls = [place_batch(it, STATE) for it in found if it.kind]
            yield HistoryPage([(it, NO_PRODUCER) for it in found], limit, controls)


def recovery() -> StateRecovery:
    return StateRecovery(
        history=History(),
        clock=SystemClock(),
        random=Random(1),
        config=SequencerConfig(),
        metrics=SequencerMetrics(CollectorRegistry()),
        latest=lambda record: record,
    )


async def test_a_purge_up_to_the_tail_leaves_the_state() -> None:
    """Nobody reads below the start any more, but who takes the log over."""
    record = log(start=Offset(12), trimmed=Offset(12))
    state = await recovery().recover(record, Offset(12))
    assert (state.token, state.last_ms, state.range) == (
        "token",
        77,
        StateRange(*map(Offset, (8, 9))),
    )
    assert not state.is_archived


async def test_what_the_archive_has_is_said_to_be_there() -> None:
    """And what was purged from it before the restore is gone."""
    history = ArchivedHistory(start=Offset(4), end=Offset(12), last_ms=77)
    state = await recovery().recover(with_history(log(), history), Offset(12))
    assert state.token == "token"
    assert state.is_archived
    gone = with_history(log(), replace(history, start=Offset(12)))
    state = await recovery().recover(gone, Offset(12))
    assert (state.token, state.is_archived) == ("", False)
    half = with_history(log(), replace(history, start=Offset(9)))
    state = await recovery().recover(half, Offset(12))
    assert (state.token, state.last_ms) == ("", 77)
