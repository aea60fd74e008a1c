"""CRC32C, the one checksum of the system, behind one function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import repeat
from typing import Final

import google_crc32c

_COPY_BYTES_MAX: Final = 4_096
"""Up to here a copy is quicker than finding a seed."""


def crc32c(data: bytes, seed: int = 0) -> int:
    """CRC32C (Castagnoli) of `data`, unsigned 32 bits; `seed` is the CRC of the bytes before it.

    Takes `bytes` only, as the C extension does: slice, do not pass a view.
    """
    checksum: int = google_crc32c.extend(seed, data)
    return checksum


def crc32c_each(parts: Iterable[bytes]) -> Iterator[int]:
    """`crc32c` of each, without a step of the interpreter in between."""
    return map(google_crc32c.extend, repeat(0), parts)


class CrcBehind:
    """`crc32c(data[skipped:])`, for a large `data` without the copy.

    A CRC is linear: before a given number of bytes, a seed adds to the result what depends on the
    seed alone, and no two seeds add the same. So there is one seed for which the CRC of the first
    `skipped` bytes is 0, and with it the CRC of all of `data` is that of the rest.
    """

    def __init__(self, skipped: int) -> None:
        self._skipped = skipped

    def __call__(self, data: bytes) -> int:
        """Of at least `skipped` bytes. Unsigned 32 bits."""
        if len(data) <= _COPY_BYTES_MAX:
            return crc32c(data[self._skipped :])
        added = crc32c(data[: self._skipped])
        lowest, low, high, highest = self._seeds
        seed = (
            lowest[added & 0xFF]
            ^ low[added >> 8 & 0xFF]
            ^ high[added >> 16 & 0xFF]
            ^ highest[added >> 24]
        )
        return crc32c(data, seed)

    @cached_property
    def _seeds(self) -> list[list[int]]:
        """By byte of what a seed is to add, the lowest first, and by its value: the seed."""
        skipped = bytes(self._skipped)
        nothing = crc32c(skipped)
        added = [crc32c(skipped, 1 << bit) ^ nothing for bit in range(32)]
        seeds = _invert(added)
        tables = []
        for at in range(0, 32, 8):
            table = [0] * 256
            for value in range(1, 256):
                lowest = value & -value
                table[value] = table[value ^ lowest] ^ seeds[at + lowest.bit_length() - 1]
            tables.append(table)
        return tables


def _invert(columns: list[int]) -> list[int]:
    """Of a linear map of 32 bits, given as the images of each bit: that of its inverse."""
    pairs = [(image, 1 << bit) for bit, image in enumerate(columns)]
    for bit in range(32):
        pivot = next(at for at in range(bit, 32) if pairs[at][0] >> bit & 1)
        pairs[bit], pairs[pivot] = pairs[pivot], pairs[bit]
        image, origin = pairs[bit]
        for at, (other, its_origin) in enumerate(pairs):
            if at != bit and other >> bit & 1:
                pairs[at] = (other ^ image, its_origin ^ origin)
    return [origin for _, origin in pairs]
