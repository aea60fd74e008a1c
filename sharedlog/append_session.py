"""One append session of the client: opened, used until it ends, and how it ended.

It sends what the queue hands out and tells the queue what is answered; `appender.py` decides where
the next session goes and what becomes of that which this one has not answered.

Every wait has a limit. A connection to a process that is paused, or cut off, stays connected for a
long time, so the session watches for silence itself: answers are due, and nothing has come for a
while. A timer that comes late says that this process was paused, not the peer; it is set again. So
it is while the peer speaks to other sessions of this client, which shows that it is neither paused
nor cut off, and while one of them has it looked into (`peer.py`); but not for ever, and not if the
session is forwarded, for then the peer is not the one that answers are due from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sharedlog.append_queue import AppendQueue
from sharedlog.attempts import FailureKind
from sharedlog.clock import Clock
from sharedlog.errors import ProtocolError, SharedLogError, Unreachable
from sharedlog.idle_sessions import IdleSessions
from sharedlog.ids import Offset
from sharedlog.peer import Peer
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1 import log_pb2

AppendStream = ClientStream[SessionRequest, log_pb2.AppendSessionResponse]

_GOOD_BYE_S: Final = 1.0  # for the node to end its side once we have ended ours
_DRAIN_S: Final = 0.2  # for what the node had said before the connection took nothing more
_LATE: Final = 0.25  # of the limit: a timer that is later did not measure the peer
_SCOUT_POLL_S: Final = 0.1  # while another session has the peer looked into


@dataclass(frozen=True, slots=True)
class Ended:
    """It has answered all that it had; it was closed, or the next batch needs a new session."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What it has not answered it has never admitted; another process orders the log."""

    address: str  # "" if the node did not know it
    chain_version: int


@dataclass(frozen=True, slots=True)
class Lost:
    """It broke, fell silent, or refused a batch."""

    kind: FailureKind
    error: SharedLogError
    by_result: bool = False  # the error is that of one batch; the queue has dealt with it


SessionEnd = Ended | Moved | Lost


