"""CRC32C, the one checksum of the system, behind one function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

import google_crc32c


def crc32c(data: bytes, seed: int = 0) -> int:
    """CRC32C (Castagnoli) of `data`, unsigned 32 bits; `seed` is the CRC of the bytes before it.

    Takes `bytes` only, as the C extension does: slice, do not pass a view.
    """
    checksum: int = google_crc32c.extend(seed, data)
    return checksum


def crc32c_each(parts: Iterable[bytes]) -> Iterator[int]:
    """`crc32c` of each, without a step of the interpreter in between."""
    return map(google_crc32c.extend, repeat(0), parts)
