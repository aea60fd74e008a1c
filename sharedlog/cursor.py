"""A durable cursor: how far somebody has got in a log, kept in the cluster.

    async with log.cursor("billing") as cursor:
        async for record in cursor.read(follow=True):
            await handle(record)
            await cursor.commit()

A cursor has one owner: whoever opened it last. The one before finds out at its next commit, which
fails with `CursorLost` and changes nothing. So two processes never both move a cursor; but the
older one may still be handling the record that it has in its hands, and what was handled and not
committed is handled again: **at least once**. Whoever needs exactly once appends the results with a
fencing token, or writes the position beside them.

**Cost.** A write of the position is one write of the metadata store, which is small and shared by
the whole cluster: some hundred a second is a lot for it. So `commit` only notes the position, and
what was noted is written at most once in `commit_every_s`, and when the cursor is closed; `flush`
writes it now. With `commit_every_s=0` each commit is durable when it returns.

A commit whose answer is lost is sent again with the same number, by which it is made once. One that
could not be cleared up is followed by the next one, which says at least as much; nothing runs back
unless `seek` is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from sharedlog.batch import Record
from sharedlog.connection import Connection
from sharedlog.cursors import Cursors, new_owner_id
from sharedlog.errors import CursorLost, InvalidArgument, SharedLogError
from sharedlog.ids import Offset
from sharedlog.pending import copy_error
from sharedlog.rpc.methods import COMMIT_CURSOR
from sharedlog.v1 import cursor_pb2

if TYPE_CHECKING:
    from sharedlog.log import Log

log = logging.getLogger(__name__)

_GOOD_BYE_S: Final = 1.0  # for the last write of an owner that was cancelled
_OFFSET_END: Final = 1 << 63


class Cursor:
    """A cursor and its owner. Made by `Log.cursor`; for the tasks of one event loop.

    Use it as `async with log.cursor("name") as cursor`: entering takes the cursor over, leaving
    writes what was committed last.
    """

    def __init__(
        self,
        connection: Connection,
        log: Log,
        name: str,
        *,
        start: int,
        commit_every_s: float,
        owner_name: str,
    ) -> None:
        if not 0 <= start < _OFFSET_END:
            raise InvalidArgument(f"start is {start}; offsets start at 0")
        if not commit_every_s >= 0:
            raise InvalidArgument(f"commit_every_s is {commit_every_s}; it must be 0 or more")
        self.name = name
        self._connection = connection
        self._log = log
        self._cursors = Cursors(connection, log.name)
        self._start = start
        self._every_s = commit_every_s
        self._owner = new_owner_id(connection)
        self._owner_name = owner_name
        self._state: cursor_pb2.CursorState | None = None  # as the cluster had it last
        self._closed = False
        self._noted = Offset(0)  # what is to be written
        self._back = False  # what is to be written may be below what is there
        self._next = Offset(0)  # where reading goes on
        self._change = 0
        # Invariant: one write at a time, each with the next number.
        self._writing = asyncio.Lock()
        self._lost: CursorLost | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None  # while something is written unasked
        self._written_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Cursor {self.name!r} of {self._log.name!r}>"

    # State.

    @property
    def position(self) -> Offset:
        """The first offset that is not done with, as the cluster has it: who opens it starts here.

        Raises:
            InvalidArgument: the cursor was never opened.
        """
        return Offset(self._opened().position)

    @property
    def next_offset(self) -> Offset:
        """Where the next `read` goes on: behind what was handed out."""
        return self._next

    @property
    def epoch(self) -> int:
        """Counts the cursor's owners; this one's number."""
        return self._opened().epoch

    async def lag(self) -> int:
        """Offsets from the position to the log's tail; records of others' control count, too.

        Raises what `Log.tail` raises.
        """
        return max(0, await self._log.tail() - self.position)

    # Opening and closing.

    async def open(self) -> Self:
        """Take the cursor over, from whoever has it; make it if there is none.

        Raises:
            LogNotFound, InvalidArgument. CursorLost: others took it over all the while.
            MetadataUnavailable, Unreachable: it may or may not be taken over.

        **Cancellation:** it may or may not be taken over.
        """
        if self._state is not None:
            raise InvalidArgument("the cursor was opened before; make another one")
        state = await self._cursors.take(
            self.name, owner=self._owner, owner_name=self._owner_name, start=self._start
        )
        self._state = state
        self._noted = self._next = Offset(state.position)
        self._connection.open_cursors.add(self)
        return self

    async def close(self) -> None:
        """Write what was committed, and let go; the cursor stays. Idempotent.

        Raises what `flush` raises.

        **Cancellation:** what was not written yet is handed out again to the next owner.
        """
        try:
            if not self._closed and self._lost is None and self._state is not None:
                await self.flush()
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Let go at once: what was not written yet is handed out again to the next owner."""
        self._closed = True
        self._connection.open_cursors.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
            return
        # What was committed is done with, but the caller's own error matters more.
        try:
            async with asyncio.timeout(None if isinstance(error, Exception) else _GOOD_BYE_S):
                await self.close()
        except (SharedLogError, TimeoutError) as failure:
            extra = {"log": self._log.name, "cursor": self.name, "error": str(failure)}
            log.warning("cursor.not_written", extra=extra)

    # Reading.

    async def read(
        self, *, follow: bool = False, end: int | None = None, limit: int | None = None
    ) -> AsyncGenerator[Record, None]:
        """Records from `next_offset` on, in order: first from the position, then where it stopped.

        As `Log.read`, which says what `follow`, `end` and `limit` do, and what is raised. Nothing
        is committed by reading.
        """
        self._check()
        records = self._log.read(start=self._next, end=end, follow=follow, limit=limit)
        async with aclosing(records):
            async for record in records:
                self._next = Offset(record.offset + 1)
                yield record

    def on_handed_out(self, next_offset: Offset) -> None:
        """Records below `next_offset` were read by other means than `read`."""
        self._next = next_offset

    # Moving.

    async def commit(self, position: int | None = None) -> None:
        """All below `position` is done with; without one, all that was handed out.

        Returns at once: the position is written within `commit_every_s`, see the module's
        docstring; with `commit_every_s=0` it is written when this returns, and what `flush` raises
        is raised.

        Raises:
            CursorLost: another owner has the cursor; nothing was changed.
            InvalidArgument: the position is below one that was committed.

        **Cancellation:** it may or may not be written.
        """
        self._check()
        wanted = max(self._next, self._noted) if position is None else position
        if wanted < self._noted:
            raise InvalidArgument(
                f"{self._noted} was committed before; {wanted} is below that: seek moves back"
            )
        self._note(wanted)
        if self._every_s == 0:
            await self.flush()
        elif self._task is None and self._timer is None and self._is_dirty():
            self._arm()

    async def seek(self, position: int) -> None:
        """Set the position, backwards too; `read` goes on from there. Durable when it returns.

        Raises what `flush` raises.

        **Cancellation:** it may or may not be written.
        """
        self._check()
        self._back = True
        self._next = self._note(position)
        await self._write()

    async def flush(self) -> None:
        """Write what was committed before this call.

        Raises:
            CursorLost: another owner has the cursor; nothing was changed.
            MetadataUnavailable, Unreachable, DeadlineExceeded: it may or may not be written. It
            stays noted, and is written later if that can be.

        **Cancellation:** it may or may not be written.
        """
        self._check()
        await self._write()

    def _note(self, position: int) -> Offset:
        if not 0 <= position < _OFFSET_END:
            raise InvalidArgument(f"{position} is no offset")
        self._noted = Offset(position)
        return self._noted

    def _is_dirty(self) -> bool:
        return self._back or self._noted != self._opened().position

    async def _write(self) -> None:
        """Write what is noted by then; callers at once share a write."""
        async with self._writing:
            self._check()
            if not self._is_dirty():
                return
            state = self._opened()
            back, self._back = self._back, False
            self._change += 1
            request = cursor_pb2.CommitCursorRequest(
                log_id=state.log_id,
                name=self.name,
                owner=self._owner,
                epoch=state.epoch,
                change=self._change,
                position=self._noted,
                may_run_back=back,
            )
            self._written_s = self._connection.clock.monotonic_s()
            try:
                answer = await self._connection.call(COMMIT_CURSOR, request)
            except BaseException as error:
                # Whether it was made is not known: the next one must be allowed what this one was.
                self._back = self._back or back
                if isinstance(error, CursorLost):
                    self._lost = error
                raise
            self._state = answer.cursor

    # Writing unasked.

    def _arm(self) -> None:
        due_s = self._written_s + self._every_s
        delay_s = max(0.0, due_s - self._connection.clock.monotonic_s())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._begin_write)

    def _begin_write(self) -> None:
        self._timer = None
        name = f"cursor:{self._log.name}:{self.name}"
        self._task = asyncio.get_running_loop().create_task(self._write_unasked(), name=name)

    async def _write_unasked(self) -> None:
        """The next commit, or `flush`, tells of a loss; what may pass is tried again."""
        try:
            with suppress(CursorLost):
                await self._write()
        except SharedLogError as error:
            extra = {"log": self._log.name, "cursor": self.name, "error": str(error)}
            log.warning("cursor.not_written", extra=extra)
        finally:
            self._task = None
        if not self._closed and self._lost is None and self._is_dirty():
            self._arm()

    # Checks.

    def _opened(self) -> cursor_pb2.CursorState:
        if self._state is None:
            raise InvalidArgument("the cursor is not open: use it as `async with`, or `open` it")
        return self._state

    def _check(self) -> None:
        self._opened()
        if self._lost is not None:
            raise copy_error(self._lost)
        if self._closed:
            raise InvalidArgument("the cursor is closed")
