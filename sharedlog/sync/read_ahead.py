"""What an async generator yields, for a thread: read ahead within a bound, crossed many at a time.

The generator runs on the loop (`pull`) and fills a buffer; the reader's thread takes all that is
there at once (`take`), so the price of crossing is paid per buffer and not per item. The bound is
in bytes, as far as can be told without touching each record: what is read ahead are some batches.

A callback that the generator calls is run by the reader's thread, in its place among the items: it
may do what it likes there, and must not hold up the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Generic, TypeVar

from sharedlog.batch import Record
from sharedlog.errors import Unreachable
from sharedlog.limits import KIB, MIB

Item = TypeVar("Item")

AHEAD_BYTES: Final = 4 * MIB
"""So much is read ahead, by the count of `_size_of`; one item more at most."""
_ITEM_BYTES: Final = 1 * KIB  # of what is no record; also a record's share of objects and tables
_COUNTED_MAX: Final = 64  # records of a batch whose bytes are counted one by one
_BATCH_BYTES: Final = 1 * MIB  # taken for a batch of more: twice the usual, an eighth of the most


class ReadAhead(Generic[Item]):
    """See the module's docstring. `pull` is run once, on the loop; `take` is the reader's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        # Invariant: their sizes are below AHEAD_BYTES, but for the last one.
        self._items: list[Item | _Told] = []
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._room = asyncio.Event()
        self._waits = False  # for room

    async def pull(self, items: AsyncGenerator[Item, None]) -> None:
        """Run the generator until it ends or fails, or this is cancelled."""
        try:
            async with aclosing(items):
                async for item in items:
                    self._put(item, _size_of(item))
                    if self._size >= AHEAD_BYTES:
                        await self._wait_for_room()
            self._end(None)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the reader's
            self._end(error)

    async def _wait_for_room(self) -> None:
        self._waits = True
        while self._size >= AHEAD_BYTES:
            self._room.clear()
            await self._room.wait()
        self._waits = False

    def relayed(self, callback: Callable[..., object]) -> Callable[..., None]:
        """A callback for the generator; its calls become calls of `callback` by the reader."""

        def tell(*args: Any) -> None:
            self._put(_Told(partial(callback, *args)), _ITEM_BYTES)

        return tell

    def take(self) -> list[Item]:
        """What has been read; waits while that is nothing. Empty at the end.

        Raises:
            BaseException: what the generator raised, once all before it was taken.
        """
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                entries, self._items = self._items, []
                full, self._size = self._size >= AHEAD_BYTES, 0
            if full:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._room.set)
            if not entries:
                if self._error is not None:
                    raise self._error
                return []
            items = []
            for entry in entries:
                if isinstance(entry, _Told):
                    entry.call()
                else:
                    items.append(entry)
            if items:
                return items

    def cut(self) -> None:
        """`pull` was cancelled, or is over: nothing more comes."""
        self._end(Unreachable("the cluster was closed while it was read from"))

    def _put(self, entry: Item | _Told, size: int) -> None:
        with self._changed:
            self._items.append(entry)
            self._size += size
            self._changed.notify()

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            if not self._ended:
                self._ended = True
                self._error = error
                self._changed.notify()


class _Told:
    """A call of a callback, on its way to the reader."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call


def _size_of(item: object) -> int:
    """The bytes of an item, about."""
    if isinstance(item, Record):
        return _ITEM_BYTES + len(item.value)
    if isinstance(item, list | tuple):
        return sum(map(_size_of, item)) if len(item) <= _COUNTED_MAX else _BATCH_BYTES
    return _ITEM_BYTES
