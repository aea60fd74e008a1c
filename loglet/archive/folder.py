"""Objects as files in a folder: what `FileStore` does in its threads.

    <root>/<key>                   an object, or a value
    <root>/.store/writing/<id>     what is being written
    <root>/.store/lock             held while a value is compared and replaced

**Whole or not at all.** Bytes go to a file under `writing`, are synced, and are then renamed to
where they belong; then the folder is synced. A reader sees all of an old file or all of a new one.

**Crashes.** Who writes a file holds a lock on it, which ends with the process. So what nobody holds
is left over, and `prepare` deletes it. Between making a file and locking it there is a moment in
which a sweep may delete it: who made it looks whether it is still there once it is locked.

**Compare-and-swap** is exact between processes of one machine: all of it, reading, comparing,
syncing and renaming, happens under one lock. It is taken or found busy, never waited for: a thread
that waited for a process which was stopped would be lost.

**Beside log servers.** A folder may be on their disk, and its page cache is theirs. So objects are
written past it, and what is read in long stretches, to verify it or to catch up, is read past it
(`direct.py`).

**Absence is told apart from an empty disk.** `.store` is made by `prepare`; where it is missing,
nothing is said to be absent.

Everything here blocks, is safe in threads, and raises OSError besides what it says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Final

from loglet.archive.direct import DirectWriter, read_cached, read_direct
from loglet.archive.object_store import ObjectInfo, Versioned, check_key
from sharedlog.errors import ArchiveUnsuitable, InvalidArgument, ObjectNotFound, SwapConflict
from sharedlog.limits import MIB

OWN: Final = ".store"
"""Folder of what is no object."""
_DURABLE_MAX: Final = 10_000
"""Folders that are remembered to be durable; forgetting one costs a sync."""
KEEP_BYTES_MAX: Final = 1 * MIB
"""A longer read goes past the page cache; what a short one has read may be wanted again."""
_NOT_A_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Folder:
    """See the module's docstring. Several, in several processes, may have the same root."""

    def __init__(self, root: Path, new_id: Callable[[], str]) -> None:
        self._root = root
        self._new_id = new_id
        self._preparing = threading.Lock()
        self._prepared = False  # guarded by _preparing
        self._durable: set[Path] = set()  # folders whose entries above are synced

    def prepare(self) -> None:
        """Make what is missing, and delete what crashed writers have left. Once is enough."""
        with self._preparing:
            if self._prepared:
                return
            self._make(self._writing)
            for left in sorted(self._writing.iterdir()):
                _delete_unless_held(left)
            self._prepared = True

    def read(self, key: str, start: int, end: int | None) -> bytes:
        """See `ObjectStore.read`."""
        with self._opened(key) as fd:
            size = os.fstat(fd).st_size
            end = size if end is None else min(end, size)
            if end - start > KEEP_BYTES_MAX:
                return read_direct(fd, start, end)
            return read_cached(fd, start, end)

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `ObjectStore.read_tail`."""
        with self._opened(key) as fd:
            whole = os.fstat(fd).st_size
            return read_cached(fd, max(0, whole - size), whole), whole

    def read_versioned(self, key: str) -> Versioned | None:
        """See `ObjectStore.read_versioned`."""
        try:
            data = self.read(key, 0, None)
        except ObjectNotFound:
            return None
        # Who renamed it may be about to sync the folder, or have died before: it is not told before
        # it is durable.
        _sync_folder(self._path(key).parent)
        return Versioned(data, version_of(data))

    def stat(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.stat`."""
        try:
            with self._opened(key) as fd:
                found = os.fstat(fd)
        except ObjectNotFound:
            return None
        return ObjectInfo(key, found.st_size, found.st_mtime_ns // 1_000_000)

    def scan(self, folder: str, prefix: str) -> list[ObjectInfo | str]:
        """Objects in a folder, and folders in it, as keys and keys with a slash behind, in order.

        `folder` is "", or a key with a slash behind. In the order of the bytes a folder's name has
        its slash behind: `a-b` is before `a/b`.
        """
        found: dict[str, ObjectInfo | str] = {}
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    key = f"{folder}{entry.name}"
                    if _is_foreign(key):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        found[f"{key}/"] = f"{key}/"
                    elif (info := _info(key, entry)) is not None:
                        found[key] = info
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            self._check_root()
        return [found[name] for name in sorted(found) if name.startswith(prefix)]

    def try_swap(self, key: str, data: bytes, expected: str | None) -> str | None:
        """See `ObjectStore.swap`; None if somebody else swaps at the moment.

        Raises:
            SwapConflict: another value is there.
        """
        path = self._path(key)
        self.prepare()
        with self._locked() as locked:
            if not locked:
                return None
            found = self.read_versioned(key)
            actual = None if found is None else found.version
            if actual != expected:
                raise SwapConflict(
                    f"{self._root}: {key} has version {actual}, expected was {expected}",
                    key=key,
                    actual=actual,
                )
            writing = self.writing(key)
            try:
                writing.finish([data])
            finally:
                writing.discard()
            assert path.is_file(), "it was renamed under the lock"
            return version_of(data)

    def writing(self, key: str) -> Writing:
        """A new file for this key; nothing happens yet."""
        return Writing(self, self._path(key))

    def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete`."""
        paths = [self._path(key) for key in keys]
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except NotADirectoryError:
                continue
        for parent in sorted({path.parent for path in paths}):
            with suppress(FileNotFoundError, NotADirectoryError):
                _sync_folder(parent)

    def begin(self) -> tuple[Path, int]:
        """A new file under `writing`, held: its path and descriptor."""
        self.prepare()
        while True:
            path = self._writing / self._new_id()
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:
                    return path, fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # swept before it was held

    def put_in_place(self, written: Path, path: Path) -> None:
        """Rename what was written and synced, durably."""
        self._make(path.parent)
        written.replace(path)
        _sync_folder(path.parent)

    @property
    def _writing(self) -> Path:
        return self._root / OWN / "writing"

    def _path(self, key: str) -> Path:
        check_key(key)
        if key.split("/", maxsplit=1)[0] == OWN:
            raise InvalidArgument(f"{key!r} is no key of an object: {OWN} is the store's own")
        return self._root / key

    @contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        try:
            # A pipe that somebody put there must not stop the thread for ever.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self._path(key), flags)
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            self._check_root()
            raise self._not_found(key) from error
        try:
            if not S_ISREG(os.fstat(fd).st_mode):
                raise self._not_found(key)
            # Who reads knows how much of it, and reads ahead by itself.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            yield fd
        finally:
            os.close(fd)

    def _not_found(self, key: str) -> ObjectNotFound:
        return ObjectNotFound(f"file://{self._root}: there is no object {key}", key=key)

    def _check_root(self) -> None:
        """Before something is said to be absent."""
        if not (self._root / OWN).is_dir():
            raise ArchiveUnsuitable(
                f"file://{self._root} is no archive: it lacks the folder {OWN}, which whoever "
                "writes there first makes (is the disk mounted?)"
            )

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the lock was got; it ends with the block, or the process."""
        fd = os.open(self._root / OWN / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, and see to it that their names are durable.

        One that is there may have been made by somebody who has not synced yet, so what is not
        known to be durable is synced once.
        """
        if folder in self._durable or folder == folder.parent:
            return
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
        elif folder != self._root:
            self._make(folder.parent)
        # What is above a root that an administrator made may be closed to us.
        with suppress(*((PermissionError,) if folder == self._root else ())):
            _sync_folder(folder.parent)
        if len(self._durable) >= _DURABLE_MAX:
            self._durable.clear()
        self._durable.add(folder)


class Writing:
    """One file that is being written; its methods may be called in different threads."""

    def __init__(self, folder: Folder, path: Path) -> None:
        self._folder = folder
        self._path = path
        self._one_at_a_time = threading.Lock()  # so that no thread uses a descriptor that is closed
        self._open: tuple[Path, int, DirectWriter] | None = None
        self._ended = False
        self._failure: OSError | None = None  # something is missing: it must not be put in place
        self._size = 0

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write more; nothing once it has ended."""
        with self._one_at_a_time, self._failing():
            if not self._ended:
                self._write(pieces)

    def finish(self, pieces: Sequence[bytes] = ()) -> int:
        """Write the last, sync, and put the file in its place; its size."""
        with self._one_at_a_time, self._failing():
            if not self._ended:
                self._write(pieces)
                written, fd, writer = self._begun()
                writer.finish()
                os.fsync(fd)
                self._folder.put_in_place(written, self._path)
                self._close()
            return self._size

    def discard(self) -> None:
        """Delete it unless it is in its place."""
        with self._one_at_a_time:
            if self._open is not None:
                with suppress(OSError):  # the next sweep gets it
                    self._open[0].unlink(missing_ok=True)
                self._close()
            self._ended = True

    def _write(self, pieces: Sequence[bytes]) -> None:
        _, _, writer = self._begun()
        for piece in pieces:
            writer.write(piece)
            self._size += len(piece)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """A failure is for ever."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except OSError as error:
            self._failure = error
            raise

    def _begun(self) -> tuple[Path, int, DirectWriter]:
        if self._open is None:
            path, fd = self._folder.begin()
            self._open = path, fd, DirectWriter(fd)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            _, fd, writer = self._open
            writer.close()
            os.close(fd)
        self._open, self._ended = None, True


def version_of(data: bytes) -> str:
    """The version of a value: a hash, as callers put random bytes into each."""
    return sha256(data).hexdigest()


def _is_foreign(key: str) -> bool:
    """Nothing of an archive, such as `lost+found`."""
    if key == OWN:
        return True
    try:
        check_key(key)
    except InvalidArgument:
        return True
    return False


def _info(key: str, entry: os.DirEntry[str]) -> ObjectInfo | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # deleted since
    if not S_ISREG(found.st_mode):
        return None
    return ObjectInfo(key, found.st_size, found.st_mtime_ns // 1_000_000)


def _delete_unless_held(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # A file system that is read-only, or knows no such thing, has nothing to sync.
        if error.errno not in (errno.EINVAL, errno.EROFS):
            raise
    finally:
        os.close(fd)
