"""One append session: batches in with back-pressure, results out in order.

A slot is made for each batch in the order of arrival and filled when its outcome is known; the
sender takes filled slots from the front. So results leave in order however they come about, and
what a client that does not read its results can make this process keep is bounded: its session is
read only while its unanswered batches and bytes are below their bounds.

A batch that was received while its log admits nothing is not submitted before the log does again.
When another process orders the log from now on, the session sends the results that there are and
then `moved`, which says that whatever had no result was never admitted: at that moment every batch
that was submitted has its outcome, or is known not to be in the log. The client may be sending all
the while. Were the stream to end under its hands, its transport could throw away what it has not
read yet, so the session goes on reading, to no effect, until the client has left, for a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from sequencer.core import InFlight
from sequencer.producers import REMEMBERED_MAX, Remembered
from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.ids import Offset
from sharedlog.rpc.errors import error_to_proto
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import ServerStream
from sharedlog.tasks import first_error
from sharedlog.v1 import log_pb2

SessionStream = ServerStream[log_pb2.AppendSessionResponse, SessionRequest]
_RESULTS_PER_MESSAGE_MAX = 4_096
_LINGER_S: Final = 0.25  # for the client to read `moved` and leave
BATCH_COST_BYTES_MIN: Final = 512
"""What a batch in flight counts at least, however small: its own objects take memory too."""


class SessionSlot:
    """A batch of a session, from its arrival to its result. The ticket of the sequencer's core."""

    __slots__ = ("error", "first", "session", "size", "timestamp_ms")

    def __init__(self, session: AppendSession, size: int) -> None:
        self.session = session
        self.size = size
        self.first: Offset | None = None  # set: committed
        self.timestamp_ms = 0
        self.error: SharedLogError | None = None  # set: failed

    def committed(self, batch: InFlight | Remembered) -> None:
        """The batch is on a write quorum."""
        self.first = batch.first
        self.timestamp_ms = batch.timestamp_ms
        self.session.wake()

    def failed(self, error: SharedLogError) -> None:
        """The batch was refused, or its outcome is unknown."""
        self.error = error
        self.session.wake()

    def dropped(self) -> None:
        """The batch is not in the log and never will be: it gets no result, but `moved`."""


class AppendSession:
    """Serves one stream; `submit` admits the batch of a request or raises.

    While `gate` returns a future nothing may be submitted; while `wait_for_room` returns one,
    nothing more is read.
    """

    def __init__(
        self,
        stream: SessionStream,
        *,
        opened: log_pb2.AppendSessionOpened,
        submit: Callable[[SessionRequest, SessionSlot], None],
        gate: Callable[[], asyncio.Future[None] | None],
        wait_for_room: Callable[[], asyncio.Future[None] | None],
    ) -> None:
        self._stream = stream
        self._opened = opened
        self._bytes_max = opened.in_flight_bytes_max
        self._submit = submit
        self._gate = gate
        self._wait_for_room = wait_for_room
        # Invariant: at most REMEMBERED_MAX of them.
        self._slots: deque[SessionSlot] = deque()
        self._unanswered_bytes = 0
        self._results = asyncio.Event()  # the front slot may be filled, or the session may end
        self._room = asyncio.Event()
        self._input_ended = False
        self._ending = False  # nothing more is submitted
        self._moved: log_pb2.SessionMoved | None = None
        self._error: SharedLogError | None = None  # how the session ends, before its client does
        self._flush = False  # but only once every batch has its result

    @property
    def settled(self) -> bool:
        """The client has ended its side and was sent every result."""
        return self._input_ended and not self._slots

    def wake(self) -> None:
        """A slot was filled."""
        self._results.set()

    def end_moved(self, moved: log_pb2.SessionMoved) -> None:
        """End well, with the results that there are and then this."""
        self._ending = True
        self._moved = moved
        self._results.set()
        self._room.set()

    def end(self, error: SharedLogError, *, flush: bool = False) -> None:
        """End with this error after the results that there are; with `flush`, after all of them."""
        self._ending = True
        if self._error is None or not flush:
            self._error, self._flush = error, flush
        self._results.set()

    async def run(self) -> None:
        """Until the client has ended its side and has every result, or the session is ended.

        Raises:
            Unreachable: the client went away; what it sent goes on.
            SharedLogError: what `end` was given.
        """
        await self._stream.send(log_pb2.AppendSessionResponse(opened=self._opened))
        said_all = False
        try:
            async with asyncio.TaskGroup() as tasks:
                receiving = tasks.create_task(self._receive(), name="append-session-receive")
                await self._send()
                if self._moved is not None:
                    said_all = True
                    await asyncio.wait({receiving}, timeout=_LINGER_S)
                receiving.cancel()
        except ExceptionGroup as group:
            error = first_error(group)
            if not (said_all and isinstance(error, Unreachable)):  # the client has left, as it may
                raise error from group

    async def _receive(self) -> None:
        while (request := await self._stream.receive()) is not None:
            while (gate := self._gate()) is not None and not self._ending:
                # Shared by all sessions: one that is cancelled must not cancel it for the others.
                await asyncio.shield(gate)
            if self._ending:
                if self._moved is None:
                    return
                continue
            self._take(request)
            while self._full() and not self._ending:
                self._room.clear()
                await self._room.wait()
            while (room := self._wait_for_room()) is not None and not self._ending:
                await asyncio.shield(room)
        self._input_ended = True
        self._results.set()

    def _take(self, request: SessionRequest) -> None:
        slot = SessionSlot(self, max(len(request.batch), BATCH_COST_BYTES_MIN))
        self._slots.append(slot)
        self._unanswered_bytes += slot.size
        try:
            self._submit(request, slot)
        except SharedLogError as error:
            slot.failed(error)

    def _full(self) -> bool:
        return self._unanswered_bytes > self._bytes_max or len(self._slots) >= REMEMBERED_MAX

    async def _send(self) -> None:
        while not self._over():
            await self._results.wait()
            self._results.clear()
            while results := self._take_results():
                await self._stream.send(log_pb2.AppendSessionResponse(results=results))
        if self._moved is not None:
            await self._stream.send(log_pb2.AppendSessionResponse(moved=self._moved))
        elif self._error is not None:
            raise self._error

    def _over(self) -> bool:
        """Nothing more is to be sent but how it ends. Only true when no result is ready."""
        if self._slots and (self._slots[0].first is not None or self._slots[0].error is not None):
            return False
        if self._moved is not None:
            return True
        if self._error is not None:
            return not (self._flush and self._slots)
        return self.settled

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
