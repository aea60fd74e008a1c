"""An event loop under virtual time: it never waits, and it is deterministic.

When nothing is ready the clock jumps to the next timer; when there is no timer either, every task
waits for another and the loop says which (`Deadlock`). Code under it may use all of asyncio but
sockets, threads and child processes.

What else could differ between two runs is pinned here: tasks and futures hash by their serial
number (a `TaskGroup` keeps its tasks in a set, and cancels them in the set's order), and the
garbage collector stands still (it closes forgotten generators when it happens to run).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Every task is blocked and no timer is armed."""


class VirtualTimeExceeded(RuntimeError):
    """The simulated time ran past its limit: something waits or retries for ever."""


class SimSelector(selectors.DefaultSelector):
    """Jumps to the next timer instead of waiting for it."""

    now = 0.0
    limit_s = float("inf")
    blocked: Callable[[], str] = staticmethod(lambda: "")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise Deadlock(f"every task is blocked and no timer is armed{self.blocked()}")
        self.now += max(timeout, 0.0)
        if self.now > self.limit_s:
            limit_s, self.limit_s = self.limit_s, float("inf")  # what is cancelled now may end
            raise VirtualTimeExceeded(f"{limit_s} s of virtual time are over{self.blocked()}")
        return ready


class SimTask(asyncio.Task[T]):
    """A task whose place in a set is the same in every run."""

    _serial: int = 0

    def __hash__(self) -> int:
        return self._serial


class SimFuture(asyncio.Future[T]):
    """A future whose place in a set is the same in every run."""

    _serial: int = 0

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.SelectorEventLoop):
    """See the module's docstring."""

    def __init__(self, *, limit_s: float = float("inf")) -> None:
        self._sim_selector = SimSelector()
        self._sim_selector.limit_s = limit_s
        self._sim_selector.blocked = self._describe_tasks
        self._serials = itertools.count(1)
        super().__init__(self._sim_selector)
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # the stub wants a Future

    def time(self) -> float:
        return self._sim_selector.now

    def create_future(self) -> asyncio.Future[Any]:
        future: SimFuture[Any] = SimFuture(loop=self)
        future._serial = next(self._serials)
        return future

    def run_in_executor(self, executor: object, func: object, *args: object) -> NoReturn:
        raise RuntimeError(f"threads are not simulated: {func}")

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
        task: SimTask[T] = SimTask(coro, loop=loop, name=name or f"task {serial}", context=context)
        task._serial = serial
        return task

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
    """Run `main` to its end under a loop of its own, in at most `limit_s` of virtual time."""

    async def root() -> T:
        return await main()

    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=lambda: SimLoop(limit_s=limit_s)) as runner:
            return runner.run(root())
    finally:
        if collecting:
            gc.enable()
