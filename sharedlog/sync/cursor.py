"""A durable cursor, for threads; see `sharedlog.cursor`.

    with log.cursor("billing") as cursor:
        for record in cursor.read(follow=True):
            handle(record)
            cursor.commit()

What is read ahead is not handed out: `commit` without a position says that what the caller was
given is done with, and nothing beyond.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from types import TracebackType
from typing import Self

from sharedlog import cursor as aio
from sharedlog import cursors as aio_cursors
from sharedlog import log as aio_log
from sharedlog.batch import Record
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset
from sharedlog.sync.bridge import Bridge
from sharedlog.sync.facade import Facade, blocking, iterating_flat

log = logging.getLogger(__name__)

_GOOD_BYE_S = 1.0  # for the last write of an owner that was interrupted


class Cursor(Facade[aio.Cursor]):
    """A cursor and its owner. Made by `Log.cursor`; for one reader at a time.

    Use it as `with log.cursor("name") as cursor`: entering takes the cursor over, leaving writes
    what was committed last.
    """

    def __init__(self, bridge: Bridge, inner: aio.Cursor, read_log: Facade[aio_log.Log]) -> None:
        super().__init__(bridge, inner)
        self._log = read_log
        self._next = Offset(0)

    @property
    def name(self) -> str:
        """The cursor's name."""
        return self._inner.name

    @property
    def position(self) -> Offset:
        """See `sharedlog.Cursor.position`."""
        return self._inner.position

    @property
    def next_offset(self) -> Offset:
        """Where the next `read` goes on: behind what the caller was given."""
        return self._next

    @property
    def epoch(self) -> int:
        """See `sharedlog.Cursor.epoch`."""
        return self._inner.epoch

    lag = blocking(aio.Cursor.lag)
    abort = blocking(aio.Cursor.abort)
    close = blocking(aio.Cursor.close)
    flush = blocking(aio.Cursor.flush)

    def open(self) -> Self:
        """Take the cursor over, from whoever has it; make it if there is none.

        Raises:
            LogNotFound, InvalidArgument. CursorLost: others took it over all the while.
            MetadataUnavailable, Unreachable: it may or may not be taken over.

        **An interrupt:** it may or may not be taken over.
        """
        self._bridge.run(self._inner.open)
        self._next = self._inner.next_offset
        return self

    def read(
        self, *, follow: bool = False, end: int | None = None, limit: int | None = None
    ) -> Generator[Record, None, None]:
        """Records from `next_offset` on, in order: first from the position, then where it stopped.

        As `Log.read`, which says what `follow`, `end` and `limit` do, and what is raised. Nothing
        is committed by reading.
        """
        records = _read(self._log, start=self._next, end=end, follow=follow, limit=limit)
        for record in records:
            self._next = Offset(record.offset + 1)
            yield record

    def commit(self, position: int | None = None) -> None:
        """All below `position` is done with; without one, all that the caller was given.

        Raises:
            CursorLost: another owner has the cursor; nothing was changed.
            InvalidArgument: the position is below one that was committed.

        **An interrupt:** it may or may not be written.
        """
        self._bridge.run(self._commit, position)

    async def _commit(self, position: int | None) -> None:
        self._inner.on_handed_out(self._next)
        await self._inner.commit(position)

    def seek(self, position: int) -> None:
        """Set the position, backwards too; `read` goes on from there. Durable when it returns.

        Raises what `flush` raises.

        **An interrupt:** it may or may not be written.
        """
        self._bridge.run(self._inner.seek, position)
        self._next = Offset(position)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # What was committed is done with, but the caller's own error matters more.
        limit_s = None if isinstance(error, Exception) else _GOOD_BYE_S
        try:
            self._bridge.wait(self._bridge.start(self._inner.close), limit_s)
        except (SharedLogError, TimeoutError) as failure:
            log.warning("cursor.not_written", extra={"cursor": self.name, "error": str(failure)})


_read = iterating_flat(aio_log.Log.read, aio_log.Log.read_batches)


class Cursors(Facade[aio_cursors.Cursors]):
    """The cursors of a log. Made by `Log.cursors`."""

    list = blocking(aio_cursors.Cursors.list)
    get = blocking(aio_cursors.Cursors.get)
    take = blocking(aio_cursors.Cursors.take)
    seek = blocking(aio_cursors.Cursors.seek)
    delete = blocking(aio_cursors.Cursors.delete)
