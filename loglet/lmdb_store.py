"""`LogStore` on LMDB: one environment, one thread that writes, a few that read.

**Writing.** One `commit` is one synced transaction, whatever it holds. All writes run on one
thread, since LMDB binds a write transaction to its thread, and since a sync must not stop the event
loop. LMDB syncs the data before it writes the new root, so a crash leaves the last commit or the
one before.

**Reading** has threads of its own: a page that is not in memory costs a disk access inside a plain
memory access, and nothing else may wait for that.

**Size.** Without `writemap` LMDB's map is address space only; the file grows as pages are written.
So the map is made as large as the store may ever be: its limit, or what the file system could hold
(at least 1 TiB), and it never has to be resized, which LMDB allows only while no transaction runs.
A file system that was enlarged counts from the next start. What is left of the limit and on the
disk is looked up before each commit, and batches stop at the reserve, so that seals still go
through; those of repairs stop at half of it.

What was trimmed is deleted by `DropBatches`, a bounded number of batches in a commit. The file does
not shrink: LMDB keeps the pages that are freed, and writes to them again once no read transaction
is left from before, so all of these are short, and none stays open while somebody waits. A batch
that does not fit into a page needs neighbouring ones. Batches go in the order in which they came,
so what they leave is in one piece as a rule, and where it is not, the file grows instead. So what
counts as used is what the tree takes, and a mebibyte more for what was freed just now.

**Errors of a commit.** No room (`ENOSPC`, `EDQUOT`, a full map) leaves the last root in place and
is `StoreReadOnly`. That holds if the sync reported it, too: the pages that were not synced belong
to no root, and the next transaction writes and syncs them again. If LMDB failed while it wrote the
root itself, it refuses every further transaction. All else is `StoreFailed`: after a failed sync
nobody knows what is on the disk, and trying again would only hide it (Field note 23). A disk that
somebody else filled to the last byte, reserve and all, can show as a short write, which LMDB tells
as `EIO`: then the process stops, which is safe, rather than go on read-only.

**Restart** reads the records of loglets, and for each loglet the last key and the first bytes of
its value; no data is scanned. A damaged record there is `StoreFailed`, and the process does not
start. A damaged batch keeps its place (`loglet/held.py`).

The lock file keeps a second process out; LMDB's own locks would let it in.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import lmdb

from loglet import keys
from loglet.config import LogServerConfig
from loglet.group import BATCH_OVERHEAD_BYTES
from loglet.held import verified
from loglet.lmdb_batches import put, read_loglets, walk, walk_ended
from loglet.lmdb_file import LmdbFile
from loglet.page_cache import PageCacheBound
from loglet.store import (
    DropBatches,
    HeldBatch,
    LogletState,
    Neighbours,
    PutBatch,
    PutRepaired,
    StoreSpace,
    Write,
)
from loglet.time_search import find_neighbours
from sharedlog.batch import HEADERS_BYTES
from sharedlog.errors import (
    StoreFailed,
    StoreReadOnly,
    WrongCluster,
    WrongStorage,
)
from sharedlog.ids import LogletId, NodeId, Offset, StorageId
from sharedlog.limits import MIB

log = logging.getLogger(__name__)

_UNUSABLE_BYTES: Final = MIB
"""Of what is free within the file so much is not counted as free: pages of the last commits, and
those that list the free ones."""
_MAP_BYTES_MIN: Final = 1024 * 1024 * MIB
_LOCK_FILE: Final = "store.lock"
_DATA_FILE: Final = "data.mdb"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


class Usage(Protocol):
    """The part of `os.statvfs_result` that is used."""

    @property
    def f_bavail(self) -> int:
        """Blocks that are free for this user."""

    @property
    def f_blocks(self) -> int:
        """All blocks."""

    @property
    def f_frsize(self) -> int:
        """Bytes of a block."""


StatVfs = Callable[[str], Usage]


class LmdbLogStore:
    """See the module's docstring. Made by `open`."""

    def __init__(
        self,
        env: Any,
        identity: keys.Identity,
        config: LogServerConfig,
        file: LmdbFile,
        *,
        directory: Path,
        lock: int,
        statvfs: StatVfs = os.statvfs,
    ) -> None:
        self.identity = identity
        self._env = env
        self._config = config
        self._directory = str(directory)
        self._lock = lock
        self._statvfs = statvfs
        self._page_bytes: int = env.stat()["psize"]
        self._file = file
        self._page_cache: PageCacheBound | None = None
        if config.page_cache_bytes:
            self._page_cache = PageCacheBound(
                self._file,
                keep_bytes=config.page_cache_bytes,
                written_bytes=self._file_bytes(),
            )
        self._writer = _Writer(self._commit)
        self._readers = ThreadPoolExecutor(config.read_threads, thread_name_prefix="store-read")

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        node_id: NodeId,
        cluster_id: str,
        new_id: Callable[[], str],
        config: LogServerConfig,
        statvfs: StatVfs = os.statvfs,
    ) -> LmdbLogStore:
        """Open the store of a node, or create it with a new storage_id.

        Raises:
            WrongStorage: it belongs to another node. WrongCluster: to another cluster. StoreFailed:
            another process uses it, its metadata is damaged, or the disk failed.
        """
        lock = -1
        env = file = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = lock_store(directory)
            env = _open_env(directory, config, statvfs)
            identity = _read_identity(env)
            if identity is None:
                identity = keys.Identity(
                    node_id=node_id, cluster_id=cluster_id, storage_id=StorageId(new_id())
                )
                _write_identity(env, identity, directory)
            _check_identity(identity, directory, node_id, cluster_id)
            file = LmdbFile(directory / _DATA_FILE, page_bytes=env.stat()["psize"])
            store = cls(
                env, identity, config, file, directory=directory, lock=lock, statvfs=statvfs
            )
            # From here on the store owns all three.
            lock, env, file = -1, None, None
            return store
        except (lmdb.Error, OSError) as error:
            raise StoreFailed(f"can't open the store {directory}: {error}") from error
        finally:
            if file is not None:
                file.close()
            if env is not None:
                env.close()
            if lock >= 0:
                os.close(lock)

    @property
    def storage_id(self) -> StorageId:
        """See `LogStore.storage_id`."""
        return self.identity.storage_id

    def loglets(self) -> Sequence[LogletState]:
        """See `LogStore.loglets`."""
        try:
            return read_loglets(self._env, self._file)
        except (lmdb.Error, OSError) as error:
            raise StoreFailed(f"reading the store failed: {error}") from error

    async def commit(self, writes: Sequence[Write]) -> None:
        """See `LogStore.commit`."""
        await self._writer.run(writes)

    async def read(
        self, loglet: LogletId, start: Offset, end: Offset, *, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        """See `LogStore.read`."""
        loop = asyncio.get_running_loop()
        found: list[tuple[Offset, bytes]] = await loop.run_in_executor(
            self._readers, self._read, loglet, start, end, max_bytes
        )
        return found

    async def scan(
        self,
        loglet: LogletId,
        start: Offset,
        end: Offset,
        *,
        verify: bool,
        max_batches: int,
        max_bytes: int,
    ) -> list[HeldBatch]:
        """See `LogStore.scan`."""
        job = partial(
            self._scan,
            loglet,
            start,
            end,
            max_batches=max_batches,
            max_bytes=max_bytes if verify else None,
        )
        return await asyncio.get_running_loop().run_in_executor(self._readers, job)

    async def find_time(
        self, loglet: LogletId, start: Offset, end: Offset, timestamp_ms: int
    ) -> Neighbours:
        """See `LogStore.find_time`."""
        job = partial(self._find_time, loglet, start, end, timestamp_ms)
        return await asyncio.get_running_loop().run_in_executor(self._readers, job)

    async def find_trimmed(
        self, loglet: LogletId, below: Offset, *, max_batches: int, max_bytes: int
    ) -> DropBatches | None:
        """See `LogStore.find_trimmed`."""
        job = partial(self._find_trimmed, loglet, below, max_batches, max_bytes)
        return await asyncio.get_running_loop().run_in_executor(self._readers, job)

    def space(self) -> StoreSpace:
        """See `LogStore.space`."""
        size = self._file_bytes()
        reusable = max(0, size - self._tree_bytes() - _UNUSABLE_BYTES)
        used = size - reusable
        disk = self._statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize + reusable
        if self._config.store_bytes_max:
            free = min(free, self._config.store_bytes_max - used)
        reserve = self._config.reserve_bytes
        return StoreSpace(used, max(0, free - reserve), max(0, free - reserve // 2), size)

    async def close(self) -> None:
        """See `LogStore.close`."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.stop()
        self._readers.shutdown()
        self._env.close()
        self._file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _commit(self, writes: Sequence[Write]) -> None:
        """On the writer's thread."""
        self._check_room(writes)
        try:
            with self._env.begin(write=True) as txn:
                for write in writes:
                    put(txn, write)
        except lmdb.MapFullError as error:
            raise StoreReadOnly("the store has reached its limit") from error
        except (lmdb.Error, OSError) as error:
            if _error_number(error) in _NO_ROOM:
                raise StoreReadOnly(f"the store's disk is full: {error}") from error
            raise StoreFailed(f"writing the store failed: {error}") from error
        if self._page_cache is not None:
            stored = sum(len(it.placed) for it in writes if isinstance(it, PutBatch))
            self._page_cache.on_synced(self._file_bytes(), stored)

    def _check_room(self, writes: Sequence[Write]) -> None:
        sizes = [0, 0]  # of stores and of repairs
        for write in writes:
            if isinstance(write, PutBatch):
                size = len(write.placed) + BATCH_OVERHEAD_BYTES
                sizes[isinstance(write, PutRepaired)] += size
        if not any(sizes):
            return
        space = self.space()
        if sizes[0] > space.free_bytes or sum(sizes) > space.repair_bytes:
            raise StoreReadOnly("the store is full")

    def _file_bytes(self) -> int:
        size: int = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        return size

    def _tree_bytes(self) -> int:
        """Pages of the one database, and the two roots."""
        stat = self._env.stat()
        pages: int = 2 + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self._page_bytes

    def _read(
        self, loglet: LogletId, start: Offset, end: Offset, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        """On a reader's thread."""
        found: list[tuple[Offset, bytes]] = []
        size = 0
        try:
            with self._env.begin(buffers=True) as txn, txn.cursor() as cursor:
                reading = self._file.reading(cursor)
                for first, _, entry in walk(reading, loglet, start, end):
                    size += entry.size
                    if found and size > max_bytes:
                        break
                    found.append((first, reading.value(entry)))
        except (lmdb.Error, OSError) as error:
            raise StoreFailed(f"reading the store failed: {error}") from error
        return found

    def _scan(
        self,
        loglet: LogletId,
        start: Offset,
        end: Offset,
        *,
        max_batches: int,
        max_bytes: int | None,
    ) -> list[HeldBatch]:
        """On a reader's thread; without `max_bytes` nothing is verified."""
        found: list[HeldBatch] = []
        size = 0
        try:
            with self._env.begin(buffers=True) as txn, txn.cursor() as cursor:
                reading = self._file.reading(cursor)
                for first, last, entry in walk(reading, loglet, start, end):
                    if max_bytes is None:
                        found.append(HeldBatch(first, last, b""))
                    else:
                        size += entry.size
                        if found and size > max_bytes:
                            break
                        found.append(verified(loglet, first, last, reading.value(entry)))
                    if len(found) >= max_batches:
                        break
        except (lmdb.Error, OSError) as error:
            raise StoreFailed(f"reading the store failed: {error}") from error
        return found

    def _find_trimmed(
        self, loglet: LogletId, below: Offset, max_batches: int, max_bytes: int
    ) -> DropBatches | None:
        """On a reader's thread.

        To free a large batch LMDB looks at its first page. That is read here, so that the writer
        does not wait for the disk.
        """
        batches = size = 0
        end = below
        try:
            with self._env.begin(buffers=True) as txn, txn.cursor() as cursor:
                reading = self._file.reading(cursor)
                for last, entry in walk_ended(reading, loglet, below):
                    if batches and (size + entry.size > max_bytes or batches >= max_batches):
                        break
                    batches, size, end = batches + 1, size + entry.size, last
                    reading.beginning(entry, 1)
        except (lmdb.Error, OSError) as error:
            raise StoreFailed(f"reading the store failed: {error}") from error
        return DropBatches(loglet, end, batches, size) if batches else None

    def _find_time(
        self, loglet: LogletId, start: Offset, end: Offset, timestamp_ms: int
    ) -> Neighbours:
        """On a reader's thread."""
        try:
            with self._env.begin(buffers=True) as txn, txn.cursor() as cursor:
                reading = self._file.reading(cursor)

                def step(first: Offset, last: Offset) -> Iterator[tuple[Offset, Offset, bytes]]:
                    for its_first, its_end, entry in walk(reading, loglet, first, last):
                        yield its_first, its_end, reading.beginning(entry, HEADERS_BYTES)

                return find_neighbours(step, loglet, start, end, timestamp_ms)
        except (lmdb.Error, OSError) as error:
            raise StoreFailed(f"reading the store failed: {error}") from error


class _Writer:
    """One thread that runs one job at a time, and tells the event loop how it went.

    A plain queue and a future cost half of what an executor does, once per commit.
    """

    def __init__(self, job: Callable[[Sequence[Write]], None]) -> None:
        self._job = job
        # A SimpleQueue costs one lock where a Queue costs three. It holds at most the one job of
        # the one `commit` that may run, and the end.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()

    async def run(self, writes: Sequence[Write]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._jobs.put((loop, done, writes))
        await done

    def stop(self) -> None:
        """Finish what was begun, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, done, writes = job
            failure: BaseException | None = None
            try:
                self._job(writes)
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                failure = error
            # A loop that is closed by now has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, failure)
            del job, writes, done


_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]", Sequence[Write]]


def _settle(done: asyncio.Future[None], failure: BaseException | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


def lock_store(directory: Path) -> int:
    """Take the store's lock; returns the descriptor that holds it.

    Raises:
        StoreFailed: another process has it. OSError: the file can't be made.
    """
    lock = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise StoreFailed(f"the store {directory} is in use by another process") from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def open_env_read_only(directory: Path) -> Any:
    """The environment of a store that nobody writes: hold the lock.

    Raises:
        StoreFailed: there is no store, or it can't be opened.
    """
    if not (directory / _DATA_FILE).is_file():
        raise StoreFailed(f"there is no store in {directory}")
    map_bytes = max(_MAP_BYTES_MIN, (directory / _DATA_FILE).stat().st_size)
    try:
        return lmdb.open(
            str(directory), map_size=map_bytes, readonly=True, lock=False, lib_version=0
        )
    except lmdb.Error as error:
        raise StoreFailed(f"can't open the store {directory}: {error}") from error


def _open_env(directory: Path, config: LogServerConfig, statvfs: StatVfs) -> Any:
    """LMDB 0.9, said explicitly: 1.0 has other files, and the choice is for ever."""
    disk = statvfs(str(directory))
    map_bytes = config.store_bytes_max or max(_MAP_BYTES_MIN, disk.f_blocks * disk.f_frsize)
    with contextlib.suppress(FileNotFoundError):
        # A limit that was lowered makes the store read-only; it does not make it unreadable.
        map_bytes = max(map_bytes, (directory / _DATA_FILE).stat().st_size)
    return lmdb.open(
        str(directory),
        map_size=-(-map_bytes // MIB) * MIB,
        max_spare_txns=config.read_threads,
        readahead=False,  # see `lmdb_file.py`
        lib_version=0,
    )


def _read_identity(env: Any) -> keys.Identity | None:
    """The identity record; None in a store that was just made.

    Raises:
        StoreFailed: damaged, or missing from a store that has something in it.
    """
    with env.begin() as txn:
        value = txn.get(keys.IDENTITY_KEY)
        if value is not None:
            return keys.decode_identity(value)
        if txn.stat()["entries"]:
            raise StoreFailed("the store has no identity record")
    return None


def _write_identity(env: Any, identity: keys.Identity, directory: Path) -> None:
    """Write it, and make the way to it durable, which LMDB does not.

    Any directory above may be new, and its entry not synced. One that can't be opened is not ours.
    """
    with env.begin(write=True) as txn:
        txn.put(keys.IDENTITY_KEY, keys.encode_identity(identity))
    for path in (directory, *directory.absolute().parents):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            break
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    log.info("store.created", extra={"storage_id": identity.storage_id})


def _check_identity(
    identity: keys.Identity, directory: Path, node_id: NodeId, cluster_id: str
) -> None:
    if identity.cluster_id != cluster_id:
        raise WrongCluster(
            f"the store {directory} belongs to cluster {identity.cluster_id}, not {cluster_id}"
        )
    if identity.node_id != node_id:
        raise WrongStorage(
            f"the store {directory} belongs to node {identity.node_id}, not {node_id}"
        )


def read_identity(env: Any) -> keys.Identity:
    """The identity of an existing store. Raises `StoreFailed` if it is missing or damaged."""
    identity = _read_identity(env)
    if identity is None:
        raise StoreFailed("the store is empty")
    return identity


def _error_number(error: BaseException) -> int | None:
    """What the operating system said, from an `OSError` or from LMDB's."""
    number = getattr(error, "errno", None) or getattr(error, "code", None)
    return number if isinstance(number, int) else None
