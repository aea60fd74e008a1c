"""That a store was tried out, before a manifest is written to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loglet.archive.object_store import ObjectStore
from loglet.archive.probe import probe


class Proof:
    """One trial for a process, once it has succeeded; until then whoever asks makes another.

    Whatever changes a manifest asks, not the archivist alone: a store that ignores conditions would
    lose history at the first command of an operator, too.
    """

    def __init__(self, store: ObjectStore, new_id: Callable[[], str]) -> None:
        self._store = store
        self._new_id = new_id
        self._made = False
        self._trying = asyncio.Lock()

    async def made(self) -> None:
        """Return once the store has shown that it does what is relied on.

        Raises:
            What `probe` raises.

        **Cancellation:** as of `probe`.
        """
        if self._made:
            return
        async with self._trying:
            if not self._made:
                await probe(self._store, self._new_id)
                self._made = True
