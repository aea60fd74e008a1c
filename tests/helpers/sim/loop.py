"""An event loop under virtual time: it never waits, and it is deterministic.

When nothing is ready the clock jumps to the next timer; when there is no timer either, every task
waits for another and the loop says which (`Deadlock`); when something is ready for ever, what is
(`Livelock`). Code under it may use all of asyncio but
sockets, threads and child processes.

**Hosts.** A simulated process is a `Host`: what runs within `host.run(...)`, and every task, timer
and callback that comes of it, belongs to that host, for asyncio hands the context on. A paused host
(SIGSTOP) runs nothing: what would run is held, in order, and runs when the host resumes. Time goes
on meanwhile, so its timers are overdue then.

What else could differ between two runs is pinned here: tasks and futures hash by their serial
number (a `TaskGroup` keeps its tasks in a set, and cancels them in the set's order), timers of one
moment fire in the order in which they were set, and the garbage collector stands still (it closes
forgotten generators when it happens to run).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import selectors
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from heapq import heappop, heappush
from typing import Any, NoReturn, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

TURNS_MAX = 100_000
"""Of the loop, at one moment; a busy one takes some hundred."""

_HOST: contextvars.ContextVar[Host | None] = contextvars.ContextVar("host", default=None)


class Deadlock(RuntimeError):
    """Every task is blocked and no timer is armed."""


class Livelock(RuntimeError):
    """Something runs again and again at one moment of the simulated time, for ever."""


class VirtualTimeExceeded(RuntimeError):
    """The simulated time ran past its limit: something waits or retries for ever."""


class Host:
    """A simulated process, as far as the loop cares: what can be paused together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self._held: list[asyncio.Handle] = []

    def __repr__(self) -> str:
        return f"<Host {self.name}>"

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function as this host; what it starts belongs to the host."""
        context = contextvars.copy_context()
        context.run(_HOST.set, self)
        return context.run(function, *args, **kwargs)

    def pause(self) -> None:
        """From now on nothing of the host runs."""
        assert not self.paused, f"{self.name} is paused already"
        self.paused = True
        _loop()._paused += 1

    def resume(self) -> None:
        """Run what was held, and go on."""
        assert self.paused, f"{self.name} is not paused"
        self.paused = False
        loop = _loop()
        loop._paused -= 1
        held, self._held = self._held, []
        loop._ready.extend(held)

    def hold(self, handle: asyncio.Handle) -> None:
        """To be run when the host resumes."""
        self._held.append(handle)


def _loop() -> SimLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop


class SimTask(asyncio.Task[T]):
    """A task whose place in a set is the same in every run."""

    def __init__(self, coro: Coroutine[Any, Any, T], *, serial: int, **rest: Any) -> None:
        self._serial = serial  # first: asyncio puts the task into a set while it is made
        super().__init__(coro, **rest)

    def __hash__(self) -> int:
        return self._serial


class SimFuture(asyncio.Future[T]):
    """A future whose place in a set is the same in every run."""

    _serial: int = 0

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.SelectorEventLoop):
    """See the module's docstring.

    The base class's way of running callbacks and timers is replaced by a shorter one: there are no
    sockets to ask, and nobody to wait for.
    """

    _ready: deque[asyncio.Handle]  # the base class's
    _stopping: bool

    def __init__(self, *, limit_s: float = float("inf")) -> None:
        self._now = 0.0
        self._limit_s = limit_s
        self._serials = itertools.count(1)
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []  # a heap
        self._paused = 0  # hosts
        self._turns = 0  # at the present moment
        self.errors: list[dict[str, Any]] = []  # of callbacks: nobody else hears of them
        super().__init__(selectors.SelectSelector())
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # the stub wants a Future
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]  # the stub's type variables
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]  # the stub's type variables
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # the stub's type variables
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._serials), timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        future: SimFuture[Any] = SimFuture(loop=self)
        future._serial = next(self._serials)
        return future

    def run_in_executor(self, executor: object, func: object, *args: object) -> NoReturn:
        raise RuntimeError(f"threads are not simulated: {func}")

    def _run_once(self) -> None:
        """One turn: what is ready now, or else the next timers."""
        ready = self._ready
        if not ready and not self._stopping:
            self._advance()
        self._turns += 1
        if self._turns > TURNS_MAX:
            self._turns = 0
            raise Livelock(f"time stands still at {self._now} s{self._describe_tasks()}")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self._paused:
                host = handle._context.get(_HOST)  # type: ignore[attr-defined]  # private
                if host is not None and host.paused:
                    host.hold(handle)
                    continue
            handle._run()
        handle = None  # type: ignore[assignment]  # keeps nothing alive

    def _advance(self) -> None:
        """Jump to the next timer, and make ready what is due then."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)
        if not timers:
            raise Deadlock(f"every task is blocked and no timer is armed{self._describe_tasks()}")
        if timers[0][0] > self._now:
            self._now, self._turns = timers[0][0], 0
        if self._now > self._limit_s:
            limit_s, self._limit_s = self._limit_s, float("inf")  # what is cancelled now may end
            raise VirtualTimeExceeded(
                f"{limit_s} s of virtual time are over{self._describe_tasks()}"
            )
        while timers and timers[0][0] <= self._now:
            self._ready.append(heappop(timers)[2])

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is thrown away when its time comes."""

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> SimTask[T]:
        serial = next(self._serials)
        # The standard library numbers unnamed tasks over the whole process: a trace must not show
        # it.
        return SimTask(
            coro, serial=serial, loop=loop, name=name or f"task {serial}", context=context
        )

    def _describe_tasks(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        return "".join(f"\n  {task.get_name()}: {_innermost(task)}" for task in tasks)


def _innermost(task: asyncio.Task[Any]) -> str:
    """Where the task waits: the function and line at the end of its chain of awaits."""
    awaitable: Any = task.get_coro()
    where = "?"
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "ag_frame", None)
        if frame is None:
            break
        file = frame.f_code.co_filename.rsplit("/", 1)[-1]
        where = f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "ag_await", None)
    return where


def run_virtual(main: Callable[[], Awaitable[T]], *, limit_s: float = 3600.0) -> T:
    """Run `main` to its end under a loop of its own, in at most `limit_s` of virtual time.

    An error in a callback, which asyncio would only log, is raised at the end. Nothing is collected
    meanwhile, so that no finalizer runs at a moment that another run would not have; afterwards
    what the run has left is, and only that: a look at all there is takes a second among many tests.
    """

    async def root() -> T:
        return await main()

    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()
    loop = SimLoop(limit_s=limit_s)
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            result = runner.run(root())
    finally:
        gc.collect()
        gc.unfreeze()
        if collecting:
            gc.enable()
    for context in loop.errors:
        raise RuntimeError(f"in a callback: {context['message']}") from context.get("exception")
    return result
