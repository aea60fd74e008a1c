"""CRC32C, the one checksum of the system, behind one function."""

from __future__ import annotations

import google_crc32c


def crc32c(data: bytes, seed: int = 0) -> int:
    """CRC32C (Castagnoli) of `data`, unsigned 32 bits; `seed` is the CRC of the bytes before it.

    Takes `bytes` only, as the C extension does: slice, do not pass a view.
    """
    checksum: int = google_crc32c.extend(seed, data)
    return checksum
