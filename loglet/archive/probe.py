"""Whether an object store has the properties that the archive stands on.

The archive is kept consistent by nothing but compare-and-swap, and some servers that speak S3
accept the conditions of a PUT and ignore them. With such a one two nodes could write one log's
manifest at the same time, and history would be lost later and in silence. So a node tries it out
before it uses a store, and refuses one that fails.

What can't be tried out with a few requests is not: that it is so under concurrency, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, runtime_checkable

from loglet.archive.object_store import ObjectStore
from sharedlog.errors import (
    ArchiveUnavailable,
    ArchiveUnsuitable,
    ObjectNotFound,
    SharedLogError,
    SwapConflict,
)

_PREFIX: Final = ".probe-"


@runtime_checkable
class Adaptable(Protocol):
    """A store that finds out how its server wants to be spoken to."""

    async def adapt(self, key: str, salt: bytes) -> None:
        """Find out, by writing under a fresh key; what is left there is deleted by the caller.

        Raises:
            ArchiveUnavailable. ArchiveUnsuitable: in no way that is known here.
        """
        ...


async def probe(store: ObjectStore, new_id: Callable[[], str]) -> None:
    """Try out a store by writing, reading and deleting under a key of its own.

    Raises:
        ArchiveUnavailable: nothing is known; try again.
        ArchiveUnsuitable: it must not be used; the message says which property is missing.

    **Cancellation:** may leave objects behind whose keys begin with `.probe-`.
    """
    name = new_id()
    keys = [f"{_PREFIX}{name}-{suffix}" for suffix in ("0", "1", "2")]
    try:
        if isinstance(store, Adaptable):
            await store.adapt(keys[0], new_id().encode())
        trial = _Trial(store, keys[1], keys[2], new_id)
        await trial.absence()
        await trial.swaps()
        await trial.reads()
        await trial.listing()
        await trial.deletion(keys)
    finally:
        with suppress(SharedLogError):
            await store.delete(keys)


class _Trial:
    def __init__(
        self, store: ObjectStore, key: str, absent: str, new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._key = key
        self._absent = absent
        # Different in each part: a version that is a hash of a part would not do.
        self._first, self._second, self._third = (
            f"{new_id()} {number} {new_id()}".encode() for number in (1, 2, 3)
        )

    async def absence(self) -> None:
        """What is not there is told to be not there, by every way of asking."""
        if await self._store.read_versioned(self._key) is not None:
            raise self._lacks("it has an object under a key that was never used")
        if await self._store.stat(self._key) is not None:
            raise self._lacks("it tells the size of an object that was never written")
        with suppress(ObjectNotFound):
            await self._store.read(self._key)
            raise self._lacks("it reads an object that was never written")

    async def swaps(self) -> None:
        """Compare-and-swap compares."""
        version = await self._store.swap(self._key, self._first, None)
        if await self._is_swapped(self._key, self._second, None):
            raise self._lacks(
                "it makes an object that is there already (If-None-Match is ignored), so that two "
                "nodes could both begin a log's history"
            )
        newer = await self._store.swap(self._key, self._second, version)
        if newer == version:
            raise self._lacks("another value has the same version (ETag) as the one before")
        if await self._is_swapped(self._key, self._third, version):
            raise self._lacks(
                "it replaces an object whose version is another one (If-Match is ignored), so that "
                "of two nodes one could undo what the other has written"
            )
        if await self._is_swapped(self._absent, self._third, version):
            raise self._lacks("it replaces an object that is not there (If-Match is ignored)")

    async def reads(self) -> None:
        """Whole, in ranges, and the end."""
        data = self._second
        found = await self._store.read_versioned(self._key)
        if found is None or found.data != data:
            raise self._lacks("it does not read what was written last, but something older")
        for start, end in ((0, 1), (3, 9), (len(data) - 1, None), (4, len(data) + 9)):
            if await self._store.read(self._key, start, end) != data[start:end]:
                raise self._lacks("a range of an object is not what was asked for")
        if await self._store.read_tail(self._key, 5) != (data[-5:], len(data)):
            raise self._lacks("the end of an object is not what was asked for (Range: bytes=-5)")
        info = await self._store.stat(self._key)
        if info is None or info.size != len(data):
            raise self._lacks("it tells a wrong size of an object")

    async def listing(self) -> None:
        """What was written is listed at once."""
        found = [info async for info in self._store.list(self._key)]
        if [(info.key, info.size) for info in found] != [(self._key, len(self._second))]:
            raise self._lacks("an object that was written is not in the listing")

    async def deletion(self, keys: list[str]) -> None:
        """What is deleted is gone, and can be deleted again."""
        await self._store.delete(keys)
        await self._store.delete(keys)
        if await self._store.stat(self._key) is not None:
            raise self._lacks("an object is still there after it was deleted")

    async def _is_swapped(self, key: str, data: bytes, expected: str | None) -> bool:
        """Whether a swap that must not succeed does."""
        try:
            await self._store.swap(key, data, expected)
        except SwapConflict:
            found = await self._store.read_versioned(key)
            return found is not None and found.data == data
        except ArchiveUnavailable:
            # No answer, or one that contradicts what is read: not the right one, in any case.
            if (found := await self._store.read_versioned(key)) is None or found.data != data:
                raise
        return True

    def _lacks(self, what: str) -> ArchiveUnsuitable:
        return ArchiveUnsuitable(f"{self._store.url} can't be an archive: {what}")
