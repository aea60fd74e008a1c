"""The one thread, with an event loop of its own, that serves every blocking client of a process.

gRPC's asyncio side wants one event loop in a process: completions for all loops come through one
socket, and each of them wakes all loops. So the blocking clients of a process share a thread. The
first `acquire` starts it, the last `release` ends it, and what is still open when the interpreter
exits is dropped then.

The thread is a daemon: the interpreter joins all others before it runs exit handlers, and a script
that forgot to close its cluster would never exit.

Forks. A child has none of its parent's threads, neither this one nor gRPC's own. A call would wait
for ever, so in a child of a process that had started the thread every call is an error at once.
gRPC has handlers of its own for forks, which don't work beside asyncio and can crash the child.
They are turned off, unless the application says otherwise or has imported gRPC before.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol

from sharedlog.errors import InvalidArgument

_NAME: Final = "sharedlog-sync"
_EXIT_S: Final = 2.0  # for each thing that is left to end at the interpreter's exit

_FORKED: Final = (
    "this process was forked from one that had used sharedlog.sync, and gRPC does not survive a "
    "fork: start it with multiprocessing's 'spawn', or connect in the children only"
)
_OWN_THREAD: Final = "a blocking call was made on sharedlog's own thread, and would wait for itself"


class User(Protocol):
    """Who uses the thread, from `acquire` to `release`."""

    def drop(self, timeout_s: float) -> None:
        """The interpreter exits: end, within this time, and release the thread."""
        ...


class LoopThread:
    """See the module's docstring. Users share one of them: `shared_thread`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: set[User] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._was_started = False
        self.is_forked = False

    def acquire(self, user: User) -> asyncio.AbstractEventLoop:
        """The loop, which runs until `release`.

        Raises:
            InvalidArgument: the process is a fork of one that had started the thread.
        """
        self.check_usable()
        with self._lock:
            if self._loop is None:
                self._loop = self._start()
            self._users.add(user)
            return self._loop

    def release(self, user: User, *, timeout_s: float | None = None) -> None:
        """This user is done; the thread ends with its last one. Idempotent."""
        with self._lock:
            if user not in self._users:
                return
            self._users.remove(user)
            if self._users:
                return
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
            assert loop is not None
            assert thread is not None
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout_s)

    def check_usable(self) -> None:
        """Refuse who would wait for ever.

        Raises:
            InvalidArgument: in a forked child, and on the thread itself.
        """
        if self.is_forked:
            raise InvalidArgument(_FORKED)
        if self._thread is threading.current_thread():
            raise InvalidArgument(_OWN_THREAD)

    def _start(self) -> asyncio.AbstractEventLoop:
        if not self._was_started:
            self._was_started = True
            atexit.register(self._on_exit)
        started = threading.Event()
        loops: list[asyncio.AbstractEventLoop] = []
        self._thread = threading.Thread(
            target=_serve, args=(loops, started), name=_NAME, daemon=True
        )
        self._thread.start()
        started.wait()
        return loops[0]

    def _on_exit(self) -> None:
        if not self.is_forked:
            for user in list(self._users):
                with contextlib.suppress(Exception):  # the exit goes on, whatever one of them has
                    user.drop(_EXIT_S)

    def after_fork_in_child(self) -> None:
        """Neither the thread nor whoever held the lock exists here."""
        self._lock = threading.Lock()
        self.is_forked = self._was_started


def _serve(loops: list[asyncio.AbstractEventLoop], started: threading.Event) -> None:
    """The thread: run a loop until it is stopped, then end what is left on it."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(_on_loop_error)
        asyncio.set_event_loop(loop)
        loops.append(loop)
        loop.call_soon(started.set)
        loop.run_forever()


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Report as usual, but for what is no error.

    Where another loop of the process uses gRPC too, both wake for each completion, one of them
    finds nothing left to read, and gRPC lets that escape: https://github.com/grpc/grpc/issues/25364
    """
    spurious = isinstance(context.get("exception"), BlockingIOError)
    if not (spurious and "PollerCompletionQueue" in repr(context.get("handle"))):
        loop.default_exception_handler(dict(context))


shared_thread: Final = LoopThread()
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # gRPC reads it once, when it is imported
os.register_at_fork(after_in_child=shared_thread.after_fork_in_child)
