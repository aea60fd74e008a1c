"""What the demo appends: the lines of files, as records, and one digest over all of them.

A record is one line without its line feed; its key is the name of the file, relative to the folder
(a file given by itself has its own name). Bytes are taken as they are: files need not be text.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

LINE_BYTES_MAX: Final = 1024 * 1024
"""A longer line, as a binary file may have it, becomes several records."""

CHUNK_BYTES: Final = 64 * 1024
"""Lines are handed over in chunks of about so many bytes: work per chunk is cheaper."""

CHUNK_RECORDS_MAX: Final = 4096

_NOT_THE_LIBRARY: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
_SIZES: Final = struct.Struct("<II")


class BadInput(Exception):
    """The input can't be used; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file."""

    key: bytes
    path: Path
    size_bytes: int


def standard_library() -> list[Source]:
    """Every `.py` file of the running Python's own standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    return [source for source in _walk(root, _NOT_THE_LIBRARY) if source.path.suffix == ".py"]


def find_sources(path: Path | None) -> list[Source]:
    """A path's files in a fixed order: itself, or all in the folder; None is the library.

    Raises:
        BadInput: there is no such path, or no byte in it, or it can't be read.
    """
    if path is None:
        sources = standard_library()
        where = "the standard library"
    else:
        where = str(path)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file or folder") from None
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            sources = list(_walk(path))
        elif stat.S_ISREG(mode):
            sources = [Source(os.fsencode(path.name), path, path.stat().st_size)]
        else:
            raise BadInput(f"{path} is neither a file nor a folder")
    if not any(source.size_bytes for source in sources):
        raise BadInput(f"{where} is empty: nothing to append")
    return sources


def _walk(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[Source]:
    """Regular files below `root`, by folder and name; links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise BadInput(f"{error.filename}: {error.strerror}") from error

    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders[:] = sorted(name for name in subfolders if name not in skip)
        for name in sorted(names):
            path = Path(folder, name)
            try:
                found = path.stat()
            except FileNotFoundError:
                continue  # a link to nowhere
            except OSError as error:
                raise BadInput(f"{path}: {error.strerror}") from error
            if stat.S_ISREG(found.st_mode):
                yield Source(os.fsencode(path.relative_to(root).as_posix()), path, found.st_size)


@dataclass(slots=True)
class Chunk:
    """Lines of one file that follow each other; never empty."""

    key: bytes
    values: list[bytes]
    input_bytes: int
    """So many bytes of the file, line feeds included."""


def read_chunks(sources: Iterable[Source], chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The lines of all files, in order, in chunks of one file and about so many bytes.

    Raises:
        BadInput: a file can't be read.
    """
    for source in sources:
        try:
            with source.path.open("rb") as file:
                for values, size in _chunk_lines(file, chunk_bytes):
                    yield Chunk(source.key, values, size)
        except OSError as error:
            raise BadInput(f"{source.path}: {error.strerror}") from error


def _chunk_lines(file: BinaryIO, chunk_bytes: int) -> Iterator[tuple[list[bytes], int]]:
    values: list[bytes] = []
    size = 0
    cut = False  # the last piece had no line feed: what follows belongs to its line
    for line in iter(lambda: file.readline(LINE_BYTES_MAX), b""):
        size += len(line)
        ended = line.endswith(b"\n")
        value = line[:-1] if ended else line
        if value or not cut:
            values.append(value)
        cut = not ended
        if values and (size >= chunk_bytes or len(values) >= CHUNK_RECORDS_MAX):
            yield values, size
            values, size = [], 0
    if values:
        yield values, size


class RecordDigest:
    """SHA-256 over records: for each the sizes of key and value, then both.

    With the sizes, records that are cut differently have different digests.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.records = 0
        self.value_bytes = 0

    def add(self, keys: Iterable[bytes | None], values: list[bytes]) -> None:
        """Take in records in their order. No key counts as an empty one."""
        parts: list[bytes] = []
        size = _SIZES.pack
        for key, value in zip(keys, values, strict=False):
            named = key or b""
            parts += (size(len(named), len(value)), named, value)
        assert len(parts) == 3 * len(values), "each value has a key"
        self._sha256.update(b"".join(parts))
        self.records += len(values)
        self.value_bytes += sum(map(len, values))

    def hexdigest(self) -> str:
        """The digest of all records so far."""
        return self._sha256.hexdigest()
