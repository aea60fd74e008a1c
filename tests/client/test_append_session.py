"""How an append session of the client ends: at once, in good order, and with all that was said.

Sessions with a `FakeStream` run in virtual time: what ends at once and what waits is told apart to
the millisecond, however busy the machine is.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from helpers.memory_server import MemoryCluster, memory_cluster
from helpers.sim import run_virtual

import sharedlog
from sharedlog.append_queue import AppendQueue
from sharedlog.append_session import AppendSession, Bell, Ended, Lost, Moved, SessionEnd
from sharedlog.batch import decode_placed
from sharedlog.clock import SystemClock
from sharedlog.config import AppenderConfig
from sharedlog.errors import Unreachable
from sharedlog.ids import Offset
from sharedlog.pending import PendingAppend
from sharedlog.v1 import log_pb2


class LoopClock(SystemClock):
    """The time of the running loop."""

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


CLOCK = LoopClock()


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time."""

    @functools.wraps(test)
    def run() -> None:
        run_virtual(test)

    return run


class FakeStream:
    """A node that says what the test has it say, and never ends its side by itself."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.says: asyncio.Queue[log_pb2.AppendSessionResponse | None] = asyncio.Queue()
        self.send_error: Unreachable | None = None
        self.ended = False

    async def send(self, message: Any) -> None:
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)

    async def receive(self) -> log_pb2.AppendSessionResponse | None:
        return await self.says.get()

    async def end(self) -> None:
        self.ended = True

    def cancel(self) -> None:
        self.says.put_nowait(None)


class Used:
    """A session in use, with its queue."""

    def __init__(self) -> None:
        self.closing = False
        self.stream = FakeStream()
        self.queue = AppendQueue(AppenderConfig(batch_records=1, slots=4), producer_id=7)
        self.work = Bell()
        self._session = AppendSession(self.stream, self.queue, self, CLOCK, self.work)

    def start(self, *, idle_s: float = 30.0) -> asyncio.Task[SessionEnd]:
        run = self._session.run("session", silence_s=5.0, idle_s=idle_s)
        return asyncio.get_running_loop().create_task(run, name="session")

    def put(self, value: bytes, *, timeout_s: float = 30.0) -> PendingAppend:
        now_s = CLOCK.monotonic_s()
        pending = self.queue.put(value, None, None, timeout_s=timeout_s, now_s=now_s)
        self.work.ring()
        return pending

    def open(self) -> None:
        self.queue.opening()
        self.queue.on_opened(floor=Offset(0))

    def say(self, *firsts: int, moved: str = "") -> None:
        results = [log_pb2.AppendResult(first_offset=first) for first in firsts]
        message = log_pb2.AppendSessionResponse(results=results)
        if moved:
            message.moved.address = moved
        self.stream.says.put_nowait(message)

    def is_closing(self) -> bool:
        return self.closing

    def on_progress(self) -> None:
        pass

    def on_sent(self) -> None:
        pass


async def within(task: asyncio.Task[SessionEnd], limit_s: float) -> SessionEnd:
    async with asyncio.timeout(limit_s):
        return await task


@virtual
async def test_a_session_that_a_batch_waits_to_reopen_ends_at_once() -> None:
    """The node owes nothing; a good-bye that does not come must not hold up what waits."""
    used = Used()
    used.open()
    first, second = used.put(b"a", timeout_s=0.05), used.put(b"b")
    assert used.queue.next_to_send(CLOCK.monotonic_s())
    assert used.queue.next_to_send(CLOCK.monotonic_s())
    used.queue.on_session_lost()
    used.queue.opening()
    await CLOCK.sleep(0.06)
    used.queue.on_time(CLOCK.monotonic_s(), None)  # the first runs out while the session opens
    used.queue.on_opened(floor=Offset(0))
    assert isinstance(await within(used.start(), 0.5), Ended)
    assert used.stream.ended
    assert not used.stream.sent
    assert first.done()
    assert not second.done()
    assert used.queue.opening().next_sequence == 1


@virtual
async def test_an_idle_session_ends_and_waits_for_no_good_bye_when_there_is_work() -> None:
    """Nothing to send for `idle_s`: it ends in good order. A batch that comes just then is kept for
    the next session, and goes there at once although the node is silent."""
    used = Used()
    used.open()
    run = used.start(idle_s=0.1)
    pending = used.put(b"a")
    await CLOCK.sleep(0.25)
    assert not run.done(), "an answer is due, so it is not idle"
    used.say(0)
    assert await pending == 0
    await CLOCK.sleep(0.05)
    assert not used.stream.ended
    await CLOCK.sleep(0.2)
    assert used.stream.ended
    late = used.put(b"b")
    assert isinstance(await within(run, 0.5), Ended)
    assert len(used.stream.sent) == 1, "nothing may follow the end of input"
    assert not late.done()
    used.queue.on_session_moved()
    assert used.queue.opening() == (1, False, 0, 0)


@virtual
async def test_an_idle_sessions_good_bye_has_a_limit() -> None:
    """The node is gone, and no batch comes: the session is over all the same, without an error."""
    used = Used()
    used.open()
    assert isinstance(await within(used.start(idle_s=0.01), 2.5), Ended)


@virtual
async def test_results_and_moved_that_are_on_their_way_are_taken_after_a_send_failed() -> None:
    """A node that moved the log ends the stream; to the sender that is a broken connection, but the
    node had said what became of the batches, and where to go."""
    used = Used()
    used.open()
    run = used.start()
    first = used.put(b"a")
    while not used.stream.sent:
        await CLOCK.sleep(0)
    used.stream.send_error = Unreachable("the stream has ended")
    second = used.put(b"b")
    await CLOCK.sleep(0.02)
    used.say(0)
    used.say(moved="n2:1")
    assert await within(run, 0.5) == Moved("n2:1", 0)
    assert await first == 0
    used.queue.on_session_moved()
    assert not used.queue.opening().unresolved, "the second was never admitted"
    assert not second.done()


@virtual
async def test_a_node_that_says_nothing_after_a_send_failed_is_left_soon() -> None:
    """There is nothing more to come: what was sent is unresolved."""
    used = Used()
    used.open()
    run = used.start()
    used.stream.send_error = Unreachable("reset")
    used.put(b"a")
    end = await within(run, 0.5)
    assert isinstance(end, Lost)
    assert (end.kind, str(end.error)) == ("broke", "reset")
    used.queue.on_session_lost()
    assert used.queue.opening().unresolved


async def test_an_idle_appender_opens_another_session_with_a_new_floor() -> None:
    """After hours a floor would be hours old, and a lost batch would be searched for from there.

    Whether a batch meets the session before, at, or after its end: each is in the log once.
    """
    async with memory_cluster() as memory:
        memory.create("orders")
        config = AppenderConfig(idle_s=0.03, silence_s=30.0)
        async with sharedlog.connect(memory.address, append_config=config) as cluster:
            log = cluster.log("orders")
            for i in range(30):
                assert await log.append(b"%d" % i) == i
                await CLOCK.sleep(0.02 + 0.001 * i)
            await ended(memory)
            openings = memory.nodes["n1"].openings
            assert 2 <= len(openings) <= 30
            assert not any(opening.unresolved for opening in openings)
            assert not memory.reports
            batches = memory.logs["orders"].batches
            assert [r.value for it in batches for r in decode_placed(it)] == [
                b"%d" % i for i in range(30)
            ]


async def ended(memory: MemoryCluster) -> None:
    """The node has seen the end of the last session."""
    opened = memory.nodes["n1"].sessions_opened
    await CLOCK.sleep(0.1)
    assert memory.nodes["n1"].sessions_opened == opened, "an idle appender opens none by itself"
