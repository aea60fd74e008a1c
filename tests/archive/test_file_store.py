"""The folder: crashes at every step, several processes, foreign files, a disk that fails."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest
from helpers.archive_stores import QuickClock, new_id, opened, pieces
from helpers.page_cache import cached_bytes, has_direct

from loglet.archive.direct import PIECE_BYTES
from loglet.archive.file_store import LOCK_WAIT_S, WRITE_BYTES, FileStore
from loglet.archive.folder import KEEP_BYTES_MAX, OWN, Folder
from loglet.archive.object_store import ObjectStore
from loglet.archive.url import FolderUrl, parse_archive_url
from sharedlog.errors import (
    ArchiveUnavailable,
    ArchiveUnsuitable,
    InvalidArgument,
    SwapConflict,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "archive"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[ObjectStore]:
    made = opened(f"file://{root}")
    yield made
    await made.close()


def being_written(root: Path) -> list[Path]:
    return sorted((root / OWN / "writing").iterdir())


CRASHING = """
import os, signal, sys
from pathlib import Path
from loglet.archive.folder import Folder, version_of

root, what, fatal = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder = Folder(root, lambda: os.urandom(8).hex())
left = fatal

def counted(function):
    def step(*args, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **more)
    return step

for name in ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "close"):
    setattr(os, name, counted(getattr(os, name)))
import fcntl
fcntl.flock = counted(fcntl.flock)

if what == "swap":
    folder.try_swap("log/manifest", b"new", version_of(b"old"))
else:
    writing = folder.writing("log/object")
    writing.append([b"first half, "])
    writing.append([b"second half"])
    writing.finish()
"""


def crash(root: Path, what: str, step: int) -> bool:
    """Do it in a process that is killed before its system call number `step`; False: it ended."""
    child = subprocess.run(
        [sys.executable, "-c", CRASHING, str(root), what, str(step)],
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        timeout=60,
    )
    if child.returncode == -signal.SIGKILL:
        return True
    assert child.returncode == 0, child.stderr.decode()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("what", ["swap", "upload"])
def test_a_crash_at_any_step_leaves_all_or_nothing(tmp_path: Path, what: str) -> None:
    """The old value or the new one, the whole object or none; the lock is free, nothing is left
    over once somebody comes after, who can do the same again."""
    outcomes: set[bytes | None] = set()
    for step in range(1, 100):
        root = tmp_path / f"{step}"
        if what == "swap":
            Folder(root, new_id).try_swap("log/manifest", b"old", None)
        crashed = crash(root, what, step)
        after = Folder(root, new_id)
        after.prepare()
        assert being_written(root) == []
        if what == "swap":
            found = after.read_versioned("log/manifest")
            assert found is not None
            assert found.data in (b"old", b"new")
            outcomes.add(found.data)
            assert after.try_swap("log/manifest", b"newer", found.version)
        else:
            info = after.stat("log/object")
            outcomes.add(None if info is None else b"whole")
            assert info is None or after.read("log/object", 0, None) == b"first half, second half"
        if not crashed:
            break
    else:
        pytest.fail("it never ended")
    assert step > 10, "the steps are not counted"
    assert len(outcomes) == 2, "crashes on one side only"


async def test_what_is_being_written_is_not_swept(root: Path, store: ObjectStore) -> None:
    """Another process that starts meanwhile leaves it alone, and deletes what nobody writes."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(WRITE_BYTES)
        begun.set()
        await go_on.wait()
        yield b"two"

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(store.upload("a/object", slow()))
        await begun.wait()
        (left := root / OWN / "writing" / "left").write_bytes(b"of a crash")
        await asyncio.to_thread(Folder(root, new_id).prepare)
        assert not left.exists()
        assert len(being_written(root)) == 1
        assert await store.stat("a/object") is None
        go_on.set()
    assert await store.read("a/object") == bytes(WRITE_BYTES) + b"two"
    assert being_written(root) == []


def test_a_file_that_was_swept_before_it_was_held_is_made_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep between making a file and locking it."""
    ids = iter(["first", "second"])
    folder = Folder(root, lambda: next(ids))
    folder.prepare()
    lock = fcntl.flock

    def swept_before(fd: int, how: int) -> None:
        (root / OWN / "writing" / "first").unlink(missing_ok=True)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", swept_before)
    writing = folder.writing("object")
    writing.append([b"data"])
    assert [path.name for path in being_written(root)] == ["second"]
    writing.finish()
    assert folder.read("object", 0, None) == b"data"


RACING = """
import sys
from pathlib import Path
from loglet.archive.folder import Folder
from sharedlog.errors import SwapConflict

