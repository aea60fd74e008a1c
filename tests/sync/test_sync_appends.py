"""The blocking appender: many threads, back-pressure, waits that end, outcomes that are true."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.memory_server import MemoryNode
from helpers.memory_thread import MemoryThread, memory_thread, until

import sharedlog.batch
import sharedlog.sync
from sharedlog.append_queue import AppendQueue
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    InvalidArgument,
    LogNotFound,
    RecordTooLarge,
    SharedLogError,
)
from sharedlog.limits import RECORD_BYTES_MAX


@pytest.fixture
def memory() -> Iterator[MemoryThread]:
    with memory_thread("orders") as cluster:
        yield cluster


class Interrupted(BaseException):
    """As `KeyboardInterrupt`, but not what ends the test run."""


@pytest.fixture
def interrupt() -> Iterator[threading.Event]:
    """Set it, and the main thread is interrupted, as by Ctrl-C."""

    def raise_it(*_: object) -> None:
        raise Interrupted

    wanted, main = threading.Event(), threading.main_thread().ident
    assert main is not None

    def send() -> None:
        wanted.wait()
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    sender = threading.Thread(target=send)
    sender.start()
    yield wanted
    if not wanted.is_set():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        wanted.set()
    sender.join()
    signal.signal(signal.SIGUSR1, before)


def start_watching(node: MemoryNode, interrupt: threading.Event) -> threading.Thread:
    """Interrupt the main thread once a batch is on its way."""

    def watch() -> None:
        until(lambda: node.batches_received > 0)
        interrupt.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    return watcher


def test_a_tight_loop_makes_large_batches_in_order(memory: MemoryThread) -> None:
    """Tens of thousands of records cross to the loop many at a time, and travel likewise."""
    values = [b"%06d" % i for i in range(20_000)]
    with (
        sharedlog.sync.connect(memory.address) as cluster,
        cluster.log("orders").appender() as appender,
    ):
        pending = [appender.append(value) for value in values[:10_000]]
        pending += appender.append_many(values[10_000:])
    assert [p.result() for p in pending] == list(range(20_000))
    assert memory.stored("orders") == values
    node = memory.memory.nodes["n1"]
    assert node.batches_received < 1_000
    assert node.sessions_opened == 1


def test_each_thread_keeps_its_order(memory: MemoryThread) -> None:
    """Any number of threads share an appender: nothing is lost, each one's records are in order,
    and each result is the offset of that very record."""
    with sharedlog.sync.connect(memory.address) as cluster, ThreadPoolExecutor(8) as threads:
        appender = cluster.log("orders").appender(batch_bytes=2_000, buffer_bytes=2_000)

        def run(number: int) -> list[tuple[bytes, int]]:
            values = [b"%d/%d" % (number, i) for i in range(500)]
            pending = [
                appender.append(value, key=b"k" if i % 7 == 0 else None)
                for i, value in enumerate(values)
            ]
            return [(value, p.result()) for value, p in zip(values, pending, strict=True)]

        found = list(threads.map(run, range(8)))
        appender.close()
    stored = memory.stored("orders")
    assert len(stored) == 4_000
    for results in found:
        offsets = [offset for _, offset in results]
        assert offsets == sorted(offsets)
        assert [stored[offset] for offset in offsets] == [value for value, _ in results]


def test_append_waits_while_everything_is_full(memory: MemoryThread) -> None:
    """Back-pressure: beside what the asyncio appender holds, two batches of records and no more
    are taken; when answers come again, all go on."""
    node = memory.memory.nodes["n1"]
    taken = 0
    with sharedlog.sync.connect(memory.address) as cluster:
        appender = cluster.log("orders").appender(
            batch_bytes=1_000, in_flight_bytes=4_000, buffer_bytes=4_000
        )

        def produce() -> None:
            nonlocal taken
            for _ in range(1_000):
                appender.append(b"x" * 96)
                taken += 1

        with memory.held_acks(node):
            producer = threading.Thread(target=produce)
            producer.start()
            until(lambda: taken >= 80 and appender._size >= appender._size_max)
            time.sleep(0.1)  # in which it would take more
            assert taken <= 95 + 2 * 10
            assert node.batches_received >= 4
            assert producer.is_alive()
        producer.join()
        appender.close()
    assert len(memory.stored("orders")) == 1_000


@pytest.mark.parametrize("settings", [{}, {"batch_bytes": 500}, {"batch_records": 7}])
def test_a_run_of_records_goes_where_single_ones_would(settings: dict[str, int]) -> None:
    """`put_run` is `put_plain`, again and again: same batch, same places, same end of the room."""
    values = [b"x" * (i * 7 % 50) for i in range(200)]
    config = AppenderConfig(**settings)  # type: ignore[arg-type]  # all of them are ints
    single, run = (AppendQueue(config, producer_id=1) for _ in range(2))
    at = 0
    while at < len(values):
        for queue in (single, run):
            queue.put(values[at], None, None, timeout_s=30.0, now_s=0.0)
        places = run.put_run([*values, "no bytes"], at + 1)
        for place, value in zip(places, values[at + 1 :], strict=False):
            assert len(value) < single.room
            assert single.put_plain(value).place[1] == place
        assert (single.room, single.open is not None) == (run.room, run.open is not None)
        at += 1 + len(places)
        assert at == len(values) or len(values[at]) >= single.room
        for queue in (single, run):
            queue.check_invariants()
            queue.cut()


def test_what_can_never_be_appended_is_refused_at_once(memory: MemoryThread) -> None:
    """In the thread that hands it over, before it crosses."""
    with (
        sharedlog.sync.connect(memory.address) as cluster,
        cluster.log("orders").appender() as appender,
    ):
        with pytest.raises(RecordTooLarge):
            appender.append(bytes(RECORD_BYTES_MAX + 1))
        with pytest.raises(RecordTooLarge):
            appender.append(bytes(RECORD_BYTES_MAX), key=b"k")
        with pytest.raises(InvalidArgument):
            appender.append("text")  # type: ignore[arg-type]  # the point
        with pytest.raises(InvalidArgument):
            appender.append_many([b"", None])  # type: ignore[list-item]  # the point
        assert appender.append(bytes(RECORD_BYTES_MAX - 4)).result() == 0
        assert appender.append(b"", headers={"h": b"1"}).result() == 1
    assert [len(value) for value in memory.stored("orders")] == [RECORD_BYTES_MAX - 4, 0]


def test_headers_are_those_of_the_moment(memory: MemoryThread) -> None:
    """What the caller does to them afterwards changes no record."""
    headers = {"h": b"1"}
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("orders")
        with log.appender() as appender:
            appender.append(b"x", headers=headers)
            headers["h"] = b"2"
        assert [dict(record.headers) for record in log.read()] == [{"h": b"1"}]


def test_a_wait_ends_in_time_and_the_write_goes_on(memory: MemoryThread) -> None:
    """`result(timeout_s)` is about the wait alone."""
    node = memory.memory.nodes["n1"]
    with (
        sharedlog.sync.connect(memory.address) as cluster,
        cluster.log("orders").appender() as appender,
    ):
        with memory.held_acks(node):
            pending = appender.append(b"x")
            with pytest.raises(TimeoutError):
                pending.result(timeout_s=0.01)
            with pytest.raises(TimeoutError):
                pending.exception(timeout_s=0.01)
            assert not pending.done()
            assert repr(pending).startswith("<sync PendingAppend")
        assert pending.result(timeout_s=10) == 0
        assert pending.exception() is None
        assert pending.done()


def test_an_interrupt_stops_the_wait_and_not_the_write(
    memory: MemoryThread, interrupt: threading.Event
) -> None:
    """Ctrl-C in `Log.append`: the record gets into the log all the same."""
    node = memory.memory.nodes["n1"]
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("orders")
        with memory.held_acks(node):
            watcher = start_watching(node, interrupt)
            with pytest.raises(Interrupted):
                log.append(b"x")
            watcher.join()
        assert log.append(b"y") == 1
    assert memory.stored("orders") == [b"x", b"y"]


def test_an_interrupted_block_drops_its_session_and_ends(
    memory: MemoryThread, interrupt: threading.Event
) -> None:
    """Ctrl-C in the middle of a block whose log answers nothing: it ends without the 30 seconds
    that the records have, and none of them is called lost or written."""
    node = memory.memory.nodes["n1"]
    pending: list[sharedlog.sync.PendingAppend] = []

    def fill(log: sharedlog.sync.Log) -> None:
        with log.appender(batch_bytes=100, in_flight_bytes=100, buffer_bytes=100) as appender:
            while True:
                pending.append(appender.append(b"%020d" % len(pending)))

    with (
        memory.held_acks(node),
        sharedlog.sync.connect(memory.address) as cluster,
    ):
        watcher = start_watching(node, interrupt)
        with pytest.raises(Interrupted):
            fill(cluster.log("orders"))
        watcher.join()
        errors = [p.exception(timeout_s=10) for p in pending]
    assert isinstance(errors[0], AppendIndefinite)
    definite = [type(error) for error in errors if not isinstance(error, AppendIndefinite)]
    assert set(definite) <= {InvalidArgument}
    stored = memory.stored("orders")
    for i, error in enumerate(errors):
        assert isinstance(error, AppendIndefinite) or b"%020d" % i not in stored


def test_closing_the_cluster_ends_who_waits_for_room(memory: MemoryThread) -> None:
    """A thread in `append` is told that the appender is closed; every pending append has an
    outcome, and a definite one only if its record is not in the log."""
    node = memory.memory.nodes["n1"]
    pending: list[sharedlog.sync.PendingAppend] = []
    failed: list[SharedLogError] = []
    cluster = sharedlog.sync.connect(memory.address)
    appender = cluster.log("orders").appender(
        batch_bytes=100, in_flight_bytes=100, buffer_bytes=100
    )

    def fill() -> None:
        try:
            while True:
                pending.append(appender.append(b"%020d" % len(pending)))
        except SharedLogError as error:
            failed.append(error)

    with memory.held_acks(node):
        filler = threading.Thread(target=fill)
        filler.start()
        until(lambda: node.batches_received > 0 and appender._size >= appender._size_max)
        cluster.close()
        filler.join()
    assert [type(error) for error in failed] == [InvalidArgument]
    outcomes = [p.exception() for p in pending]
    stored = memory.stored("orders")
    for i, error in enumerate(outcomes):
        assert isinstance(error, AppendIndefinite | InvalidArgument)
        assert isinstance(error, AppendIndefinite) or b"%020d" % i not in stored
    assert any(isinstance(error, InvalidArgument) for error in outcomes)
    assert any(isinstance(error, AppendIndefinite) for error in outcomes)
    with pytest.raises(AppendIndefinite):
        appender.close()  # a failure that nobody had asked for is not lost
    appender.close()
    appender.abort()


def test_a_closed_appender_takes_nothing_more(memory: MemoryThread) -> None:
    """Nor does one whose cluster is closed; closing it is well, any number of times."""
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("orders")
        appender, other = log.appender(), log.appender()
        appender.append(b"x")
        appender.close()
        appender.close()
        with pytest.raises(InvalidArgument, match="closed"):
            appender.append(b"y")
        with pytest.raises(InvalidArgument, match="closed"):
            appender.append_many([b"y"])
    with pytest.raises(InvalidArgument, match="closed"):
        other.append(b"y")
    with pytest.raises(InvalidArgument, match="closed"):
        log.append(b"y")
    other.close()
    assert memory.stored("orders") == [b"x"]


def test_a_failure_that_nobody_saw_is_raised_by_the_block(memory: MemoryThread) -> None:
    """Leaving the block raises it, unless the body has failed by itself."""
    with sharedlog.sync.connect(memory.address) as cluster:
        with pytest.raises(LogNotFound), cluster.log("nope").appender() as appender:
            appender.append(b"x")
        appender = cluster.log("nope").appender()
        appender.append(b"x")
        appender.__exit__(KeyError, KeyError(), None)  # and so it leaves the body's own


def test_a_batch_comes_after_the_records_before_it(memory: MemoryThread) -> None:
    """`append_batch` of an appender keeps the order of the calls, and its records side by side."""
    builder = sharedlog.batch.BatchBuilder()
    builder.append(b"b1")
    builder.append(b"b2")
    with (
        sharedlog.sync.connect(memory.address) as cluster,
        cluster.log("orders").appender() as appender,
    ):
        first = appender.append(b"a")
        batch = appender.append_batch(builder)
        last = appender.append_within(b"c", None, None, timeout_s=5)
        batch.wait()
        assert batch.done
        assert (first.result(), batch.first_offset(), last.result()) == (0, 1, 3)
    assert memory.stored("orders") == [b"a", b"b1", b"b2", b"c"]
