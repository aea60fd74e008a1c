"""The thread behind the blocking client: one for all; how it ends; exits and forks."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.memory_thread import MemoryThread, memory_thread, until

import sharedlog.sync
from sharedlog.errors import InvalidArgument, Unreachable
from sharedlog.sync.loop_thread import LoopThread, shared_thread

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def memory() -> Iterator[MemoryThread]:
    with memory_thread("orders") as cluster:
        yield cluster


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sharedlog-sync"]


def test_clusters_share_a_thread_that_ends_with_the_last(memory: MemoryThread) -> None:
    """None before, one for two clusters, none after; and again."""
    for _ in range(2):
        assert not loop_threads()
        first = sharedlog.sync.connect(memory.address)
        with sharedlog.sync.connect(memory.address) as second:
            assert first.log("orders").append(b"x") == second.log("orders").tail() - 1
            assert len(loop_threads()) == 1
        assert first.log("orders").append(b"x") > 0
        first.close()
        first.close()
        assert not loop_threads()


def test_clusters_come_and_go_in_many_threads(memory: MemoryThread) -> None:
    """The last close of one thread and the first connect of another meet in any order."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(10):
                with sharedlog.sync.connect(memory.address) as cluster:
                    assert cluster.log("orders").known_tail() == 0
        except BaseException as error:  # noqa: BLE001  # for the assertion below
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not loop_threads()


def test_a_refused_address_starts_nothing() -> None:
    """The error is that of the asyncio client, at once."""
    with pytest.raises(InvalidArgument):
        sharedlog.sync.connect("nowhere")
    assert not loop_threads()


async def test_it_works_where_an_event_loop_runs(memory: MemoryThread) -> None:
    """A notebook's cell, a coroutine: the loop is held up, and nothing waits for itself."""
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("orders")
        with log.appender() as appender:
            assert appender.append(b"x").result() == 0
        assert [record.value for record in log.read()] == [b"x"]
        assert await asyncio.to_thread(log.tail) == 1


async def test_both_clients_side_by_side(
    memory: MemoryThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Each on its own loop. What gRPC has to say of that is no error of ours."""
    with caplog.at_level(logging.ERROR), sharedlog.sync.connect(memory.address) as cluster:
        async with sharedlog.connect(memory.address) as other:
            for i in range(20):
                assert await other.log("orders").append(b"x") == 2 * i
                assert await asyncio.to_thread(cluster.log("orders").append, b"x") == 2 * i + 1
    assert not [r for r in caplog.records if r.threadName == "sharedlog-sync"]


def test_a_call_on_the_thread_itself_is_refused(memory: MemoryThread) -> None:
    """It would wait for itself."""
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("orders")

        async def on_the_loop() -> None:
            log.tail()

        with pytest.raises(InvalidArgument, match="own thread"):
            cluster._bridge.run(on_the_loop)


def test_closing_ends_calls_of_other_threads(memory: MemoryThread) -> None:
    """A thread that waits for an answer that never comes is told that the cluster was closed."""
    node = memory.memory.nodes["n1"]
    cluster = sharedlog.sync.connect(memory.address, routing="plain")
    memory.call(node.running.clear)
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            cluster.describe_log("orders")
        except Unreachable as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: len(cluster._bridge._calls) == 1)
    cluster.close(drop=True)
    asking.join()
    assert len(failed) == 1
    memory.call(node.running.set)


def run_script(script: str, address: str, *, code: int = 0) -> str:
    """Run it in a process of its own, which must end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "rror" not in done.stderr
    return done.stdout


def test_a_script_that_closes_nothing_ends(memory: MemoryThread) -> None:
    """At exit, with an open cluster, an open appender and a reader that follows."""
    script = """
        import sys, sharedlog.sync
        cluster = sharedlog.sync.connect(sys.argv[1])
        log = cluster.log("orders")
        print(log.append(b"x"))
        appender = log.appender()
        print(appender.append(b"y").result())
        following = log.read(follow=True)
        print(next(following).value)
    """
    assert run_script(script, memory.address) == "0\n1\nb'x'\n"


def test_a_script_that_fails_ends(memory: MemoryThread) -> None:
    """So does one whose exception keeps everything alive."""
    script = """
        import sys, sharedlog.sync
        cluster = sharedlog.sync.connect(sys.argv[1])
        appender = cluster.log("orders").appender(linger_s=20)
        pending = appender.append(b"y")
        sys.exit(3)
    """
    assert run_script(script, memory.address, code=3) == ""


FORK = """
    import os, sys, sharedlog.sync
    from sharedlog.errors import InvalidArgument, AppendIndefinite
    def attempt(act):
        try:
            act()
        except (InvalidArgument, AppendIndefinite) as error:
            assert "forked" in str(error), error
        else:
            raise SystemExit("no error")
    cluster = sharedlog.sync.connect(sys.argv[1])
    log = cluster.log("orders")
    log.append(b"x")
    appender = log.appender(linger_s=20)
    pending = appender.append(b"y")
    reading = log.read(follow=True)
    next(reading)
    child = os.fork()
    if child == 0:
        for act in (
            lambda: log.append(b"z"),
            lambda: appender.append(b"z"),
            lambda: appender.append_many([b"z"]),
            lambda: appender.flush(),
            lambda: appender.close(),
            lambda: pending.result(),
            lambda: list(reading),
            lambda: list(log.read()),
            lambda: cluster.close(),
            lambda: sharedlog.sync.connect(sys.argv[1]),
        ):
            attempt(act)
        print("child", flush=True)
    else:
        assert os.waitpid(child, 0)[1] == 0
        appender.close()
        assert pending.result() == 1
        cluster.close()
        print("parent", flush=True)
"""


def test_a_forked_child_gets_errors_and_its_parent_goes_on(memory: MemoryThread) -> None:
    """A child has no thread that could answer: each call says so rather than wait, it ends as it
    would without us, and the parent does not notice."""
    assert run_script(FORK, memory.address) == "child\nparent\n"
    assert memory.stored("orders") == [b"x", b"y"]


def test_a_child_of_a_process_that_never_connected_may_connect(memory: MemoryThread) -> None:
    """Importing the package is no use of it."""
    script = """
        import os, sys, sharedlog.sync
        child = os.fork()
        if child == 0:
            with sharedlog.sync.connect(sys.argv[1]) as cluster:
                print(cluster.log("orders").append(b"x"), flush=True)
        else:
            assert os.waitpid(child, 0)[1] == 0
    """
    assert run_script(script, memory.address) == "0\n"


def test_an_interrupt_at_the_exit_leaves_a_thread_that_can_be_started_again() -> None:
    """A user that is gone already is no error; the shared thread is a plain one of its kind."""
    thread = LoopThread()

    class User:
        def drop(self, timeout_s: float) -> None:
            thread.release(self, timeout_s=timeout_s)

    first, second = User(), User()
    loop = thread.acquire(first)
    assert thread.acquire(second) is loop
    first.drop(1)
    first.drop(1)
    assert loop.is_running()
    second.drop(1)
    assert loop.is_closed()
    assert shared_thread is not thread
