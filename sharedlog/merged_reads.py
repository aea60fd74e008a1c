"""Reading several logs as one, by timestamp; `merge.py` has the order and what it is worth.

Each log is read by a task of its own, which brings batches as far as there is room for them, and a
follower has another one for each that asks for the log's tail when it is told to. Who iterates
decides when anything goes: while it does not, nothing is looked at, nothing is passed over, and the
rooms fill.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Final

from sharedlog.batch import Record
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.limits import MIB
from sharedlog.log_reads import NO_SURE_TAIL
from sharedlog.merge import Merge
from sharedlog.read_window import ReadProgress
from sharedlog.starts import Start
from sharedlog.tasks import first_error

if TYPE_CHECKING:
    from sharedlog.log import Log

HOLD_S: Final = 1.0
"""How long a follower's records wait for a log of which nobody can tell whether it has more."""

_ROOM_BYTES: Final = 4 * MIB  # of values that wait, for each log; one batch more may have come
_ROOM_BATCHES: Final = 64


class _Room:
    """Bounds what of one log waits to be handed out."""

    def __init__(self) -> None:
        self._bytes = 0
        self._batches = 0
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait for room, then take it; a batch that is larger than all of it goes alone."""
        while self._batches and (
            self._bytes + size > _ROOM_BYTES or self._batches >= _ROOM_BATCHES
        ):
            self._freed.clear()
            await self._freed.wait()
        self._bytes += size
        self._batches += 1

    def give_back(self, size: int) -> None:
        """A batch was handed out."""
        self._bytes -= size
        self._batches -= 1
        self._freed.set()


class MergedReads:
    """One read of several logs. See `Cluster.read_many`."""

    def __init__(
        self, logs: Mapping[str, Log], starts: Mapping[str, Start], *, follow: bool, clock: Clock
    ) -> None:
        self._logs = logs
        self._starts = starts
        self._follow = follow
        self._clock = clock
        self._rooms = {name: _Room() for name in logs}
        self._wanted = {name: asyncio.Event() for name in logs}  # a look is
        self._news = asyncio.Event()  # for who iterates

    async def records(self) -> AsyncGenerator[tuple[str, Record], None]:
        """Name of the log and record, one after the other."""
        merge = await self._begin()
        loop = asyncio.get_running_loop()
        # A group here would cancel whoever iterates when a log fails, wherever that is by then.
        task = loop.create_task(self._run(merge), name="merged-read")
        task.add_done_callback(lambda _: self._news.set())
        try:
            while not (merge.ended or task.done()):
                self._news.clear()
                found = merge.take(self._clock.monotonic_s())
                if found is None:
                    await self._wait(merge)
                    continue
                self._rooms[found.name].give_back(_size(found.records))
                for record in found.records:
                    yield found.name, record
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure

    async def _begin(self) -> Merge:
        """Find out where each log stands: a follower merges all that is there exactly."""
        goals: dict[str, int | None] = dict.fromkeys(self._logs)

        async def ask(name: str) -> None:
            log = self._logs[name]
            try:
                goals[name] = await log.tail()
            except NO_SURE_TAIL:
                goals[name] = await log.known_tail()

        if self._follow:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for name in self._logs:
                        tasks.create_task(ask(name), name=f"tail of {name}")
            except ExceptionGroup as group:
                raise first_error(group) from group
        merge = Merge(goals.items(), hold_s=HOLD_S if self._follow else None)
        for name, start in self._starts.items():
            if isinstance(start, int):
                merge.on_position(name, start)
        return merge

    async def _wait(self, merge: Merge) -> None:
        """Until something has happened, or it is time to decide anew."""
        for name in merge.looks(self._clock.monotonic_s()):
            self._wanted[name].set()
        deadline_s = merge.next_deadline_s()
        left_s = None if deadline_s is None else max(0.0, deadline_s - self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._news.wait()

    async def _run(self, merge: Merge) -> None:
        """Read all logs. Raises the error of the first whose read fails."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in self._logs:
                    tasks.create_task(self._read(merge, name), name=f"read {name}")
                    if self._follow:
                        tasks.create_task(self._look(merge, name), name=f"look at {name}")
        except ExceptionGroup as group:
            raise first_error(group) from group

    async def _read(self, merge: Merge, name: str) -> None:
        room = self._rooms[name]

        def on_progress(progress: ReadProgress) -> None:
            merge.on_position(name, progress.position)
            self._news.set()

        batches = self._logs[name].read_batches(
            self._starts[name], follow=self._follow, on_progress=on_progress
        )
        try:
            async with contextlib.aclosing(batches):
                async for records in batches:
                    await room.take(_size(records))
                    merge.on_records(name, records)
                    self._news.set()
        except SharedLogError as error:
            error.add_note(f"while log {name} was read")
            raise
        merge.on_ended(name)
        self._news.set()

    async def _look(self, merge: Merge, name: str) -> None:
        """Ask for the log's tail whenever that is wanted."""
        wanted = self._wanted[name]
        while True:
            await wanted.wait()
            wanted.clear()
            tail: int | None = None
            with contextlib.suppress(*NO_SURE_TAIL):
                tail = await self._logs[name].tail(timeout_s=HOLD_S)
            merge.on_look(name, tail, self._clock.monotonic_s())
            self._news.set()


def _size(records: list[Record]) -> int:
    return sum([len(record.value) for record in records])
