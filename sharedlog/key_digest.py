"""The digest of a batch's keys: which keys the batch can't have, told by a few bytes.

A reader that wants one key gives its hash (`hash_key`) to the log servers. They look at the digest
in each batch's header and leave out the batches that can't have the key; keys and payloads stay
opaque to them. What is left is filtered by the reader, key by key.

**Never a false negative:** a batch that has the key always matches. False positives are a matter of
cost alone: some in a thousand for batches of up to `DIGEST_KEYS_MAX / 8` distinct keys, and half at
most.

The digest is a field of the header's extension, which lies between the fixed part and the payload:

    kind (2 bytes) | size (2 bytes) | data      little-endian; one after another

Kind 1 is the digest, a Bloom filter with three bits for each distinct key. With m bits of data, key
hash h = CRC32C of the key sets the bits h mod m, (h >> 10) mod m and (h >> 19) mod m; bit 0 is the
most significant one of the first byte. Data of no bytes: no record has a key, so nothing matches.
A batch without the field, from an older writer or with more keys than make sense, matches
everything, and so does whatever is malformed.

Cost. A batch without keys gets a constant. Otherwise the work is per distinct key, and most of it
in C: a set, a checksum for each, three cells of a byte array, which then becomes one integer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from sharedlog.checksum import crc32c, crc32c_each
from sharedlog.errors import InvalidArgument

_FIELD: Final = struct.Struct("<HH")  # kind · bytes of data
_KIND_KEY_DIGEST: Final = 1

_DIGEST_BYTES_MIN: Final = 8
DIGEST_BYTES_MAX: Final = 1024
"""Of the filter; beside a full batch of half a megabyte that is little."""
DIGEST_KEYS_MAX: Final = 4096
"""Distinct keys of a batch that has a digest: with more, nearly everything would match."""

NO_KEYS: Final = _FIELD.pack(_KIND_KEY_DIGEST, 0)
"""The extension of a batch without keys."""

# What a digest adds to `NO_KEYS` at most: so much for each key, and as much again once. It has two
# bytes for each distinct key, rounded up to a power of two, and eight at least.
DIGEST_KEY_BYTES: Final = 4

_SET: Final = ord("1")


def hash_key(key: bytes) -> int:
    """What a log server is told of a key: 32 bits.

    Raises:
        InvalidArgument: it is not bytes.
    """
    check_key(key)
    return crc32c(key)


def check_key(key: object) -> None:
    """Refuse what can't be a key. Raises `InvalidArgument`."""
    if not isinstance(key, bytes):
        raise InvalidArgument(f"a key is bytes, not {type(key).__name__}")


def make_extension(keys: Sequence[bytes | None]) -> bytes:
    """The extension for a batch with these keys, None being none; empty: matches everything."""
    distinct = {key for key in keys if key is not None}
    if len(distinct) > DIGEST_KEYS_MAX:
        return b""
    if not distinct:
        return NO_KEYS
    wanted = max(_DIGEST_BYTES_MIN, 1 << (2 * len(distinct) - 1).bit_length())
    size = min(DIGEST_BYTES_MAX, wanted)
    mask = 8 * size - 1
    cells = bytearray(b"0") * (8 * size)
    for found in crc32c_each(distinct):
        cells[found & mask] = cells[found >> 10 & mask] = cells[found >> 19 & mask] = _SET
    return _FIELD.pack(_KIND_KEY_DIGEST, size) + int(cells, 2).to_bytes(size, "big")


def may_match(extension: bytes, key_hash: int) -> bool:
    """Whether a batch with this extension can have a key of this hash."""
    at = 0
    while at + _FIELD.size <= len(extension):
        kind, size = _FIELD.unpack_from(extension, at)
        at += _FIELD.size
        if kind == _KIND_KEY_DIGEST and at + size <= len(extension):
            return size > 0 and _has_bits(extension, at, 8 * size, key_hash)
        at += size
    return True


def _has_bits(data: bytes, at: int, bits: int, key_hash: int) -> bool:
    for shift in (0, 10, 19):
        place = (key_hash >> shift) % bits
        if not data[at + (place >> 3)] << (place & 7) & 0x80:
            return False
    return True
