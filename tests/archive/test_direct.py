"""Files past the page cache: the same bytes, whatever the file system can and however it fails."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from loglet.archive import direct
from loglet.archive.direct import (
    PIECE_BYTES,
    SYNC_EVERY_BYTES,
    DirectWriter,
    read_cached,
    read_direct,
)

SIZES = (0, 1, 4_095, 4_096, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 9 * PIECE_BYTES + 77)


def unknown_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_O_DIRECT", 0)


def refused_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    control = fcntl.fcntl

    def refusing(fd: int, what: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such flag")
        return control(fd, what, flags)

    monkeypatch.setattr(fcntl, "fcntl", refusing)


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def flag_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.write, os.preadv

    def no_write(fd: int, data: memoryview) -> int:
        if _is_direct(fd):
            raise OSError(errno.EINVAL, "not like this")
        return write(fd, data)

    def no_read(fd: int, buffers: list[memoryview], at: int) -> int:
        if _is_direct(fd):
            raise OSError(errno.EINVAL, "not like this")
        return read(fd, buffers, at)

    monkeypatch.setattr(os, "write", no_write)
    monkeypatch.setattr(os, "preadv", no_read)


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of what goes past the page cache is cut short."""
    write, read = os.write, os.preadv
    left = {"writes": 3, "reads": 3}

    def short_write(fd: int, data: memoryview) -> int:
        if _is_direct(fd):
            left["writes"] -= 1
            if not left["writes"]:
                return write(fd, data[:4_096])
        return write(fd, data)

    def short_read(fd: int, buffers: list[memoryview], at: int) -> int:
        got = read(fd, buffers, at)
        left["reads"] -= 1
        return 4_096 if not left["reads"] else got

    monkeypatch.setattr(os, "write", short_write)
    monkeypatch.setattr(os, "preadv", short_read)


def as_it_is(_: pytest.MonkeyPatch) -> None:
    pass


@pytest.fixture(params=[as_it_is, unknown_flag, refused_flag, flag_without_effect, short])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


def written(path: Path, data: bytes, rng: Random) -> int:
    """Write it in parts of any size; a descriptor that reads it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    writer, at = DirectWriter(fd), 0
    while at < len(data):
        size = rng.choice((1, 5_000, 300_000, 2_000_000))
        writer.write(data[at : at + size])
        at += size
    writer.finish()
    writer.close()
    writer.close()
    os.close(fd)
    return os.open(path, os.O_RDONLY)


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(tmp_path: Path, size: int) -> None:
    rng = Random(size)
    data = rng.randbytes(size)
    fd = written(tmp_path / "file", data, rng)
    try:
        assert (tmp_path / "file").read_bytes() == data
        assert read_direct(fd, 0, size) == data
        for _ in range(20):
            start, end = sorted((rng.randrange(size + 1), rng.randrange(size + 1)))
            assert read_direct(fd, start, end) == data[start:end]
            assert read_cached(fd, start, end) == data[start:end]
        assert read_direct(fd, size // 2, size + 10_000) == data[size // 2 :]
    finally:
        os.close(fd)


@pytest.mark.parametrize("way", [as_it_is, unknown_flag, refused_flag, flag_without_effect])
def test_it_is_synced_as_it_comes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """The sync of a whole object would hold up the commits of log servers on the disk; and who
    knows whether O_DIRECT has an effect."""
    way(monkeypatch)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
    data = bytes(2 * SYNC_EVERY_BYTES + PIECE_BYTES)
    os.close(written(tmp_path / "file", data, Random(1)))
    assert synced == [SYNC_EVERY_BYTES, 2 * SYNC_EVERY_BYTES]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int, __: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    writer = DirectWriter(fd)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space left"):
        writer.write(bytes(PIECE_BYTES))
    writer.close()
    os.close(fd)
