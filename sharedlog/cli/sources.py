"""Input of a command as chunks, without ever blocking the event loop for long.

A file is read in place: its bytes are near. A pipe or a terminal may stay silent for hours, so the
loop watches it, and Ctrl-C works at any time; a thread that sits in `read` could not be stopped.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from typing import BinaryIO, Final

CHUNK_BYTES: Final = 256 * 1024


async def chunks(stream: BinaryIO) -> AsyncIterator[bytes]:
    """What the stream holds, in the order in which it comes; pieces of any size above 0."""
    try:
        descriptor = stream.fileno()
        watched = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:  # no file of the system, as in a test
        descriptor, watched = -1, False
    while True:
        if watched:
            watched = await _readable(descriptor)
        chunk = stream.read(CHUNK_BYTES) if descriptor < 0 else os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


async def _readable(descriptor: int) -> bool:
    """Wait until a read will not block; False if the system can't watch it (/dev/null)."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except OSError:
        return False
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return True


def size_of(stream: BinaryIO) -> int | None:
    """Bytes that are to come, if that can be known."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
