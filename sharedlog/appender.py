"""Appends, pipelined: the shell around `append_queue.py`.

One task per appender opens sessions to the sequencer, sends what the queue hands out and takes the
answers; callers of `append` touch only the queue. The task sleeps when nothing is to be done.

Sessions. The first batch opens one; it stays open until the appender closes. When it is lost, what
was in flight ends as `AppendIndefinite`, the route is fetched anew and, after a wait that grows
from attempt to attempt, what was not yet sent goes out on the next session. A smart client goes
straight to the sequencer's node; if it can't reach that node twice in a row it asks any other to
forward.

Cost. `append` with room takes some 0.7 µs: no task, no future, no lock. It gives the event loop a
turn once per full batch, so that a caller's tight loop does not starve the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from sharedlog.append_queue import AppendQueue
from sharedlog.batch import BatchBuilder, Headers
from sharedlog.config import AppenderConfig
from sharedlog.connection import Connection
from sharedlog.errors import (
    AppendIndefinite,
    InvalidArgument,
    LogNotFound,
    NotSequencer,
    Overloaded,
    ProtocolError,
    SharedLogError,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.pending import AppendBatch, PendingAppend
from sharedlog.route import Route
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1 import log_pb2

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S: Final = 5.0  # for the first answer on a new session
_END_TIMEOUT_S: Final = 1.0  # for the server's good-bye
_FORWARD_AFTER: Final = 2  # failures to reach the sequencer's node before another is to forward
_WARN_AFTER: Final = 5  # failed sessions in a row before it is said aloud

_Stream = ClientStream[log_pb2.AppendSessionRequest, log_pb2.AppendSessionResponse]


class Appender:
    """Appends records to one log, in the order in which `append` returns.

    Use it as `async with log.appender() as appender`: leaving the block waits until everything is
    acknowledged. Safe for any number of tasks of one event loop.
    """

    def __init__(self, connection: Connection, route: Route, config: AppenderConfig) -> None:
        self._connection = connection
        self._clock = connection.clock
        self._route = route
        self._config = config
        self._queue = AppendQueue(config)
        self._backoff = connection.backoff()
        self._door = asyncio.Lock()  # callers that wait for room, in the order of their calls
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._work: asyncio.Future[None] | None = None  # the sender sleeps on it
        self._room: asyncio.Future[None] | None = None  # the caller at the door sleeps on it
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = float("inf")
        self._stream: _Stream | None = None
        self._abandoned = False  # the present session is being given up: nothing more is sent on it
        self._last_error: SharedLogError | None = None  # why there was no session last time
        self._named: str | None = None  # the node that another one said is the sequencer
        self._unreachable = 0  # failures in a row to reach the sequencer's node
        self._failures = 0  # sessions lost in a row, none of which had answered anything

    async def append(
        self, value: bytes, key: bytes | None = None, headers: Headers | None = None
    ) -> PendingAppend:
        """Hand over a record. Returns once there is room for it, long before it is in the log.

        Raises:
            RecordTooLarge, InvalidArgument: the record can't be appended, or the appender is
            closed.

        **Cancellation:** while it waits for room, the record is not appended. Once it has returned,
        nothing stops the write.
        """
        queue = self._queue
        if value.__class__ is bytes and len(value) < queue.room and key is None and not headers:
            return queue.put_plain(value)
        return await self._append(value, key, headers, self._config.timeout_s)

    async def append_many(self, values: Iterable[bytes]) -> list[PendingAppend]:
        """Hand over many records; the same as `append` for each, at less cost.

        **Cancellation:** those already handed over are appended.
        """
        queue = self._queue
        timeout_s = self._config.timeout_s
        pending: list[PendingAppend] = []
        for value in values:
            if value.__class__ is bytes and len(value) < queue.room:
                pending.append(queue.put_plain(value))
            else:
                pending.append(await self._append(value, None, None, timeout_s))
        return pending

    async def append_batch(
        self, builder: BatchBuilder, *, timeout_s: float | None = None
    ) -> AppendBatch:
        """Hand over a batch, to be appended as a whole: all its records, side by side, or none.

        Raises:
            EmptyBatch, BatchTooLarge, InvalidArgument: as for `append`.
        """
        await self._wait_for_room()
        limit_s = self._config.timeout_s if timeout_s is None else timeout_s
        now_s = self._clock.monotonic_s()
        batch = self._queue.put_batch(builder, timeout_s=limit_s, now_s=now_s)
        self._on_new_batch(batch)
        return batch

    async def append_within(
        self, value: bytes, key: bytes | None, headers: Headers | None, *, timeout_s: float
    ) -> PendingAppend:
        """`append` with a time limit of its own."""
        return await self._append(value, key, headers, timeout_s)

    async def flush(self) -> None:
        """Wait until all that was handed over before this call is in the log, or failed.

        Raises:
            SharedLogError: the first failure that nobody has seen yet, from `await pending` or
            otherwise.

        **Cancellation:** stops the wait, not the writes.
        """
        await self._settle()
        error = self._queue.take_failure()
        if error is not None:
            raise error

    async def close(self) -> None:
        """Take no more records, `flush`, end the session. Idempotent; raises what `flush` raises.

        **Cancellation:** the session is dropped; what was in flight ends as indefinite.
        """
        self._closing = True
        self._queue.room = 0
        try:
            await self._settle()
        finally:
            await self._stop()
        error = self._queue.take_failure()
        if error is not None:
            raise error

    async def abort(self) -> None:
        """Drop the session at once: unsent records fail definitely, others as indefinite."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        await self._stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        elif isinstance(error, Exception):
            # What was handed over is still written, but the caller's own error matters more.
            try:
                await self.close()
            except SharedLogError as failure:
                log.warning("appender.failed", extra={"error": str(failure)})
        else:
            await self.abort()

    # Admission.

    async def _append(
        self, value: bytes, key: bytes | None, headers: Headers | None, timeout_s: float
    ) -> PendingAppend:
        check_record(value, key, headers)
        queue = self._queue
        if (
            self._closing
            or queue.callers_waiting
            or not queue.fits(value, key, headers, timeout_s=timeout_s)
        ):
            await self._wait_for_room()
        open_before = queue.open
        now_s = self._clock.monotonic_s()
        pending = queue.put(value, key, headers, timeout_s=timeout_s, now_s=now_s)
        if queue.open is not open_before and queue.open is not None:
            self._on_new_batch(queue.open)
        return pending

    async def _wait_for_room(self) -> None:
        """Wait, after those who came before, until a further batch may be opened."""
        self._refuse_if_closed()
        queue = self._queue
        queue.hold_door(+1)
        try:
            async with self._door:
                if queue.waiting:
                    await self._clock.sleep(0)  # a turn for the session: a full batch is to be sent
                while queue.is_full():
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        finally:
            queue.hold_door(-1)
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self._closing:
            raise InvalidArgument("the appender is closed")

    def _on_new_batch(self, batch: AppendBatch) -> None:
        if self._task is None:
            name = f"appender:{self._route.name}"
            self._task = asyncio.get_running_loop().create_task(self._run(), name=name)
            self._connection.open_appenders.add(self)
        self._arm(batch.deadline_s)
        self._wake_sender()

    def _wake_sender(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    def _wake_caller(self) -> None:
        if self._room is not None and not self._room.done() and not self._queue.is_full():
            self._room.set_result(None)

    # Deadlines. One timer, armed for the earliest; it is left alone when that batch ends in time.

    def _arm(self, deadline_s: float) -> None:
        if deadline_s < self._timer_at_s:
            if self._timer is not None:
                self._timer.cancel()
            delay_s = max(0.0, deadline_s - self._clock.monotonic_s())
            self._timer_at_s = deadline_s
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at_s = float("inf")
        nothing_to_expect = self._queue.on_time(self._clock.monotonic_s(), self._last_error)
        if nothing_to_expect and self._stream is not None:
            self._abandoned = True
            self._stream.cancel()  # a new session may find a sequencer that answers
        self._wake_caller()
        self._wake_sender()
        deadline_s = self._queue.next_deadline_s()
        if deadline_s is not None:
            self._arm(deadline_s)

    # The task.

    async def _run(self) -> None:
        """Keep a session while there is something to send; return when closed and done."""
        try:
            while True:
                while not self._queue.has_unsent():
                    if self._closing:
                        return
                    await self._sleep_until_work()
                error = await self._one_session()
                if error is not None:
                    await self._after_failure(error)
        except Exception as error:  # the task's root: the records must not wait for ever
            log.exception("appender.broken", extra={"log": self._route.name})
            self._closing = True
            self._fail_all(ProtocolError(f"the appender failed: {error!r}"))

    async def _one_session(self) -> SharedLogError | None:
        """Open a session and use it until it is lost; None if it was closed in good order."""
        stream: _Stream | None = None
        try:
            address, direct = await self._find_session_address()
            stream = self._connection.transport.stream(address, APPEND_SESSION)
            self._stream = stream
            self._abandoned = False
            await self._open_session(stream, direct=direct)
            self._unreachable = 0
            return await self._pump(stream)
        except Unreachable as error:
            self._unreachable += 1
            return error
        except SharedLogError as error:
            return error
        finally:
            self._stream = None
            if stream is not None:
                stream.cancel()

    async def _find_session_address(self) -> tuple[str, bool]:
        """Where to open the next session, and whether that must be the sequencer's own node."""
        if self._connection.smart and self._unreachable < _FORWARD_AFTER:
            refresh = self._last_error is not None
            address = await self._route.sequencer_address(refresh=refresh, named=self._named)
            self._named = None
            if address:
                return address, True
        address = self._connection.address()
        self._connection.avoid(address)  # so that the next attempt tries another
        self._unreachable = 0
        return address, False

    async def _open_session(self, stream: _Stream, *, direct: bool) -> None:
        opening = log_pb2.AppendSessionOpen(log=self._route.name, direct_only=direct)
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                await stream.send(log_pb2.AppendSessionRequest(open=opening))
                answer = await stream.receive()
        except TimeoutError as error:
            raise Unreachable("the node took the connection but opened no session") from error
        if answer is None or not answer.HasField("opened"):
            raise ProtocolError("the session's first answer does not open it")
        opened, queue = answer.opened, self._queue
        if opened.batch_bytes_max:
            queue.batch_bytes = min(self._config.batch_bytes, opened.batch_bytes_max)
        if opened.in_flight_bytes_max:
            most = min(self._config.in_flight_bytes, opened.in_flight_bytes_max)
            queue.in_flight_bytes_max = most
        fields = {"log": self._route.name, "sequencer": opened.sequencer.node_id}
        log.debug("appender.session_opened", extra=fields)

    async def _pump(self, stream: _Stream) -> SharedLogError | None:
        """Send and take answers until the session ends; why, or None if it was closed well."""
        async with asyncio.TaskGroup() as tasks:
            name = f"appender-sender:{self._route.name}"
            sender = tasks.create_task(self._send_batches(stream), name=name)
            error = await self._take_answers(stream)
            sender.cancel()
        failed = None if sender.cancelled() else sender.result()
        return failed or error

    async def _send_batches(self, stream: _Stream) -> SharedLogError | None:
        """Send until closed; an error is returned, for the stream's reader ends with it too."""
        queue, clock = self._queue, self._clock
        try:
            while True:
                batch = None if self._abandoned else queue.next_to_send(clock.monotonic_s())
                if batch is not None:
                    message = log_pb2.AppendSessionRequest(batch=batch.data)
                    if len(batch.builder):  # should it be refused, it is encoded again
                        batch.data = b""
                    self._wake_caller()
                    await stream.send(message)
                elif self._closing and not queue.has_unsent() and not queue.sent:
                    await stream.end()
                    return None
                else:
                    await self._sleep_until_work()
        except SharedLogError as error:
            stream.cancel()
            return error

    async def _sleep_until_work(self) -> None:
        loop = asyncio.get_running_loop()
        self._work = loop.create_future()
        linger_s = self._queue.linger_s(self._clock.monotonic_s())
        timer = None if linger_s is None else loop.call_later(linger_s, self._wake_sender)
        try:
            await self._work
        finally:
            self._work = None
            if timer is not None:
                timer.cancel()

    async def _take_answers(self, stream: _Stream) -> SharedLogError | None:
        """Resolve batches until the session ends; why, or None if it was closed well."""
        queue = self._queue
        try:
            while True:
                answer = await stream.receive()
                if answer is None:
                    good = self._closing and not queue.sent and not queue.has_unsent()
                    return None if good else Unreachable("the node ended the session")
                for result in answer.results:
                    refused = result.HasField("error")
                    error = error_from_proto(result.error) if refused else None
                    queue.on_result(Offset(result.first_offset), error)
                    if error is None:
                        self._failures = 0
                        self._backoff.reset()
                        self._last_error = None
                if queue.refused and not queue.sent:
                    return queue.refused[-1][1]
                self._wake_sender()
        except SharedLogError as error:
            return error

    async def _after_failure(self, error: SharedLogError) -> None:
        """The session is lost: settle what it held, then wait before the next."""
        lost = self._queue.on_session_lost(error)
        self._last_error = error
        self._failures += 1
        loud = self._failures == _WARN_AFTER
        fields = {
            "log": self._route.name,
            "error": str(error),
            "indefinite_batches": lost,
            "attempt": self._failures,
        }
        log.log(logging.WARNING if loud else logging.DEBUG, "appender.session_lost", extra=fields)
        if isinstance(error, NotSequencer):
            self._named = error.sequencer_node_id
        if isinstance(error, InvalidArgument | LogNotFound):
            self._queue.fail_unsent(error)
        self._wake_caller()
        if not self._queue.has_unsent():
            return
        wait_s = self._backoff.next_s()
        if isinstance(error, Overloaded):
            wait_s = max(wait_s, error.retry_after_s)
        await self._clock.sleep(wait_s)

    # The end.

    async def _settle(self) -> None:
        """Wait until every batch that is there now has its outcome."""
        self._queue.cut()
        self._wake_sender()
        for batch in list(self._queue.pending()):
            await batch.wait()

    async def _stop(self) -> None:
        """End the task; whatever is left then fails."""
        task, self._task = self._task, None
        if task is not None:
            self._connection.open_appenders.discard(self)
            self._wake_sender()
            try:
                await asyncio.wait({task}, timeout=_END_TIMEOUT_S)
            finally:
                task.cancel()
            await asyncio.wait({task})
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail_all(AppendIndefinite("the appender was closed before the answer came"))

    def _fail_all(self, error: SharedLogError) -> None:
        self._queue.on_session_lost(error)
        self._queue.fail_unsent(InvalidArgument("the appender was closed before this was sent"))
        self._wake_caller()


def check_record(value: object, key: object, headers: Headers | None) -> None:
    """Refuse what is not bytes: found later, it would take its whole batch down.

    Other buffers are refused too: their owner may change them while they wait.

    Raises:
        InvalidArgument: says which part has which type.
    """
    if not isinstance(value, bytes):
        raise InvalidArgument(f"a record's value is bytes, not {type(value).__name__}")
    if key is not None and not isinstance(key, bytes):
        raise InvalidArgument(f"a record's key is bytes, not {type(key).__name__}")
    if headers:
        for name, content in headers.items():
            if not isinstance(name, str) or not isinstance(content, bytes):
                raise InvalidArgument("a record's headers map names (str) to values (bytes)")