name, rounds = sys.argv[2], int(sys.argv[3])
folder = Folder(Path(sys.argv[1]), lambda: f"{name}{id(object())}")
done = tries = 0
while done < rounds:
    found = folder.read_versioned("count")
    count, _, names = found.data.decode().partition(" ")
    try:
        if folder.try_swap("count", f"{int(count) + 1} {names}{name}".encode(), found.version):
            done += 1
    except SwapConflict:
        pass
"""


@pytest.mark.slow
def test_processes_lose_no_increment(root: Path) -> None:
    """Three processes add to one value, each as often as it is told."""
    folder = Folder(root, new_id)
    assert folder.try_swap("count", b"0 ", None)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(root), name, "40"],
            env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        )
        for name in "abc"
    ]
    try:
        assert [child.wait(60) for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()
    count, _, names = folder.read("count", 0, None).decode().partition(" ")
    assert count == "120"
    assert sorted(names) == sorted("abc" * 40)


@pytest.fixture
def held_lock(root: Path) -> Iterator[int]:
    """Another process has the lock, and does not let go of it."""
    Folder(root, new_id).prepare()
    fd = os.open(root / OWN / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


class SteppingClock(QuickClock):
    """Time passes by sleeping alone."""

    def monotonic_s(self) -> float:
        return sum(self.slept_s)


async def test_a_lock_that_is_held_for_long_is_an_error(root: Path, held_lock: int) -> None:
    """A process that was stopped with it must not stop the others for ever; reads go on."""
    clock = SteppingClock()
    store = opened(f"file://{root}", clock=clock)
    with pytest.raises(ArchiveUnavailable, match=r"can't replace m: another process .* the lock"):
        await store.swap("m", b"x", None)
    assert LOCK_WAIT_S <= clock.monotonic_s() < LOCK_WAIT_S + 1
    assert await store.read_versioned("m") is None
    fcntl.flock(held_lock, fcntl.LOCK_UN)
    assert await store.swap("m", b"x", None)
    await store.close()


async def test_the_loop_never_waits_for_the_disk(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No system call that may block is made in its thread."""
    loop_thread = threading.get_ident()
    called: set[str] = set()

    def watched(name: str) -> None:
        original = getattr(os, name)

        def call(*args: object, **more: object) -> object:
            assert threading.get_ident() != loop_thread, name
            called.add(name)
            return original(*args, **more)

        monkeypatch.setattr(os, name, call)

    for name in ("open", "write", "pread", "fsync", "scandir"):
        watched(name)
    version = await store.swap("m", b"x", None)
    await store.swap("m", b"y", version)
    await store.upload("o", pieces(b"x", b"y"))
    await store.read("o")
    await store.read_tail("o", 1)
    await store.read_versioned("m")
    await store.stat("o")
    assert [info.key async for info in store.list("")] == ["m", "o"]
    await store.delete(["m", "o"])
    monkeypatch.undo()
    assert called == {"open", "write", "pread", "fsync", "scandir"}


