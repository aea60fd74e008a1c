"""The blocking client with an asyncio face, so that the asyncio client's tests run against it.

Each call is made in a thread of its own and awaited: the loop that runs the test, and in it the
servers, goes on meanwhile. What an asyncio test does to the client it thereby does to the blocking
one: concurrent tasks become threads, `async for` a generator that a thread pulls, `await pending` a
thread that waits for the result.

Not the same, and so not taken for it: cancelling a task that waits does not reach the thread.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import Any, Final, Self

import pytest

import sharedlog.sync
from sharedlog.sync.facade import Facade

_THREADS_MAX: Final = 600  # more than any test has tasks: a call that waits keeps its thread
_END: Final = object()

Test = Callable[..., Any]


class Threads:
    """The threads of one test."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="sharedlog-test")

    async def call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call that blocks."""
        run = functools.partial(call, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    def close(self) -> None:
        """Wait for all of them: none may be left waiting once its cluster is closed."""
        self._pool.shutdown()


class Face:
    """An object of the blocking client; its methods are coroutines and async generators here."""

    def __init__(self, threads: Threads, inner: Any) -> None:
        self._threads = threads
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if isinstance(found, Facade):
            return face_of(self._threads, found)
        if not callable(found):
            return found
        if name in _AT_ONCE:
            return lambda *args, **kwargs: face_of(self._threads, found(*args, **kwargs))
        if name in _GENERATORS:
            return lambda *args, **kwargs: _pull(self._threads, found(*args, **kwargs))
        return functools.partial(self._call, found)

    async def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return face_of(self._threads, await self._threads.call(method, *args, **kwargs))

    async def __aenter__(self) -> Self:
        self._inner.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._threads.call(self._inner.__exit__, kind, error, traceback)


_AT_ONCE: Final = {"log", "appender"}  # no coroutines in the asyncio client either
_GENERATORS: Final = {"read", "read_batches", "digest", "check"}


class Pending(Face):
    """A pending append: what the asyncio one does at once is done at once."""

    def result(self) -> Any:
        """The offset, or `InvalidStateError`."""
        if not self._inner.done():
            raise asyncio.InvalidStateError
        return self._inner.result()

    def done(self) -> bool:
        """The outcome is known."""
        return bool(self._inner.done())

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._threads.call(self._inner.result).__await__())


def face_of(threads: Threads, answer: Any) -> Any:
    """The asyncio face of what a call returned, if it is of the blocking client."""
    if isinstance(answer, sharedlog.sync.PendingAppend):
        return Pending(threads, answer)
    if isinstance(answer, Facade):
        # The same object each time, for who compares.
        faces = threads.__dict__.setdefault("faces", {})
        return faces.setdefault(id(answer), Face(threads, answer))
    if isinstance(answer, list):
        return [face_of(threads, item) for item in answer]
    return answer


async def _pull(threads: Threads, items: Generator[Any, None, None]) -> AsyncGenerator[Any, None]:
    try:
        while (item := await threads.call(next, items, _END)) is not _END:
            yield item
    finally:
        with suppress(ValueError):  # a thread is waiting in it, until its cluster is closed
            items.close()


@pytest.fixture(name="threaded")
def threaded_client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """For as long as the test runs, `sharedlog.connect` gives the blocking client."""
    threads = Threads()

    def connect(*args: Any, **kwargs: Any) -> Face:
        return Face(threads, sharedlog.sync.connect(*args, **kwargs))

    monkeypatch.setattr(sharedlog, "connect", connect)
    yield threads
    threads.close()


def scenarios(module: ModuleType, *, without: dict[str, str]) -> dict[str, Any]:
    """The tests of a module of the asyncio client and their fixtures, to be run in another module.

    `without`: those that can't be, each with its reason.
    """
    missing = set(without) - set(vars(module))
    assert not missing, f"there are no such tests: {missing}"
    found = {}
    for name, value in vars(module).items():
        is_test = name.startswith("test_") and asyncio.iscoroutinefunction(value)
        if (is_test and name not in without) or name == "memory":
            found[name] = value
    assert len(found) > 1
    return found
