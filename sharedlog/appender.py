"""Appends, pipelined: the shell around `append_queue.py`.

One task per appender opens sessions to the sequencer (`append_session.py`); callers of `append`
touch only the queue. The task begins with a batch and ends with the session, once nothing is left
to be sent: an idle appender is an object and nothing else.

Sessions. The first batch opens one; it stays open until the appender closes, or has had nothing to
send for a while: what the session was told of the log's tail grows old, and a batch that got lost
would have to be looked for from there on. It ends sooner if the client has too many idle ones
(`idle_sessions.py`). The next batch opens another. When one is lost, what
was in flight is sent again on the next one, which goes where `sequencer_path.py` says: to the
sequencer's own node, through another node, or, if the sequencer is suspect, wherever the report of
that leads to. A session that was moved is followed at once. No caller sees any of this before the
deadline of its batch.

A *named* producer keeps its place in the log over its own restarts. Its first session begins a new
life of it: that shuts out the life before, wherever it may still run, and tells where its records
go on. It is opened when the appender is entered, so that the caller knows `next_sequence` before
it appends; the others open theirs with the first batch.

The id of others is random. A session that is fenced therefore was fenced by an opening of our own
that arrived late, and another one is opened; if that happens again and again, somebody else must
have the id, and what is left fails.

Cost. `append` with room takes some 0.7 µs: no task, no future, no lock. It gives the event loop a
turn once per full batch, so that a caller's tight loop does not starve the session.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self, assert_never

from sharedlog.append_outcomes import is_refusal
from sharedlog.append_queue import AppendQueue
from sharedlog.append_session import (
    AppendSession,
    Bell,
    Ended,
    Lost,
    Moved,
    SessionEnd,
)
from sharedlog.attempts import Failure
from sharedlog.batch import BatchBuilder, Headers
from sharedlog.config import AppenderConfig
from sharedlog.connection import Connection
from sharedlog.control import check_producer_name, producer_id_of
from sharedlog.errors import (
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    ProducerFenced,
    ProtocolError,
    Purged,
    SharedLogError,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.pending import (
    AppendBatch,
    PendingAppend,
    checked_conditions,
    copy_error,
)
from sharedlog.record_checks import check_record
from sharedlog.route import Route
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.sequencer_path import SequencerPath, Stop
from sharedlog.v1 import log_pb2

log = logging.getLogger(__name__)

_DIRECT_OPEN_S: Final = 1.0  # for the first answer of the sequencer's own node
_FORWARDED_OPEN_S: Final = 5.0  # for that of a node that has to find the sequencer first
_END_TIMEOUT_S: Final = 1.0  # for the server's good-bye
_WARN_AFTER: Final = 5  # failed sessions in a row before it is said aloud
_FENCED_MAX: Final = 5  # sessions in a row that were fenced
_NO_BATCH: Final = AppendBatch(BatchBuilder(), opened_s=0.0, timeout_s=0.0)


class Appender:
    """Appends records to one log, in the order in which `append` returns.

    Use it as `async with log.appender() as appender`: leaving the block waits until everything is
    acknowledged. Safe for any number of tasks of one event loop.
    """

    def __init__(
        self,
        connection: Connection,
        route: Route,
        config: AppenderConfig,
        *,
        producer: str | None = None,
        fencing_token: str | None = None,
        create: bool = False,
        owner: object | None = None,
    ) -> None:
        """Use `Log.appender`, which says what the arguments mean."""
        self._connection = connection
        self._clock = connection.clock
        self._route = route
        self._config = config
        self._producer = producer
        self._queue = AppendQueue(
            config,
            producer_id=_producer_id(connection, config, producer),
            named=producer is not None,
            fencing_token=fencing_token,
        )
        self._life: asyncio.Future[None] | None = None  # who waits for a named producer's life
        self._create = create  # the log, if it does not exist
        # Who is to live as long as the task does; it refers to this appender, so not always.
        self._owner = None if owner is None else weakref.ref(owner)
        self._path = SequencerPath(connection, route, create=create)
        self._door = asyncio.Lock()  # callers that wait for room, in the order of their calls
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._work = Bell()  # the task sleeps on it
        self._room: asyncio.Future[None] | None = None  # the caller at the door sleeps on it
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = float("inf")
        self._session: AppendSession | None = None
        self._last_error: SharedLogError | None = None  # of the last session, if it got nowhere
        self._fenced = 0  # sessions in a row that ended so

    @property
    def config(self) -> AppenderConfig:
        """Its settings."""
        return self._config

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

    @property
    def next_sequence(self) -> int:
        """So many records the appender has sent; of a named producer, in all its lives.

        When its appender is entered these are in the log: go on with the record of this number.
        Once a record fails, all behind it do, and no more are taken, but for a failed condition.
        """
        return self._queue.next_sequence

    def append_at_once(self, values: Sequence[object], start: int) -> tuple[AppendBatch, range]:
        """Hand over `values[start:]` as far as they join the open batch: that, and their places.

        There may be none: `append` is for the one at which it stopped. For who hands over what
        others have gathered (`sharedlog.sync`): nothing is made for a record here.
        """
        queue = self._queue
        batch = queue.open
        return (_NO_BATCH, range(0)) if batch is None else (batch, queue.put_run(values, start))

    async def append_batch(
        self,
        builder: BatchBuilder,
        *,
        match_offset: int | None = None,
        fencing_token: str | None = None,
        set_fencing_token: str | None = None,
        timeout_s: float | None = None,
    ) -> AppendBatch:
        """Hand over a batch, to be appended as a whole: all its records, side by side, or none.

        `match_offset` and `fencing_token` as in `Log.append`. With `set_fencing_token` the log gets
        that token instead of the batch's one record.

        Raises:
            EmptyBatch, BatchTooLarge, InvalidArgument: as for `append`.
        """
        conditions = checked_conditions(match_offset, fencing_token, set_fencing_token)
        await self._wait_for_room()
        limit_s = self._config.timeout_s if timeout_s is None else timeout_s
        now_s = self._clock.monotonic_s()
        batch = self._queue.put_batch(
            builder, timeout_s=limit_s, now_s=now_s, conditions=conditions
        )
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

        **Cancellation:** the session is dropped; what is not cleared up ends as indefinite.
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
        """Drop the session at once: what none ever had fails definitely, the rest as indefinite."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        await self._stop()

    async def open(self) -> None:
        """Begin a named producer's life, as entering the appender does; others do nothing here.

        Raises:
            LogUnavailable, LogNotFound, Overloaded, ...: it got no session. The appender is closed.

        **Cancellation:** closes the appender.
        """
        if self._producer is not None and self._queue.epoch == 0:
            await self._begin_life()

    async def __aenter__(self) -> Self:
        await self.open()
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

    async def _begin_life(self) -> None:
        """Open the first session of a named producer, or say why it can't be had in time."""
        self._refuse_if_closed()
        life = self._life = asyncio.get_running_loop().create_future()
        self._start()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await life
        except TimeoutError as error:
            await self.abort()
            why = f": {self._last_error}" if self._last_error is not None else ""
            name, limit_s = self._route.name, self._config.timeout_s
            raise LogUnavailable(
                f"log {name}: producer {self._producer} got no session within {limit_s:g} s{why}"
            ) from (self._last_error or error)
        except BaseException:
            await self.abort()
            raise
        finally:
            self._life = None

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
        self._queue.refuse_if_stopped()

    def _on_new_batch(self, batch: AppendBatch) -> None:
        self._start()
        self._arm(batch.deadline_s)
        self._work.ring()

    def _start(self) -> None:
        if self._task is None:
            name = f"appender:{self._route.name}"
            self._task = asyncio.get_running_loop().create_task(self._run(), name=name)
            owner = None if self._owner is None else self._owner()
            self._connection.open_appenders[self] = owner

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
        if nothing_to_expect and self._session is not None:
            # A new session may find a sequencer that answers.
            self._session.give_up(Unreachable("no answer came before the deadline"))
        self._wake_caller()
        self._work.ring()
        deadline_s = self._queue.next_deadline_s()
        if deadline_s is not None:
            self._arm(deadline_s)

    # The task.

    async def _run(self) -> None:
        """Keep a session while there is something to send; the next batch begins anew."""
        try:
            while self._queue.has_unsent() or self._awaits_life():
                await self._one_session()
            # Nothing comes between the look and this: the next batch finds no task.
            self._task = None
            self._connection.open_appenders.pop(self, None)
        except Exception as error:  # the task's root: the records must not wait for ever
            log.exception("appender.broken", extra={"log": self._route.name})
            self._closing = True
            self._fail_all(ProtocolError(f"the appender failed: {error!r}"))

    def _awaits_life(self) -> bool:
        """A named producer's first session is wanted, whether or not anything is to be sent."""
        return self._life is not None and not self._life.done()

    async def _one_session(self) -> None:
        """Open a session, use it until it ends, and do what its end calls for."""
        try:
            stop = await self._path.next_stop()
        except SharedLogError as error:
            await self._after_loss(Lost("refused", error), Stop("", direct=False))
            return
        stream = self._connection.transport.stream(stop.address, APPEND_SESSION)
        session = AppendSession(
            stream,
            self._queue,
            self,
            self._clock,
            self._work,
            idle=self._connection.idle_sessions,
            peer=self._connection.peers.at(stop.address),
            direct=stop.direct,
        )
        self._session = session
        try:
            end = await self._open_and_run(session, stop)
        finally:
            self._session = None
            stream.cancel()
        match end:
            case Ended():
                self._queue.on_session_moved()
            case Moved():
                self._queue.on_session_moved()
                self._route.learn_version(end.chain_version)
                self._path.attempts.on_moved(end.address)
                fields = {"log": self._route.name, "address": end.address}
                log.debug("appender.session_moved", extra=fields)
                self._wake_caller()
                await self._clock.sleep(self._path.attempts.wait_s(None))
            case Lost():
                await self._after_loss(end, stop)
            case _:
                assert_never(end)

    async def _open_and_run(self, session: AppendSession, stop: Stop) -> SessionEnd:
        queue, name = self._queue, self._route.name
        async with self._connection.peers.at(stop.address).openings.take():
            opened = await self._open(session, stop)
        if not isinstance(opened, log_pb2.AppendSessionOpened):
            return opened
        if opened.batch_bytes_max:
            queue.batch_bytes = min(self._config.batch_bytes, opened.batch_bytes_max)
        if opened.in_flight_bytes_max:
            most = min(self._config.in_flight_bytes, opened.in_flight_bytes_max)
            queue.in_flight_bytes_max = most
        if self._producer is not None and queue.epoch == 0:
            queue.on_life(opened.producer_epoch, opened.next_sequence)
        if self._life is not None and not self._life.done():
            self._life.set_result(None)
        queue.on_opened(
            floor=Offset(opened.floor),
            segment_index=opened.segment_index,
            batches_max=opened.in_flight_batches_max,
        )
        self._route.learn_version(opened.chain_version)
        fields = {"log": name, "sequencer": opened.sequencer.node_id}
        log.debug("appender.session_opened", extra=fields)
        silence_s, idle_s = self._path.limit_s(self._config.silence_s), self._config.idle_s
        return await session.run(f"appender-sender:{name}", silence_s=silence_s, idle_s=idle_s)

    async def _open(
        self, session: AppendSession, stop: Stop
    ) -> log_pb2.AppendSessionOpened | Moved | Lost:
        batches = self._queue.opening()
        opening = log_pb2.AppendSessionOpen(
            log=self._route.name,
            direct_only=stop.direct,
            producer_id=self._queue.producer_id,
            next_sequence=batches.next_sequence,
            unresolved=batches.unresolved,
            resolve_from=batches.resolve_from,
            resolve_segment=batches.resolve_segment,
            min_chain_version=self._route.version,
            producer_name=self._producer or "",
            producer_epoch=self._queue.epoch,
            create=self._create,
        )
        fields = {"log": self._route.name, "address": stop.address, "opening": batches}
        log.debug("appender.session_opens", extra=fields)
        limit_s = _DIRECT_OPEN_S if stop.direct else _FORWARDED_OPEN_S
        return await session.open(opening, limit_s=self._path.limit_s(limit_s))

    async def _after_loss(self, end: Lost, stop: Stop) -> None:
        """The session is lost: settle what it held, and do what leads to a better one."""
        error = end.error
        unresolved = self._queue.on_session_lost()
        if end.by_result and not is_refusal(error) and error.outcome == "definite":
            self._wake_caller()
            return  # one batch failed for good; the others need a new session and nothing else
        if isinstance(error, Purged) and self._queue.fail_unresolved(error):
            self._wake_caller()
            return  # likewise: what it could have repeated nobody can look for any more
        self._last_error = error
        attempt = self._path.attempts.failures + 1
        fields = {
            "log": self._route.name,
            "error": str(error),
            "kind": end.kind,
            "unresolved_batches": unresolved,
            "attempt": attempt,
        }
        level = logging.WARNING if attempt == _WARN_AFTER else logging.DEBUG
        log.log(level, "appender.session_lost", extra=fields)
        self._fenced = self._fenced + 1 if isinstance(error, ProducerFenced) else 0
        hopeless = isinstance(error, InvalidArgument | LogNotFound) or self._fenced > _FENCED_MAX
        if isinstance(error, ProducerFenced) and error.life is not None:
            hopeless = True  # the producer lives elsewhere now
        if hopeless:
            self._queue.fail_unsent(error)
            if self._life is not None and not self._life.done():
                self._life.set_exception(copy_error(error))
        self._wake_caller()
        if self._queue.has_unsent() or self._awaits_life():
            await self._path.after(Failure(end.kind, error, stop.address, stop.direct))

    # What the session asks and tells (`SessionOwner`).

    def is_closing(self) -> bool:
        """See `SessionOwner.is_closing`."""
        return self._closing

    def on_progress(self) -> None:
        """See `SessionOwner.on_progress`."""
        self._path.attempts.on_progress()
        self._last_error = None
        self._fenced = 0

    def on_sent(self) -> None:
        """See `SessionOwner.on_sent`."""
        self._wake_caller()

    # The end.

    async def _settle(self) -> None:
        """Wait until every batch that is there now has its outcome."""
        self._queue.cut()
        self._work.ring()
        for batch in list(self._queue.pending()):
            await batch.wait()

    async def _stop(self) -> None:
        """End the task; whatever is left then fails."""
        task, self._task = self._task, None
        if task is not None:
            self._connection.open_appenders.pop(self, None)
            self._work.ring()
            try:
                await asyncio.wait({task}, timeout=_END_TIMEOUT_S)
            finally:
                task.cancel()
            await asyncio.wait({task})
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail_all(InvalidArgument("the appender was closed before this was in the log"))

    def _fail_all(self, error: SharedLogError) -> None:
        self._queue.end(error)
        self._wake_caller()


def _producer_id(connection: Connection, config: AppenderConfig, producer: str | None) -> int:
    """That of the name, or random; 0, which says that there is no producer, if nothing is repeated.

    Raises:
        InvalidArgument: the name can't be, or it is to repeat nothing.
    """
    if producer is not None:
        check_producer_name(producer)
        if not config.exactly_once:
            raise InvalidArgument("a named producer's batches are repeated: exactly_once is on")
        return producer_id_of(producer)
    return (connection.rng.getrandbits(64) or 1) if config.exactly_once else 0
