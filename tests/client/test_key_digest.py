"""The digest of keys: never a false negative, few false positives, and a layout for ever."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.batch import (
    BATCH_HEADER_BYTES,
    BatchBuilder,
    Placement,
    check_batch,
    decode_placed,
    encode_records,
    may_have_key,
    place_batch,
    stamp_batch,
)
from sharedlog.checksum import crc32c
from sharedlog.codec import make_compressor
from sharedlog.errors import InvalidArgument
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.key_digest import (
    DIGEST_BYTES_MAX,
    DIGEST_KEY_BYTES,
    DIGEST_KEYS_MAX,
    NO_KEYS,
    hash_key,
    make_extension,
    may_match,
)

keys = st.none() | st.binary(max_size=12)


def place(batch: bytes) -> bytes:
    header = check_batch(batch)
    placement = Placement(
        LogletId(LogId(1), 0), Offset(0), header.record_count, 1, Offset(0), header.crc32c
    )
    return place_batch(placement, batch)


def users(first: int, end: int) -> list[bytes | None]:
    return [f"user-{number}".encode() for number in range(first, end)]


@given(st.lists(keys, min_size=1, max_size=60))
def test_a_batch_matches_every_key_that_it_has(given_keys: list[bytes | None]) -> None:
    """Never a false negative: through the builder, a stamp and a codec."""
    batch = encode_records([(b"v", key, None) for key in given_keys])
    builder = BatchBuilder()
    for key in given_keys:
        builder.append(b"value " * 20, key)
    compressed = builder.encode(compressor=make_compressor("zstd"))
    for made in (batch, stamp_batch(batch, check_batch(batch).producer), compressed):
        placed = place(made)
        assert all(may_have_key(placed, hash_key(key)) for key in given_keys if key is not None)
        assert [record.key for record in decode_placed(placed)] == given_keys


@given(st.sets(st.binary(max_size=8), min_size=1, max_size=300), st.binary(max_size=8))
def test_the_digest_is_the_documented_filter(present: set[bytes], asked: bytes) -> None:
    """docs/batch-format.md, computed another way: three bits of the CRC32C of each key."""
    extension = make_extension(sorted(present))
    kind, size = struct.unpack_from("<HH", extension)
    assert (kind, len(extension)) == (1, 4 + size)
    wanted = {place for key in present for place in places(key, 8 * size)}
    bits = "".join(f"{byte:08b}" for byte in extension[4:])
    assert {place for place, bit in enumerate(bits) if bit == "1"} == wanted
    assert may_match(extension, crc32c(asked)) == (places(asked, 8 * size) <= wanted)


def places(key: bytes, bits: int) -> set[int]:
    found = crc32c(key)
    return {found % bits, found // 2**10 % bits, found // 2**19 % bits}


@pytest.mark.parametrize("count", [1, 2, 4, 5, 128, 129, 512, 513, DIGEST_KEYS_MAX])
def test_the_digest_grows_with_the_distinct_keys(count: int) -> None:
    """Two to four bytes for each, eight at least, `DIGEST_BYTES_MAX` at most: within what the
    builder counts for it."""
    extension = make_extension(users(0, count) * 2)
    size = len(extension) - len(NO_KEYS)
    assert size & (size - 1) == 0
    assert 8 <= size <= DIGEST_BYTES_MAX
    assert min(2 * count, DIGEST_BYTES_MAX) <= size <= DIGEST_KEY_BYTES * (count + 1)
    assert all(may_match(extension, hash_key(key)) for key in users(0, count) if key is not None)


@pytest.mark.parametrize("count", [1, 16, 100, 256, 512])
def test_few_other_keys_match(count: int) -> None:
    """Less than one in a hundred, of keys that look much the same."""
    extension = make_extension(users(0, count))
    others = [key for key in users(1_000_000, 1_020_000) if key is not None]
    matching = sum(may_match(extension, hash_key(key)) for key in others)
    assert matching < len(others) / 100


def test_a_batch_without_keys_matches_nothing() -> None:
    """Also if it has headers, or keys that are all None."""
    for row in ((b"v", None, None), (b"v", None, {"h": b"x"})):
        placed = place(encode_records([row]))
        assert not any(may_have_key(placed, hash_key(key)) for key in (b"", b"k", b"user-1"))
    assert make_extension([None, None]) == make_extension([]) == NO_KEYS


def test_what_has_no_digest_matches_everything() -> None:
    """A batch of an older writer, and one with more keys than make sense."""
    fields = (0x4253, 1, 0, BATCH_HEADER_BYTES, 0, BATCH_HEADER_BYTES + 6, 1, 0, 0, 0)
    body = struct.pack("<HBBHHIIQIQ", *fields) + struct.pack("<BI", 0, 1) + b"v"
    old = place(crc32c(body).to_bytes(4, "little") + body)
    assert [record.value for record in decode_placed(old)] == [b"v"]
    many = [(b"", key, None) for key in users(0, DIGEST_KEYS_MAX + 1)]
    for placed in (old, place(encode_records(many))):
        assert may_have_key(placed, hash_key(b"any"))
    assert make_extension(users(0, DIGEST_KEYS_MAX + 1)) == b""
    assert make_extension(users(0, DIGEST_KEYS_MAX)) != b""


def test_unknown_fields_are_passed_over() -> None:
    """A later version may write others before or behind the digest."""
    other = struct.pack("<HH", 9, 3) + b"abc"
    digest = make_extension([b"k"])
    for extension in (other + digest, digest + other):
        assert may_match(extension, hash_key(b"k"))
        assert not may_match(extension, hash_key(b"another"))
    assert may_match(other, hash_key(b"another")), "without a digest nothing is known"


@given(st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_a_malformed_extension_is_no_error(extension: bytes, key_hash: int) -> None:
    """Whatever stands there, the server looks at it and goes on; what is cut short rules out
    nothing."""
    may_match(extension, key_hash)
    assert may_match(make_extension([b"k"])[:-1], key_hash)
    assert may_match(extension[:3], key_hash)


@pytest.mark.parametrize("key", ["k", 7, bytearray(b"k")])
def test_only_bytes_are_a_key(key: object) -> None:
    """As in an append."""
    with pytest.raises(InvalidArgument, match="a key is bytes"):
        hash_key(key)  # type: ignore[arg-type]  # the point
