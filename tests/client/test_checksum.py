"""CRC32C without copies is the CRC32C of the copy."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.checksum import CrcBehind, crc32c

SIZES = (0, 1, 4_000, 4_096, 4_097, 70_000)


def test_the_known_checksum_of_nine_digits() -> None:
    """From RFC 3720, B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("skipped", [0, 1, 4, 74, 300, 4_096])
def test_behind_some_bytes_as_of_a_copy(skipped: int) -> None:
    behind, source = CrcBehind(skipped), random.Random(skipped)
    for size in SIZES:
        data = source.randbytes(skipped + size)
        assert behind(data) == crc32c(data[skipped:])


@given(st.binary(min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_whatever_comes_first(first: bytes, seed: int) -> None:
    rest = random.Random(seed).randbytes(5_000)
    assert CrcBehind(4)(first + rest) == crc32c(rest)


@given(st.integers(0, 8 * 5_000 - 1))
def test_one_wrong_bit_shows(bit: int) -> None:
    good = random.Random(0).randbytes(5_074)
    wrong = bytearray(good)
    wrong[74 + bit // 8] ^= 1 << bit % 8
    assert CrcBehind(74)(bytes(wrong)) != crc32c(good[74:])
