"""Whether a store compares when it is told to: what all that is kept there stands on.

Some servers that speak S3 accept the conditions of a PUT and ignore them. With such a one two
processes could both win a compare-and-swap, and what one wrote would be lost later and in silence.
So a store is tried out before it is used, and one that fails is refused.

What can't be tried out with a few requests is not: that it is so under concurrency, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from metadata.s3.settings import Purpose
from metadata.s3.values import Versioned
from sharedlog.errors import SharedLogError, SwapConflict


class Swappable(Protocol):
    """A store of values that are changed by compare-and-swap; see `S3Values`."""

    @property
    def url(self) -> str:
        """The root, for people."""
        ...

    async def read_versioned(self, key: str) -> Versioned | None:
        """The whole value and its version; None if there is none."""
        ...

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace the value if it has the version `expected`, None: if there is none."""
        ...


class SwapTrial:
    """Tries out a store by writing under two fresh keys, of which one stays absent."""

    def __init__(
        self,
        store: Swappable,
        purpose: Purpose,
        key: str,
        absent: str,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._purpose = purpose
        self._key = key
        self._absent = absent
        # Different in each part: a version that is a hash of a part would not do.
        self._first, self._second, self._third = (
            f"{new_id()} {number} {new_id()}".encode() for number in (1, 2, 3)
        )

    async def swaps(self) -> str:
        """Compare-and-swap compares; the version that is there then.

        Raises:
            `purpose.unavailable`: nothing is known; try again.
            `purpose.unsuitable`: it must not be used; the message says which property is missing.

        **Cancellation:** objects are left behind.
        """
        version = await self._store.swap(self._key, self._first, None)
        if await self._is_swapped(self._key, self._second, None):
            raise self._lacks(
                "it makes an object that is there already (If-None-Match is ignored), so that two "
                "nodes could both believe that they have made it"
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
        return newer

    async def _is_swapped(self, key: str, data: bytes, expected: str | None) -> bool:
        """Whether a swap that must not succeed does."""
        try:
            await self._store.swap(key, data, expected)
        except SwapConflict:
            found = await self._store.read_versioned(key)
            return found is not None and found.data == data
        except self._purpose.unavailable:
            # No answer, or one that contradicts what is read: not the right one, in any case.
            if (found := await self._store.read_versioned(key)) is None or found.data != data:
                raise
        return True

    def _lacks(self, what: str) -> SharedLogError:
        return self._purpose.unsuitable(f"{self._store.url} can't be {self._purpose.noun}: {what}")
