"""An object store in a folder of one machine: for development, and tests.

All that touches the disk is in `folder.py` and runs in a few threads of this store, so that the
event loop never waits for a disk. This is the shell round it: it waits for threads, for the lock of
a swap, and turns the system's errors into ours.

A thread that has begun goes on when its caller is cancelled. So a cancelled swap may still happen,
and what is being uploaded is discarded after the thread that writes it is done.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from loglet.archive.folder import Folder
from loglet.archive.object_store import ObjectInfo, Versioned, check_key
from loglet.archive.url import FolderUrl, check_prefix
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import ArchiveUnavailable, ArchiveUnsuitable, SharedLogError
from sharedlog.limits import MIB

T = TypeVar("T")

THREADS: Final = 4
WRITE_BYTES: Final = 2 * MIB
"""Of an upload so much is gathered before a thread writes it: each hand-over costs a turn of the
event loop."""
LOCK_WAIT_S: Final = 10.0
"""A swap that can't get the lock for so long fails; it is held for two syncs."""
_LOCK_PAUSE_MIN_S: Final = 0.001
_LOCK_PAUSE_MAX_S: Final = 0.05

_A_PERSON_MUST_ACT: Final = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)


class FileStore:
    """An `ObjectStore`. Several, in several processes of a machine, may have the same folder."""

    def __init__(
        self, url: FolderUrl, *, clock: Clock, rng: Random, new_id: Callable[[], str]
    ) -> None:
        self._url = url
        self._clock = clock
        self._rng = rng
        self._folder = Folder(Path(url.folder), new_id)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="archive")
        # Those of this process wait here rather than poll for each other's lock.
        self._swapping = asyncio.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        """See `ObjectStore.url`."""
        return str(self._url)

    async def adapt(self, key: str, salt: bytes) -> None:  # noqa: ARG002  the probe tells all stores
        """Make the folder if it is missing, and sweep it. See `probe.Adaptable`."""
        await self._run("make the folder", self._folder.prepare)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """See `ObjectStore.read`."""
        assert start >= 0
        assert end is None or start <= end
        return await self._run(f"read {key}", partial(self._folder.read, key, start, end))

    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `ObjectStore.read_tail`."""
        assert size > 0
        return await self._run(f"read {key}", partial(self._folder.read_tail, key, size))

    async def read_versioned(self, key: str) -> Versioned | None:
        """See `ObjectStore.read_versioned`."""
        return await self._run(f"read {key}", partial(self._folder.read_versioned, key))

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        """See `ObjectStore.upload`."""
        doing = f"write {key}"
        writing = self._folder.writing(key)
        gathered: list[bytes] = []
        size = 0
        try:
            async for piece in parts:
                gathered.append(piece)
                size += len(piece)
                if size >= WRITE_BYTES:
                    await self._run(doing, partial(writing.append, gathered))
                    gathered, size = [], 0
            return await self._run(doing, partial(writing.finish, gathered))
        finally:
            # Shielded: a second cancellation must not keep it from being done.
            loop = asyncio.get_running_loop()
            threads = None if self._closed else self._threads
            await asyncio.shield(loop.run_in_executor(threads, writing.discard))

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `ObjectStore.swap`."""
        pauses = Backoff(self._rng, min_s=_LOCK_PAUSE_MIN_S, max_s=_LOCK_PAUSE_MAX_S)
        until_s = self._clock.monotonic_s() + LOCK_WAIT_S
        async with self._swapping:
            while True:
                work = partial(self._folder.try_swap, key, data, expected)
                version = await self._run(f"replace {key}", work)
                if version is not None:
                    return version
                if self._clock.monotonic_s() >= until_s:
                    raise ArchiveUnavailable(
                        f"{self.url}: can't replace {key}: another process has held the lock for "
                        f"{LOCK_WAIT_S:.0f} s"
                    )
                await self._clock.sleep(pauses.next_s())

    async def stat(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.stat`."""
        return await self._run(f"look for {key}", partial(self._folder.stat, key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`. A folder at a time is in memory."""
        check_prefix(prefix)
        folder, slash, _ = prefix.rpartition("/")
        left: list[ObjectInfo | str] = [folder + slash]
        while left:
            found = left.pop()
            if isinstance(found, ObjectInfo):
                yield found
                continue
            work = partial(self._folder.scan, found, prefix)
            left.extend(reversed(await self._run(f"list {prefix or 'all'}", work)))

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        for key in keys:
            check_key(key)  # all, before the first is deleted
        await self._run(f"delete {len(keys)} objects", partial(self._folder.delete, keys))

    async def close(self) -> None:
        """See `ObjectStore.close`. Waits for what the threads are at."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, doing: str, work: Callable[[], T]) -> T:
        if self._closed:
            raise ArchiveUnavailable(f"{self.url}: it was closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except OSError as error:
            raise self._translated(doing, error) from error

    def _translated(self, doing: str, error: OSError) -> SharedLogError:
        said = f"{self.url}: can't {doing}: {error.strerror or error}"
        if error.errno in _A_PERSON_MUST_ACT:
            return ArchiveUnsuitable(said)
        return ArchiveUnavailable(said)
