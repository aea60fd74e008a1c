"""One cluster's way from any thread to the loop, and the end of all that went that way.

Waits. A caller that is interrupted, by Ctrl-C or a time limit, cancels its call. For a write that
stops the wait and not the write, as in the asyncio client.

The end. Once `close` has begun nothing new is taken. Streams are cancelled, appenders are dropped,
the client is closed; calls under way then get a moment to end by themselves, for the client has
told each how it ended, and what is left is cancelled. So no thread is left waiting.

Locks. A finalizer, and so `ReadAhead`'s end, can run in any thread at any moment, also in one that
holds the lock here: the lock is re-entrant, and no finalizer waits for anything.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent import futures
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from sharedlog.errors import InvalidArgument, Unreachable
from sharedlog.sync.loop_thread import LoopThread, shared_thread
from sharedlog.sync.read_ahead import ReadAhead

P = ParamSpec("P")
Answer = TypeVar("Answer")
Item = TypeVar("Item")

_LEAVE_S: Final = 1.0  # for calls under way to end once the client is closed


class Ends(Protocol):
    """The client of the cluster."""

    async def close(self, *, drop: bool) -> None:
        """End it; `drop`: without waiting for what is under way."""
        ...


class Bridge:
    """See the module's docstring. Safe for any number of threads."""

    def __init__(self, client: Ends, thread: LoopThread = shared_thread) -> None:
        self._client = client
        self._thread = thread
        self._lock = threading.RLock()
        self._closed = False  # nothing new is taken
        self._over = False  # nothing at all is
        self._ended = threading.Event()  # the client is
        self._calls: set[futures.Future[Any]] = set()
        self._streams: set[futures.Future[Any]] = set()
        self.droppable: dict[object, Callable[[], Coroutine[Any, Any, None]]] = {}
        """What is to be ended before the client: by whom, and how, on the loop."""
        self._loop = thread.acquire(self)

    @property
    def thread(self) -> LoopThread:
        """Who runs the loop."""
        return self._thread

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._closed

    def check_open(self) -> None:
        """Refuse what can't be done any more.

        Raises:
            InvalidArgument: the cluster is closed, or the caller would wait for ever.
        """
        self._thread.check_usable()
        if self._closed:
            raise InvalidArgument("the cluster is closed")

    # Calls.

    def run(
        self, call: Callable[P, Coroutine[Any, Any, Answer]], *args: P.args, **kwargs: P.kwargs
    ) -> Answer:
        """Call it on the loop, and wait for what it returns or raises.

        Raises:
            InvalidArgument: as `check_open`.
            Unreachable: the cluster was closed meanwhile.
        """
        return self.wait(self.start(call, *args, **kwargs))

    def start(
        self, call: Callable[P, Coroutine[Any, Any, Answer]], *args: P.args, **kwargs: P.kwargs
    ) -> futures.Future[Answer]:
        """Call it on the loop. Raises as `check_open`."""
        self.check_open()
        return self._submit(self._calls, call(*args, **kwargs))

    def start_to_settle(
        self, call: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> futures.Future[Answer]:
        """`start`, while the cluster is being closed too: for who waits for what that settles.

        Raises:
            InvalidArgument: the caller would wait for ever. Unreachable: all is settled.
        """
        self._thread.check_usable()
        return self._submit(self._calls, call())

    def wait(self, future: futures.Future[Answer], timeout_s: float | None = None) -> Answer:
        """What the call returns or raises. An interrupt, or `TimeoutError`, cancels it.

        Raises:
            Unreachable: the cluster was closed meanwhile.
        """
        try:
            return future.result(timeout_s)
        except futures.CancelledError:
            raise Unreachable("the cluster was closed while the call was under way") from None
        finally:
            future.cancel()  # nothing happens if it is done

    def iterate(
        self, make: Callable[[ReadAhead[Item]], AsyncGenerator[Item, None]]
    ) -> Generator[Item, None, None]:
        """What the generator made by `make` yields; it starts with the first `next`.

        Leaving the loop early ends it, without waiting for its end.

        Raises:
            InvalidArgument: as `check_open`. Unreachable: the cluster was closed meanwhile.
        """
        self.check_open()
        ahead: ReadAhead[Item] = ReadAhead(self._loop)
        pulling = self._submit(self._streams, ahead.pull(make(ahead)))
        pulling.add_done_callback(lambda _: ahead.cut())
        try:
            while items := ahead.take():
                yield from items
                self._thread.check_usable()
        finally:
            pulling.cancel()

    def _submit(
        self, kept: set[futures.Future[Any]], run: Coroutine[Any, Any, Answer]
    ) -> futures.Future[Answer]:
        with self._lock:
            if self._over:
                run.close()
                raise Unreachable("the cluster is closed")
            future = asyncio.run_coroutine_threadsafe(run, self._loop)
            kept.add(future)
        future.add_done_callback(kept.discard)
        return future

    # The end.

    def close(self, *, drop: bool = False, timeout_s: float | None = None) -> None:
        """End the client, and then whatever is left. Idempotent.

        An interrupt, or `TimeoutError`, ends the wait; what has not ended by then is dropped.
        """
        self._thread.check_usable()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            ending = asyncio.run_coroutine_threadsafe(self._end(drop=drop), self._loop)
            self.wait(ending, timeout_s)
            futures.wait(self._under_way(self._calls), _LEAVE_S)
        finally:
            self._ended.wait(_LEAVE_S)
            with self._lock:
                self._over = True
            for future in (*self._under_way(self._calls), *self._under_way(self._streams)):
                future.cancel()
            # Once more, for the connections that those have opened since.
            again = asyncio.run_coroutine_threadsafe(self._client.close(drop=True), self._loop)
            futures.wait([again], _LEAVE_S)
            self._thread.release(self, timeout_s=timeout_s)

    def drop(self, timeout_s: float) -> None:
        """See `User.drop`."""
        self.close(drop=True, timeout_s=timeout_s)

    async def _end(self, *, drop: bool) -> None:
        try:
            for future in self._under_way(self._streams):
                future.cancel()
            for end in list(self.droppable.values()):
                await end()
            await self._client.close(drop=drop)
        finally:
            self._ended.set()

    def _under_way(self, kept: set[futures.Future[Any]]) -> list[futures.Future[Any]]:
        with self._lock:
            return list(kept)
