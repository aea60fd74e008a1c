"""One log, for threads: append, read, find the tail; see `sharedlog.log`."""

from __future__ import annotations

from sharedlog import appender as aio_appender
from sharedlog import cursor as aio_cursor
from sharedlog import log as aio
from sharedlog.sync.appender import Appender
from sharedlog.sync.cursor import Cursor, Cursors
from sharedlog.sync.facade import Facade, blocking, direct, iterating, iterating_flat


def _appender(log: Facade[aio.Log], inner: aio_appender.Appender) -> Appender:
    return Appender(log._bridge, inner)  # noqa: SLF001  # of the same family


def _cursor(log: Facade[aio.Log], inner: aio_cursor.Cursor) -> Cursor:
    return Cursor(log._bridge, inner, log)  # noqa: SLF001  # likewise


class Log(Facade[aio.Log]):
    """A log of the cluster. That it exists shows at the first use."""

    @property
    def name(self) -> str:
        """The log's name."""
        return self._inner.name

    @property
    def cursors(self) -> Cursors:
        """The log's cursors: list, get, seek, delete."""
        return Cursors(self._bridge, self._inner.cursors)

    append = blocking(aio.Log.append)
    append_batch = blocking(aio.Log.append_batch)
    fence = blocking(aio.Log.fence)
    appender = direct(aio.Log.appender, into=_appender)
    read = iterating_flat(aio.Log.read, aio.Log.read_batches)
    read_batches = iterating(aio.Log.read_batches)
    read_last = blocking(aio.Log.read_last)
    find_offset = blocking(aio.Log.find_offset)
    cursor = direct(aio.Log.cursor, into=_cursor)
    tail = blocking(aio.Log.tail)
    known_tail = blocking(aio.Log.known_tail)
    trim = blocking(aio.Log.trim)
    purge = blocking(aio.Log.purge)
    describe = blocking(aio.Log.describe)
    close = blocking(aio.Log.close)
