"""The LMDB file of the embedded store: rows, commits, reads; `embedded.py` is the shell around it.

| table      | key                  | value                                                     |
|------------|----------------------|-----------------------------------------------------------|
| `metadata` | "format"             | "1"                                                       |
| `metadata` | "revision"           | u64: the version of the store's last change               |
| `values`   | the key, ASCII       | u32 CRC32C, u64 version, u8 nonce length, nonce, value    |
| `nonces`   | u64 version of a put | that put's nonce; the last `NONCES_KEPT` puts with one    |

Numbers are big-endian. A row's checksum covers its key and all that follows the checksum. The whole
store is verified when it is opened: it is small, and one that is damaged must not answer (field
note 24).

One thread commits, any one thread reads. A commit is all or nothing and fsynced (LMDB syncs the
data pages, then the meta page, before it lets readers see either), so what can be read is durable.

The nonces of past puts are kept beyond the value they wrote: a put whose answer was lost, and
whose value another put has replaced since, is still told from one that lost the race.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lmdb

from metadata.errors import MetadataCorrupt
from metadata.store import ABSENT, Changed, Deleted, Entry, Version
from sharedlog.checksum import crc32c
from sharedlog.errors import StoreFailed, StoreReadOnly, VersionMismatch

NONCES_KEPT: Final = 4_096
"""Puts, counted back from the last one, whose repetition is recognised."""

NONCE_CHARS_MAX: Final = 255

_FORMAT: Final = b"1"
_CHECKSUM: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">QB")
_U64: Final = struct.Struct(">Q")
_HEAD_END: Final = _CHECKSUM.size + _HEAD.size


@dataclass(slots=True)
class Change:
    """A put, or with `value` None a delete."""

    key: str
    value: bytes | None
    expected: Version
    nonce: str = ""


@dataclass(slots=True)
class Commit:
    """What became of a list of changes, and what watchers are to be told, in order."""

    outcomes: list[Version | VersionMismatch]
    events: list[Changed | Deleted]


class MetadataDb:
    """One open store. Opening one twice fails, from within one process too."""

    def __init__(self, directory: Path, *, map_bytes: int) -> None:
        """Open the store in `directory`, or make one.

        Raises:
            OSError: in use, not a metadata store, or the system refuses. MetadataCorrupt: damaged.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock_file = _lock(directory)
        try:
            self._open(map_bytes)
        except BaseException:
            os.close(self._lock_file)
            raise

    def _open(self, map_bytes: int) -> None:
        try:
            # lib_version: LMDB 0.9 and 1.0 can't read each other's files, so the choice is
            # explicit.
            self._env: Any = lmdb.open(
                str(self._directory), map_size=map_bytes, max_dbs=3, lib_version=0
            )
        except lmdb.Error as error:
            raise OSError(f"can't open the metadata store in {self._directory}: {error}") from error
        try:
            self._open_tables()
            self._verify()
        except BaseException:
            self._env.close()
            raise
        _sync_directory(self._directory)
        _sync_directory(self._directory.parent)

    def _open_tables(self) -> None:
        with self._env.begin() as txn:
            known = txn.get(b"metadata") is not None
        if self._env.stat()["entries"] and not known:
            raise OSError(f"{self._directory} holds another kind of store, no metadata store")
        self._meta = self._env.open_db(b"metadata")
        self._values = self._env.open_db(b"values")
        self._nonces = self._env.open_db(b"nonces")
        with self._env.begin(write=True) as txn:
            found = txn.get(b"format", db=self._meta)
            if found is None:
                txn.put(b"format", _FORMAT, db=self._meta)
                txn.put(b"revision", _U64.pack(0), db=self._meta)
            elif found != _FORMAT:
                raise OSError(f"the metadata store in {self._directory} is of a newer version")
            # Owned by the thread that commits.
            self._version_by_nonce: OrderedDict[bytes, Version] = OrderedDict(
                (bytes(nonce), Version(_U64.unpack(version)[0]))
                for version, nonce in txn.cursor(db=self._nonces)
            )

    def _verify(self) -> None:
        with self._env.begin() as txn:
            revision = self._revision(txn)
            for key, row in txn.cursor(db=self._values):
                if _decode(key, row).version > revision:
                    raise MetadataCorrupt("the version is ahead of the store's", key=key.decode())

    def close(self) -> None:
        """Close; nothing may be running."""
        self._env.close()
        os.close(self._lock_file)

    # ------------------------------------------------------------------ reads

    def get(self, key: str) -> Entry | None:
        """The entry, or None. Raises `MetadataCorrupt`."""
        with self._env.begin() as txn:
            row = txn.get(key.encode(), db=self._values)
        return None if row is None else _decode(key.encode(), row)

    def page(
        self, prefix: str, *, after: str, entries_max: int, bytes_max: int
    ) -> tuple[list[Entry], bool]:
        """Entries under `prefix` with keys greater than `after`, and whether there are more.

        At least one if there is any, further ones up to `bytes_max`. Raises `MetadataCorrupt`.
        """
        entries: list[Entry] = []
        size = 0
        with self._env.begin() as txn:
            for entry in self._scan(txn, prefix, after):
                size += len(entry.key) + len(entry.value)
                if entries and (len(entries) == entries_max or size > bytes_max):
                    return entries, True
                entries.append(entry)
        return entries, False

    def snapshot(self, prefix: str) -> tuple[list[Entry], Version]:
        """All entries under `prefix`, and the version of the store's last change at that moment."""
        with self._env.begin() as txn:
            return list(self._scan(txn, prefix, "")), self._revision(txn)

    def _scan(self, txn: Any, prefix: str, after: str) -> Iterator[Entry]:
        # The first key greater than `after` is `after` followed by the least byte.
        start = max(prefix.encode(), after.encode() + b"\0" if after else b"")
        cursor = txn.cursor(db=self._values)
        if not cursor.set_range(start):
            return
        for key, row in cursor:
            if not key.startswith(prefix.encode()):
                return
            yield _decode(key, row)

    def _revision(self, txn: Any) -> Version:
        return Version(_U64.unpack(txn.get(b"revision", db=self._meta))[0])

    # ------------------------------------------------------------------ commit

    def commit(self, changes: Sequence[Change]) -> Commit:
        """Make the changes that may be made, in order; on return they are fsynced.

        Raises:
            StoreReadOnly: no room; nothing was changed. StoreFailed: the disk failed, and what is
            on it is unknown until the process has restarted. MetadataCorrupt: nothing was changed.
        """
        added: list[tuple[bytes, Version]] = []
        try:
            with self._env.begin(write=True) as txn:
                done = self._apply(txn, changes, added)
                self._forget_nonces(txn, len(added))
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            what = "its limit is reached" if isinstance(error, lmdb.MapFullError) else str(error)
            raise StoreReadOnly(
                f"the metadata store in {self._directory} is full: {what}"
            ) from error
        except lmdb.Error as error:
            raise StoreFailed(f"the metadata store in {self._directory} failed: {error}") from error
        for nonce, version in added:
            self._version_by_nonce[nonce] = version
        while len(self._version_by_nonce) > NONCES_KEPT:
            self._version_by_nonce.popitem(last=False)
        return done

    def _apply(
        self, txn: Any, changes: Sequence[Change], added: list[tuple[bytes, Version]]
    ) -> Commit:
        before = revision = self._revision(txn)
        done = Commit([], [])
        fresh: dict[bytes, Version] = {}
        for change in changes:
            nonce = change.nonce.encode()
            earlier = self._version_by_nonce.get(nonce, fresh.get(nonce)) if nonce else None
            if earlier is not None:
                done.outcomes.append(earlier)
                continue
            mismatch = self._mismatch(txn, change)
            if mismatch is not None:
                done.outcomes.append(mismatch)
                continue
            revision = Version(revision + 1)
            done.events.append(self._write(txn, change, nonce, revision))
            done.outcomes.append(revision)
            if nonce:
                fresh[nonce] = revision
                added.append((nonce, revision))
        if revision > before:
            txn.put(b"revision", _U64.pack(revision), db=self._meta)
        assert revision - before == len(done.events)
        assert len(done.outcomes) == len(changes)
        return done

    def _mismatch(self, txn: Any, change: Change) -> VersionMismatch | None:
        key = change.key.encode()
        row = txn.get(key, db=self._values)
        actual = ABSENT if row is None else _decode(key, row).version
        if actual == change.expected and (row is not None or change.value is not None):
            return None
        return VersionMismatch(
            key=change.key, expected=change.expected or None, actual=actual or None
        )

    def _write(self, txn: Any, change: Change, nonce: bytes, version: Version) -> Changed | Deleted:
        key = change.key.encode()
        if change.value is None:
            txn.delete(key, db=self._values)
            return Deleted(change.key, version)
        txn.put(key, _encode(key, version, nonce, change.value), db=self._values)
        if nonce:
            txn.put(_U64.pack(version), nonce, db=self._nonces, append=True)
        return Changed(Entry(change.key, change.value, version))

    def _forget_nonces(self, txn: Any, added: int) -> None:
        surplus = len(self._version_by_nonce) + added - NONCES_KEPT
        cursor = txn.cursor(db=self._nonces)
        for _ in range(surplus):
            cursor.first()
            cursor.delete()


def _encode(key: bytes, version: Version, nonce: bytes, value: bytes) -> bytes:
    body = _HEAD.pack(version, len(nonce)) + nonce + value
    return _CHECKSUM.pack(crc32c(body, crc32c(key))) + body


def _decode(key: bytes, row: bytes) -> Entry:
    body = row[_CHECKSUM.size :]
    if len(row) < _HEAD_END or _CHECKSUM.pack(crc32c(body, crc32c(key))) != row[: _CHECKSUM.size]:
        name = key.decode("ascii", "backslashreplace")
        raise MetadataCorrupt("the metadata store's row does not match its checksum", key=name)
    version, nonce_chars = _HEAD.unpack_from(row, _CHECKSUM.size)
    return Entry(key.decode(), row[_HEAD_END + nonce_chars :], Version(version))


def _lock(directory: Path) -> int:
    """Take the directory for this opener; the system gives it back when the process ends."""
    lock_file = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock_file)
        raise OSError(f"the metadata store in {directory} is in use by another process") from error
    return lock_file


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
