"""Whether an object store has the properties that the archive stands on.

The archive is kept consistent by nothing but compare-and-swap: with a store that ignores conditions
(`metadata/s3/trial.py`) two nodes could write one log's manifest at the same time, and history
would be lost later and in silence. So a node tries that and the rest out before it uses a store,
and refuses one that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, runtime_checkable

from loglet.archive.object_store import ARCHIVE, ObjectStore
from metadata.s3.trial import SwapTrial
from sharedlog.errors import ObjectNotFound, SharedLogError

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


class _Trial(SwapTrial):
    def __init__(
        self, store: ObjectStore, key: str, absent: str, new_id: Callable[[], str]
    ) -> None:
        super().__init__(store, ARCHIVE, key, absent, new_id)
        self._objects = store

    async def absence(self) -> None:
        """What is not there is told to be not there, by every way of asking."""
        if await self._objects.read_versioned(self._key) is not None:
            raise self._lacks("it has an object under a key that was never used")
        if await self._objects.stat(self._key) is not None:
            raise self._lacks("it tells the size of an object that was never written")
        with suppress(ObjectNotFound):
            await self._objects.read(self._key)
            raise self._lacks("it reads an object that was never written")

    async def reads(self) -> None:
        """Whole, in ranges, and the end."""
        data = self._second
        found = await self._objects.read_versioned(self._key)
        if found is None or found.data != data:
            raise self._lacks("it does not read what was written last, but something older")
        for start, end in ((0, 1), (3, 9), (len(data) - 1, None), (4, len(data) + 9)):
            if await self._objects.read(self._key, start, end) != data[start:end]:
                raise self._lacks("a range of an object is not what was asked for")
        if await self._objects.read_tail(self._key, 5) != (data[-5:], len(data)):
            raise self._lacks("the end of an object is not what was asked for (Range: bytes=-5)")
        info = await self._objects.stat(self._key)
        if info is None or info.size != len(data):
            raise self._lacks("it tells a wrong size of an object")

    async def listing(self) -> None:
        """What was written is listed at once."""
        found = [info async for info in self._objects.list(self._key)]
        if [(info.key, info.size) for info in found] != [(self._key, len(self._second))]:
            raise self._lacks("an object that was written is not in the listing")

    async def deletion(self, keys: list[str]) -> None:
        """What is deleted is gone, and can be deleted again."""
        await self._objects.delete(keys)
        await self._objects.delete(keys)
        if await self._objects.stat(self._key) is not None:
            raise self._lacks("an object is still there after it was deleted")
