"""Append sessions of the cluster in memory: as strict as the protocol, and with faults on command.

Strict: sequences follow each other, after a refusal nothing more is taken, a newer session of a
producer shuts out the older, and a sequencer that took over knows a producer's batches only from
the offset from which the client had it look.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from helpers.memory_log import MemoryLog

from sharedlog.batch import parse_batch_header
from sharedlog.errors import (
    LogUnavailable,
    NotSequencer,
    ProducerFenced,
    SequenceGap,
    SharedLogError,
    Unreachable,
)
from sharedlog.rpc.errors import error_to_proto
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import ServerStream
from sharedlog.tasks import first_error
from sharedlog.v1 import log_pb2, types_pb2

if TYPE_CHECKING:
    from helpers.memory_server import MemoryCluster, MemoryNode

Session = ServerStream[log_pb2.AppendSessionResponse, SessionRequest]

_LINGER_S = 0.25  # for the client to read `moved` and leave, as the real one does


class _State:
    """One session."""

    def __init__(self, log: MemoryLog, opening: log_pb2.AppendSessionOpen) -> None:
        self.log = log
        self.producer_id = opening.producer_id
        self.segment = log.open_segment.index
        self.expected = opening.next_sequence
        self.over = False  # it refused a batch, moved, or was shut out
        self.moved = False
        self.unanswered = 0
        self.results: asyncio.Queue[log_pb2.AppendResult | None] = asyncio.Queue()


class MemorySessions:
    """Serves the sessions of one node."""

    def __init__(self, node: MemoryNode, cluster: MemoryCluster) -> None:
        self._node = node
        self._cluster = cluster
        self._latest: dict[int, _State] = {}

    async def serve(self, stream: Session) -> None:
        """One session."""
        node, cluster = self._node, self._cluster
        first = await stream.receive()
        assert first is not None
        await node.running.wait()
        opening = first.open
        assert opening is not None
        node.openings.append(opening)
        if node.faults.refuse_sessions:
            raise node.faults.refuse_sessions.popleft()
        if opening.create and opening.log not in cluster.logs:
            cluster.create(opening.log)
        log = cluster.find(opening.log)
        node.check_direct(log, direct_only=opening.direct_only)
        if not cluster.nodes[log.sequencer].works():
            raise LogUnavailable("the sequencer does not answer")
        node.sessions_opened += 1
        assert opening.producer_id, "every appender is a producer"
        if opening.unresolved:
            log.scan(opening.producer_id, opening.resolve_from)
        state = _State(log, opening)
        older = self._latest.get(opening.producer_id)
        if older is not None:
            older.over = True
        self._latest[opening.producer_id] = state
        segment = log.open_segment
        opened = log_pb2.AppendSessionOpened(
            sequencer=types_pb2.SequencerId(
                node_id=segment.sequencer, generation=segment.generation
            ),
            floor=log.tail,
            in_flight_batches_max=cluster.in_flight_batches_max,
            chain_version=log.chain_version,
            segment_index=segment.index,
        )
        moving = cluster.moving(log)
        await stream.send(log_pb2.AppendSessionResponse(opened=opened))
        try:
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(self._answer(stream, state))
                receiving = tasks.create_task(self._receive(stream, state))
                handed_over = tasks.create_task(moving.wait())
                await asyncio.wait(
                    {answering, receiving, handed_over}, return_when=asyncio.FIRST_COMPLETED
                )
                if handed_over.done():
                    await self._say_moved(stream, state, receiving, answering)
                elif not answering.done():
                    await answering
                for task in (answering, receiving, handed_over):
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def _say_moved(
        self,
        stream: Session,
        state: _State,
        receiving: asyncio.Task[None],
        answering: asyncio.Task[None],
    ) -> None:
        """The remaining results, then where to go, as the last message."""
        state.over = state.moved = True
        state.results.put_nowait(None)
        await answering
        segment = state.log.open_segment
        moved = log_pb2.SessionMoved(
            sequencer=types_pb2.SequencerId(
                node_id=segment.sequencer, generation=segment.generation
            ),
            address=self._cluster.nodes[segment.sequencer].address,
            chain_version=state.log.chain_version,
        )
        await stream.send(log_pb2.AppendSessionResponse(moved=moved))
        await asyncio.wait({receiving}, timeout=_LINGER_S)

    async def _receive(self, stream: Session, state: _State) -> None:
        node = self._node
        while (request := await stream.receive()) is not None:
            await node.running.wait()
            if state.moved:
                continue
            node.batches_received += 1
            state.unanswered += 1
            node.most_unanswered = max(node.most_unanswered, state.unanswered)
            state.results.put_nowait(await self._take(state, request.batch))
        state.results.put_nowait(None)

    async def _take(self, state: _State, batch: bytes) -> log_pb2.AppendResult:
        faults = self._node.faults
        if faults.drop_session_after is not None:
            faults.drop_session_after -= 1
            if faults.drop_session_after < 0:
                faults.drop_session_after = None
                if faults.admit_dropped:
                    await self._cluster.append(state.log, batch)
                raise Unreachable("dropped by the test")
        try:
            self._check(state, batch)
            error = faults.batch_errors.popleft() if faults.batch_errors else None
            if error is not None:
                raise error
            state.expected += parse_batch_header(batch).record_count
            first = await self._cluster.append(state.log, batch)
        except SharedLogError as refused:
            state.over = True
            return log_pb2.AppendResult(error=error_to_proto(refused))
        return log_pb2.AppendResult(first_offset=first, timestamp_ms=1)

    def _check(self, state: _State, batch: bytes) -> None:
        producer = parse_batch_header(batch).producer
        assert producer.producer_id == state.producer_id
        if self._latest.get(state.producer_id) is not state:
            raise ProducerFenced("a newer session of the producer has taken over")
        if state.log.open_segment.index != state.segment:
            raise NotSequencer("gone", sequencer_node_id=state.log.sequencer)
        if state.over:
            raise SequenceGap("the session has refused a batch")
        if producer.sequence != state.expected:
            raise SequenceGap(f"expected {state.expected}, got {producer.sequence}")

    async def _answer(self, stream: Session, state: _State) -> None:
        while True:
            ready = [await state.results.get()]
            await self._node.acks.wait()
            await self._node.running.wait()
            while not state.results.empty():
                ready.append(state.results.get_nowait())
            answer = [result for result in ready if result is not None]
            if answer:
                state.unanswered -= len(answer)
                await stream.send(log_pb2.AppendSessionResponse(results=answer))
            if ready[-1] is None:
                return