class Bell:
    """Wakes the one task that waits for it; rung while nobody waits, it does nothing."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake who waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Until it rings, or the time is up. **Cancellation:** ends the wait."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self.ring)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


class SilenceWatch:
    """Calls `on_silence` once answers have been due for `limit_s` and nothing was heard.

    `peer`, if given, is who they are due from: while others hear of it, it has longer. One timer,
    set again when it fires: nothing is done per message but to note the time.
    """

    def __init__(
        self,
        clock: Clock,
        limit_s: float,
        *,
        due: Callable[[], bool],
        on_silence: Callable[[], None],
        peer: Peer | None = None,
    ) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._due = due
        self._on_silence = on_silence
        self._peer = peer
        self._since_s = 0.0  # heard from, or nothing was due before
        self._timer: asyncio.TimerHandle | None = None
        self._expected_s = 0.0

    def heard(self) -> None:
        """A message came, or an answer is due where none was."""
        self._since_s = self._clock.monotonic_s()
        if self._timer is None and self._due():
            self._arm(self._since_s + self._limit_s, self._since_s)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at_s: float, now_s: float) -> None:
        self._expected_s = at_s
        delay_s = max(0.0, at_s - now_s)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._due():
            return
        now_s, peer = self._clock.monotonic_s(), self._peer
        if now_s > self._expected_s + _LATE * self._limit_s:
            self._since_s = now_s
        limit_s = self._limit_s if peer is None else peer.limit_s(self._limit_s, now_s)
        if now_s < self._since_s + limit_s:
            self._arm(self._since_s + limit_s, now_s)
        elif peer is not None and peer.is_busy(self._since_s, limit_s, now_s):
            self._arm(peer.heard_s + limit_s, now_s)
        elif peer is not None and peer.must_wait(now_s):
            self._arm(now_s + _SCOUT_POLL_S, now_s)
        else:
            self._on_silence()


class _IdleWatch:
    """Calls `on_idle`, once, when there was nothing to do for `limit_s`. One timer, likewise."""

    def __init__(
        self,
        clock: Clock,
        limit_s: float,
        *,
        since_s: Callable[[], float],
        is_idle: Callable[[], bool],
        on_idle: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._since_s = since_s
        self._is_idle = is_idle
        self._on_idle = on_idle
        self._timer: asyncio.TimerHandle | None = None
        if limit_s < float("inf"):
            self._arm(limit_s)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        if not self._is_idle():
            self._arm(self._limit_s)
            return
        left_s = self._since_s() + self._limit_s - self._clock.monotonic_s()
        if left_s > 0:
            self._arm(left_s)
        else:
            self._on_idle()


class SessionOwner(Protocol):
    """What a session needs of its appender."""

    def is_closing(self) -> bool:
        """No more records come: the session ends once it has answered all."""
        ...

    def on_progress(self) -> None:
        """A batch was acknowledged."""
        ...

    def on_sent(self) -> None:
        """A batch has left; there may be room now."""
        ...


class AppendSession:
    """See the module's docstring. The stream is the owner's, who cancels it in the end."""

    def __init__(
        self,
        stream: AppendStream,
        queue: AppendQueue,
        owner: SessionOwner,
        clock: Clock,
        work: Bell,
        *,
        idle: IdleSessions | None = None,
        peer: Peer | None = None,
        direct: bool = True,
    ) -> None:
        self._stream = stream
        self._queue = queue
        self._owner = owner
        self._clock = clock
        self._others = IdleSessions(1) if idle is None else idle  # of the client, this one too
        self._peer = Peer() if peer is None else peer  # the node that the stream goes to
        self._direct = direct  # it is the log's sequencer
        self._work = work  # rung when there may be something to send
        self._given_up: SharedLogError | None = None  # nothing more is sent or awaited
        self._ended_well = False  # our side: nothing more is sent, and all is answered
        self._idle = False  # it had nothing to send for long
        self._awake_s = 0.0  # when there was last something to do
        self._answers_until = asyncio.timeout(None)

    async def open(
        self, opening: log_pb2.AppendSessionOpen, *, limit_s: float
    ) -> log_pb2.AppendSessionOpened | Moved | Lost:
        """Say what will be sent; batches may follow once this has returned `opened`."""
        error = Unreachable(f"the node opened no session within {limit_s:g} s")
        watch = self._watch(limit_s, due=lambda: True, silence=lambda: error)
        try:
            watch.heard()
            await self._stream.send(SessionRequest(open=opening))
            answer = await self._stream.receive()
        except SharedLogError as refused:
            given_up = self._given_up
            return Lost(_kind_of(given_up or refused, "unreached"), given_up or refused)
        finally:
            watch.stop()
        if self._given_up is not None:
            return Lost("unreached", self._given_up)
        self._peer.heard_s = self._clock.monotonic_s()
        if answer is not None and answer.HasField("moved"):
            return Moved(answer.moved.address, answer.moved.chain_version)
        if answer is None or not answer.HasField("opened"):
            wrong = ProtocolError("the session's first answer does not open it")
            return Lost("refused", wrong)
        return answer.opened

    def give_up(self, error: SharedLogError) -> None:
        """Nothing more is to be expected of it."""
        if self._given_up is None:
            self._given_up = error
            self._stream.cancel()

    def let_go(self) -> None:
        """End, in good order, if there is nothing to do."""
        self._idle = True
        self._work.ring()

    async def run(self, name: str, *, silence_s: float, idle_s: float = float("inf")) -> SessionEnd:
        """Send and take answers until the session ends, by itself if idle for `idle_s`."""
        queue = self._queue
        self._awake_s = self._clock.monotonic_s()

        def silence() -> Unreachable:
            return Unreachable(
                f"{len(queue.sent)} answers are due and none came for {silence_s:g} s"
            )

        watch = self._watch(silence_s, due=lambda: bool(queue.sent), silence=silence)
        idle_watch = self._watch_idleness(idle_s)
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_batches(watch), name=name)
                end = await self._take_answers_in_time(watch)
                sender.cancel()
        finally:
            watch.stop()
            idle_watch.stop()
            self._others.discard(self)
        if self._ended_well and not queue.sent and not isinstance(end, Moved):
            return Ended()  # whatever became of the good-bye
        if self._given_up is not None:
            return Lost("silent", self._given_up)
        failed = None if sender.cancelled() else sender.result()
        if failed is not None and isinstance(end, Lost) and not end.by_result:
            return Lost(_kind_of(failed, "broke"), failed)
        return end

    def _watch(
        self, limit_s: float, *, due: Callable[[], bool], silence: Callable[[], Unreachable]
    ) -> SilenceWatch:
        return SilenceWatch(
            self._clock,
            limit_s,
            due=due,
            on_silence=lambda: self.give_up(silence()),
            peer=self._peer if self._direct else None,
        )

    async def _send_batches(self, watch: SilenceWatch) -> SharedLogError | None:
        """Send until closed; an error is returned, for the stream's reader ends with it too."""
        queue, clock, stream = self._queue, self._clock, self._stream
        try:
            while True:
                now_s = clock.monotonic_s()
                if not self._idle:
                    self._awake_s = now_s
                batch = None if self._given_up is not None else queue.next_to_send(now_s)
                if batch is not None:
                    message = SessionRequest(batch.data, None, *batch.conditions)
                    if len(batch.builder):  # should it be sent again, it is encoded again
                        batch.data = b""
                    if len(queue.sent) == 1:
                        watch.heard()
                    self._owner.on_sent()
                    await stream.send(message)
                elif self._is_done(now_s):
                    await self._end_input()
                    return None
                elif queue.sent or queue.has_unsent():
                    await self._work.wait(queue.linger_s(now_s))
                else:
                    self._others.add(self)
                    await self._work.wait()
                    self._others.discard(self)
        except SharedLogError as error:
            # What the node had said before, results and where the log has gone, is on its way.
            self._await_answers(_DRAIN_S)
            return error

    async def _end_input(self) -> None:
        """Nothing more is sent and all is answered: wait for the good-bye if nobody waits for us.

        It lets the node forget what was sent. A batch that comes now needs the next session.
        """
        self._ended_well = True
        self._await_answers(_GOOD_BYE_S)
        await self._stream.end()
        while not self._queue.has_unsent():
            await self._work.wait()
        self._await_answers(0.0)

    def _is_done(self, now_s: float) -> bool:
        queue = self._queue
        if queue.must_reopen(now_s):
            return True
        may_end = self._idle or self._owner.is_closing()
        return may_end and not queue.has_unsent() and not queue.sent

    def _watch_idleness(self, idle_s: float) -> _IdleWatch:
        def is_idle() -> bool:
            return not self._queue.sent and not self._queue.has_unsent()

        return _IdleWatch(
            self._clock, idle_s, since_s=lambda: self._awake_s, is_idle=is_idle, on_idle=self.let_go
        )

    def _await_answers(self, limit_s: float) -> None:
        """Take what comes within this time, and no more."""
        if not self._answers_until.expired():
            self._answers_until.reschedule(asyncio.get_running_loop().time() + limit_s)

    async def _take_answers_in_time(self, watch: SilenceWatch) -> SessionEnd:
        try:
            async with self._answers_until:
                return await self._take_answers(watch)
        except TimeoutError:
            return Lost("broke", Unreachable("the node did not end the session"))

    async def _take_answers(self, watch: SilenceWatch) -> SessionEnd:
        try:
            while True:
                answer = await self._stream.receive()
                if answer is None:
                    if self._ended_well and not self._queue.sent:
                        return Ended()
                    return Lost("broke", Unreachable("the node ended the session"))
                watch.heard()
                self._peer.heard_s = self._clock.monotonic_s()
                end = self._take_results(answer)
                if answer.HasField("moved"):
                    return Moved(answer.moved.address, answer.moved.chain_version)
                if end is not None:
                    return end
                self._work.ring()
        except SharedLogError as error:
            return Lost(_kind_of(error, "broke"), error)

    def _take_results(self, answer: log_pb2.AppendSessionResponse) -> Lost | None:
        for result in answer.results:
            refused = result.HasField("error")
            error = error_from_proto(result.error) if refused else None
            self._queue.on_result(Offset(result.first_offset), error)
            if error is not None:
                return Lost("refused", error, by_result=True)
            self._owner.on_progress()
        return None


def _kind_of(error: SharedLogError, unreachable: FailureKind) -> FailureKind:
    return unreachable if isinstance(error, Unreachable) else "refused"
