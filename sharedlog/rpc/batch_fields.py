"""Batches in messages, framed by hand.

protobuf would copy each into a message of its own first. It allows the fields of a message in any
order, and its parts to be simply joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_LENGTH_DELIMITED: Final = 2


def join_batches(rest: bytes, field: int, batches: Iterable[bytes]) -> bytes:
    """A message: what protobuf made of its `rest`, and its `field` of batches, each copied once."""
    tag = tag_of(field)
    parts = [rest]
    for batch in batches:
        parts.append(tag + encode_varint(len(batch)))
        parts.append(batch)
    return b"".join(parts)


def tag_of(field: int) -> bytes:
    """What is before the length of a field of bytes."""
    return encode_varint(field << 3 | _LENGTH_DELIMITED)


def encode_varint(value: int) -> bytes:
    """As protobuf does."""
    if value <= 0x7F:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends; -1 if there is none that can be a message's size."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return -1, at