async def test_all_is_synced_before_it_is_told(
    root: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before it gets its name, then its folder; a new folder's name in the one above."""
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noting_sync(fd: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink()}")
        sync(fd)

    def noting_replace(path: Path, target: Path) -> Path:
        events.append(f"rename {target}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    await store.upload("a/b/object", pieces(b"x"))
    above, at = [root.parent, root, root / "a"], events.index(f"rename {root}/a/b/object")
    assert all(f"sync {folder}" in events[:at] for folder in above)
    assert any(f"sync {root}/{OWN}/writing/" in event for event in events[:at])
    assert events[at + 1 :] == [f"sync {root}/a/b"]
    events.clear()
    version = await store.swap("a/b/manifest", b"y", None)
    assert [it.removeprefix(f"{root}/") for it in events][-2:] == [
        f"rename {root}/a/b/manifest",
        f"sync {root}/a/b",
    ]
    events.clear()
    assert await store.read_versioned("a/b/manifest") == (b"y", version)
    assert events == [f"sync {root}/a/b"], "it may have been renamed by who died before the sync"
    events.clear()
    await store.delete(["a/b/object", "a/b/manifest"])
    assert events == [f"sync {root}/a/b"]


async def test_the_log_servers_of_the_disk_keep_its_page_cache(
    root: Path, store: ObjectStore
) -> None:
    """A large object does not get into it, neither when it is written nor by a long read; what a
    short read has read may be wanted again."""
    piece = os.urandom(KEEP_BYTES_MAX)
    await store.upload("object", pieces(*[piece] * 8))
    if not has_direct(root.parent):
        pytest.skip("the file system knows no O_DIRECT: TMPDIR=/path/of/a/disk tests it")
    assert cached_bytes(root / "object") == 0
    assert await store.read("object", 10, 4 * KEEP_BYTES_MAX) == (piece * 4)[10:]
    assert cached_bytes(root / "object") == 0
    assert await store.read("object", 0, KEEP_BYTES_MAX) == piece
    assert cached_bytes(root / "object") >= KEEP_BYTES_MAX


def test_what_could_not_be_written_is_never_put_in_place(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(root, new_id)
    writing = folder.writing("object")
    write = os.write

    def full(fd: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left")

    writing.append([bytes(PIECE_BYTES)])
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        writing.append([bytes(PIECE_BYTES)])
    monkeypatch.setattr(os, "write", write)
    for again in (lambda: writing.append([b"x"]), writing.finish):
        with pytest.raises(OSError, match="No space"):
            again()
    writing.discard()
    assert being_written(root) == []
    assert not (root / "object").exists()


async def test_an_upload_that_is_cancelled_while_it_writes_closes_after_the_thread(
    root: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is closed, and perhaps used again by others, under the thread's hands."""
    writes, go_on = threading.Event(), threading.Event()
    write = os.write

    def slow(fd: int, data: memoryview) -> int:
        writes.set()
        assert go_on.wait(30)
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        upload = group.create_task(store.upload("object", pieces(bytes(WRITE_BYTES))))
        await asyncio.to_thread(writes.wait)
        upload.cancel()
        await asyncio.sleep(0)
        assert not upload.done(), "it waits for the thread"
        go_on.set()
    assert upload.cancelled()
    assert being_written(root) == []
    assert await store.stat("object") is None


async def test_a_folder_that_is_no_archive_has_nothing_absent(root: Path) -> None:
    """The disk may not be mounted: what is read there is an error, not an empty history."""
    os.makedirs(root)  # noqa: PTH103  of a test
    store = opened(f"file://{root}")
    for reading in (
        store.read_versioned("log/manifest"),
        store.stat("log/manifest"),
        store.read("log/manifest"),
        anext(store.list("log/")),
    ):
        with pytest.raises(ArchiveUnsuitable, match=r"is no archive.*mounted"):
            await reading
    await store.upload("log/object", pieces(b"x"))
    assert await store.read_versioned("log/manifest") is None
    await store.close()


async def test_what_others_put_there_is_not_told(root: Path, store: ObjectStore) -> None:
    """Files whose names are no keys, links, pipes; the store's own."""
    await store.upload("a/object", pieces(b"x"))
    (root / "a" / "with space").write_bytes(b"")
    (root / "lost+found").mkdir(mode=0)
    (root / "a" / "link").symlink_to(root / "a" / "object")
    (root / "a" / "loop").symlink_to(root)
    os.mkfifo(root / "a" / "pipe")
    assert [info.key async for info in store.list("")] == ["a/object"]
    assert await store.stat("a/pipe") is None
    assert await store.stat("a") is None
    for key in (f"{OWN}/lock", OWN):
        with pytest.raises(InvalidArgument, match="store's own"):
            await store.read(key)


FAILURES = [
    (errno.ENOSPC, ArchiveUnavailable, "No space left"),
    (errno.EIO, ArchiveUnavailable, "Input/output error"),
    (errno.EACCES, ArchiveUnsuitable, "Permission denied"),
    (errno.EROFS, ArchiveUnsuitable, "Read-only file system"),
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_disk_that_fails_is_named(
    root: Path,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    failure: tuple[int, type[Exception], str],
) -> None:
    """One line with the folder, what was tried and why; what was there stays."""
    number, cls, words = failure
    version = await store.swap("m", b"old", None)

    def failing(fd: int, data: memoryview) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(cls, match=f"{root}: can't replace m: {words}"):
        await store.swap("m", b"new", version)
    with pytest.raises(cls, match=f"{root}: can't write o: {words}"):
        await store.upload("o", pieces(b"x"))
    monkeypatch.undo()
    assert being_written(root) == []
    assert await store.read("m") == b"old"
    assert await store.stat("o") is None


async def test_equal_data_by_two_handles_is_still_one_version(root: Path) -> None:
    """Why callers put random bytes into each value: versions are hashes."""
    url = parse_archive_url(f"file://{root}")
    assert isinstance(url, FolderUrl)
    store = FileStore(url, clock=QuickClock(), rng=Random(1), new_id=new_id)
    first = await store.swap("m", b"one", None)
    second = await store.swap("m", b"two", first)
    assert await store.swap("m", b"one", second) == first
    with pytest.raises(SwapConflict):
        await store.swap("m", b"three", second)
    await store.close()
