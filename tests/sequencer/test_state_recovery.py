"""What a takeover knows of a log's state, as far as its log servers have it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

from helpers.failover_parts import log_record, node_record
from helpers.sim import SimClock, run_virtual
from prometheus_client import CollectorRegistry

from sequencer.config import SequencerConfig
from sequencer.history import LogHistory
from sequencer.metrics import SequencerMetrics
from sequencer.state import FENCE, LogState
from sequencer.state_recovery import StateRecovery
from sharedlog.batch import (
    KIND_CONTROL,
    NO_PRODUCER,
    Placement,
    parse_batch_header,
    place_batch,
)
from sharedlog.control import encode_control
from sharedlog.ids import Offset
from sharedlog.rpc.loopback import Loopback, RoutingTransport
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.read_answer import ReadAnswer
from sharedlog.rpc.transport import ServerStream
from sharedlog.v1 import log_server_pb2

Stream = ServerStream[ReadAnswer, log_server_pb2.ReadLogletRequest]
RECORD = log_record("orders", "n2")
LOGLET = RECORD.loglet(RECORD.open_segment)


def fence(token: str) -> bytes:
    """A log's first batch, placed: it sets a fencing token."""
    state = LogState(expiry_s=60.0)
    message = state.message(FENCE, set, 1_000)
    message.fencing_token = token
    batch = encode_control(message, NO_PRODUCER)
    state.on_control(Offset(0), Offset(1), len(batch))
    crc = parse_batch_header(batch).crc32c
    range_ = state.range
    placement = Placement(LOGLET, Offset(0), 1, 1_000, Offset(0), crc, KIND_CONTROL, *range_)
    return place_batch(placement, batch)


async def recovered(start: int) -> LogState:
    """The state of a log with one batch, of which all below `start` is purged."""
    placed = fence("mine")

    async def read(stream: Stream) -> None:
        await stream.receive()
        await stream.send(ReadAnswer(Offset(1), [placed]))

    server = Loopback()
    server.add_stream(READ_LOGLET, read)
    clock = SimClock()
    history = LogHistory(
        transport=RoutingTransport({}, default=server),
        directory=node_record,
        clock=clock,
        random=Random(1),
    )
    recovery = StateRecovery(
        history=history,
        clock=clock,
        random=Random(1),
        config=SequencerConfig(),
        metrics=SequencerMetrics(CollectorRegistry()),
        latest=lambda record: record,
    )
    try:
        purged = replace(RECORD, start=Offset(start), trimmed=Offset(start))
        return await recovery.recover(purged, Offset(1))
    finally:
        await server.close()


def test_a_log_that_is_purged_up_to_its_tail_keeps_its_state() -> None:
    """Its last batch and its state are on the log servers yet: purging forgets no token."""
    for start in (0, 1):
        assert run_virtual(partial(recovered, start)).token == "mine"
