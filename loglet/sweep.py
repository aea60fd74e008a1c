"""Deletes what was trimmed: in the background, a little with each commit.

A trim is done when the local start is on disk; from then on nothing below is served, and how soon
its room comes back matters to nobody's correctness. So the batches go in chunks, of so many batches
and bytes at most, one with a commit that is made anyway: that costs no sync of its own, and what a
commit takes stays near to what it would without. Up to those bounds a chunk is at least a multiple
of what was stored since the one before, by however many commits, so that deleting keeps up with
storing. When no commit comes along for a while a chunk is committed alone.

Which batches are next is looked up on the store's own threads, which bring into memory what the
writer will have to look at.

**A crash** loses nothing of it: each chunk is in one commit with whatever it went with, and a start
looks at every loglet with a local start above its base. A store without room is no hindrance,
deletions may use its reserve: a chunk that went with a commit for which there was no room goes
alone. If even that fails, it is tried again after a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from loglet.config import LogServerConfig
from loglet.metrics import LogServerMetrics
from loglet.store import DropBatches, LogStore
from sharedlog.clock import Clock
from sharedlog.errors import StoreFailed
from sharedlog.ids import LogletId, Offset
from sharedlog.limits import MIB

log = logging.getLogger(__name__)

CHUNK_BATCHES_MIN: Final = 256
"""Batches of a chunk while little is stored."""

CHUNK_BATCHES_MAX: Final = 8_192
"""Batches of a chunk whatever is stored: some milliseconds."""

CHUNK_BYTES_MIN: Final = 4 * MIB
"""Bytes of a chunk while little is stored. Deleting a large batch costs no more than a small one,
but LMDB keeps a list of the pages that each commit has freed, and writes it anew when it takes from
it."""

CHUNK_BYTES_MAX: Final = 256 * MIB
"""Bytes of a chunk whatever is stored: the list of its pages takes half a MiB."""

KEEP_UP: Final = 2
"""A chunk is at least so many times what was stored since the one before."""

PAUSE_S: Final = 1.0
"""Before a chunk is tried again for which there was no room."""


class Sweep:
    """See the module's docstring. The writer takes what is `ready`, and says how that went."""

    def __init__(
        self, *, store: LogStore, clock: Clock, config: LogServerConfig, metrics: LogServerMetrics
    ) -> None:
        self._store = store
        self._clock = clock
        self._wait_s = config.sweep_wait_s
        self._metrics = metrics
        self._pending: dict[LogletId, Offset] = {}  # all that ends at or below this is to go
        self._stored_batches = self._stored_bytes = 0  # beyond what the last chunk answers for
        self._wake = asyncio.Event()
        self._ready: DropBatches | None = None  # a chunk that nobody has taken yet
        self._taken: asyncio.Future[bool] | None = None  # of the chunk; its result is whether done

    def add(self, loglet: LogletId, local_start: Offset) -> None:
        """What lies below this local start, which is on disk, is to be deleted."""
        self._pending[loglet] = local_start
        self._wake.set()

    def on_stored(self, batches: int, size: int) -> None:
        """A commit has stored so much."""
        self._stored_batches += batches
        self._stored_bytes += size

    @property
    def is_ready(self) -> bool:
        """There is a chunk that may go with a commit."""
        return self._ready is not None

    def take(self) -> DropBatches | None:
        """The chunk that goes with the next commit; say `done` after it."""
        chunk, self._ready = self._ready, None
        return chunk

    def done(self, chunk: DropBatches, *, well: bool, alone: bool) -> bool:
        """The commit with the chunk has ended; if not `well`, nothing was written.

        Returns whether it should go alone at once: what it went with found no room, and what it
        would make room for may be just that.
        """
        if not well and not alone:
            self._ready = chunk
            return True
        if well:
            self._metrics.trimmed_batches.inc(chunk.batches)
            self._metrics.trimmed_bytes.inc(chunk.size)
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(well)
        return False

    async def run(self, ask_writer: Callable[[], None]) -> None:
        """Delete what is pending, for ever. `ask_writer`: let it make a commit for the chunk.

        **Cancellation:** a chunk that nobody has taken is not deleted in this life.
        """
        while True:
            while self._pending:
                loglet, below = next(iter(self._pending.items()))
                if not await self._sweep(loglet, below, ask_writer):
                    await self._clock.sleep(PAUSE_S)
            self._wake.clear()
            await self._wake.wait()
            self._stored_batches = self._stored_bytes = 0  # while there was nothing to delete

    async def _sweep(self, loglet: LogletId, below: Offset, ask_writer: Callable[[], None]) -> bool:
        """Delete one chunk of a loglet, in turn with the others; False: not now."""
        batches, size = self._stored_batches, self._stored_bytes
        try:
            chunk = await self._store.find_trimmed(
                loglet,
                below,
                max_batches=min(max(CHUNK_BATCHES_MIN, KEEP_UP * batches), CHUNK_BATCHES_MAX),
                max_bytes=min(max(CHUNK_BYTES_MIN, KEEP_UP * size), CHUNK_BYTES_MAX),
            )
        except StoreFailed as error:
            log.error("sweep.failed", extra={"loglet": str(loglet), "reason": str(error)})  # noqa: TRY400
            return False
        if chunk is None:
            if self._pending.get(loglet) == below:
                del self._pending[loglet]
            return True
        self._stored_batches -= batches
        self._stored_bytes -= size
        self._pending[loglet] = max(self._pending.pop(loglet), below)  # the others are next
        return await self._hand_over(chunk, ask_writer)

    async def _hand_over(self, chunk: DropBatches, ask_writer: Callable[[], None]) -> bool:
        """Offer a chunk to the next commit, and ask for one if none comes along."""
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._ready, self._taken = chunk, taken
        try:
            async with asyncio.timeout(self._wait_s):
                return await asyncio.shield(taken)
        except TimeoutError:
            ask_writer()
            return await taken
