"""One append session: batches in with back-pressure, results out in order.

A slot is made for each batch in the order of arrival and filled when its outcome is known; the
sender takes filled slots from the front. So results leave in order however they come about, and
what a client that does not read its results can make this process keep is bounded: its session is
read only while its unanswered bytes are below the bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from sequencer.core import InFlight
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset, SequencerId
from sharedlog.limits import BATCH_BYTES_MAX
from sharedlog.rpc.errors import error_to_proto
from sharedlog.rpc.transport import ServerStream
from sharedlog.tasks import first_error
from sharedlog.v1 import log_pb2, types_pb2

SessionStream = ServerStream[log_pb2.AppendSessionResponse, log_pb2.AppendSessionRequest]
_RESULTS_PER_MESSAGE_MAX = 4_096
BATCH_COST_BYTES_MIN: Final = 512
"""What a batch in flight counts at least, however small: its own objects take memory too."""


class SessionSlot:
    """A batch of a session, from its arrival to its result. The ticket of the sequencer's core."""

    __slots__ = ("_session", "error", "first", "size", "timestamp_ms")

    def __init__(self, session: AppendSession, size: int) -> None:
        self._session = session
        self.size = size
        self.first: Offset | None = None  # set: committed
        self.timestamp_ms = 0
        self.error: SharedLogError | None = None  # set: failed

    def committed(self, batch: InFlight) -> None:
        """The batch is on a write quorum."""
        self.first = batch.first
        self.timestamp_ms = batch.timestamp_ms
        self._session.wake()

    def failed(self, error: SharedLogError) -> None:
        """The batch was refused, or its outcome is unknown."""
        self.error = error
        self._session.wake()


class AppendSession:
    """Serves one stream; `submit` admits a batch or raises."""

    def __init__(
        self,
        stream: SessionStream,
        *,
        me: SequencerId,
        bytes_max: int,
        submit: Callable[[bytes, SessionSlot], None],
        wait_for_room: Callable[[], asyncio.Future[None] | None],
    ) -> None:
        self._stream = stream
        self._me = me
        self._bytes_max = bytes_max
        self._submit = submit
        self._wait_for_room = wait_for_room
        self._slots: deque[SessionSlot] = deque()
        self._unanswered_bytes = 0
        self._results = asyncio.Event()  # the front slot may be filled, or the input has ended
        self._room = asyncio.Event()
        self._input_ended = False

    def wake(self) -> None:
        """A slot was filled."""
        self._results.set()

    async def run(self) -> None:
        """Until the client has ended its side and has every result.

        Raises:
            Unreachable: the client went away; what it sent goes on.
        """
        opened = log_pb2.AppendSessionOpened(
            sequencer=types_pb2.SequencerId(
                node_id=self._me.node_id, generation=self._me.generation
            ),
            batch_bytes_max=BATCH_BYTES_MAX,
            in_flight_bytes_max=self._bytes_max,
        )
        await self._stream.send(log_pb2.AppendSessionResponse(opened=opened))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(), name="append-session-receive")
                tasks.create_task(self._send(), name="append-session-send")
        except ExceptionGroup as group:
            raise first_error(group) from group

    async def _receive(self) -> None:
        while (request := await self._stream.receive()) is not None:
            batch = request.batch
            slot = SessionSlot(self, max(len(batch), BATCH_COST_BYTES_MIN))
            self._slots.append(slot)
            self._unanswered_bytes += slot.size
            try:
                self._submit(batch, slot)
            except SharedLogError as error:
                slot.failed(error)
            while self._unanswered_bytes > self._bytes_max:
                self._room.clear()
                await self._room.wait()
            while (room := self._wait_for_room()) is not None:
                # Shared by all sessions: one that is cancelled must not cancel it for the others.
                await asyncio.shield(room)
        self._input_ended = True
        self._results.set()

    async def _send(self) -> None:
        while self._slots or not self._input_ended:
            await self._results.wait()
            self._results.clear()
            while results := self._take_results():
                await self._stream.send(log_pb2.AppendSessionResponse(results=results))

    def _take_results(self) -> list[log_pb2.AppendResult]:
        results: list[log_pb2.AppendResult] = []
        slots = self._slots
        while slots and len(results) < _RESULTS_PER_MESSAGE_MAX:
            slot = slots[0]
            if slot.first is not None:
                results.append(
                    log_pb2.AppendResult(first_offset=slot.first, timestamp_ms=slot.timestamp_ms)
                )
            elif slot.error is not None:
                results.append(log_pb2.AppendResult(error=error_to_proto(slot.error)))
            else:
                break
            slots.popleft()
            self._unanswered_bytes -= slot.size
        if results:
            self._room.set()
        return results
