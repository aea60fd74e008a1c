"""The batch format: round trips, limits, and that no damaged byte goes unseen."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedlog.batch import (
    BATCH_HEADER_BYTES,
    PLACEMENT_BYTES,
    BatchBuilder,
    Headers,
    Placement,
    check_batch,
    check_placed,
    decode_headers,
    decode_placed,
    encode_headers,
    encode_records,
    parse_batch_header,
    parse_placement,
    place_batch,
)
from sharedlog.checksum import crc32c
from sharedlog.errors import BatchTooLarge, CorruptBatch, EmptyBatch, RecordTooLarge
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.limits import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_BYTES_MAX

Row = tuple[bytes, bytes | None, Headers | None]

header_maps = st.dictionaries(st.text(max_size=10), st.binary(max_size=20), max_size=4)
rows = st.tuples(
    st.binary(max_size=80),
    st.none() | st.binary(max_size=20),
    st.none() | header_maps,
)


def place(batch: bytes, first: int = 5) -> bytes:
    header = check_batch(batch)
    placement = Placement(
        LogletId(LogId(2**64 - 1), 3),
        Offset(first),
        header.record_count,
        1_700_000_000_000,
        Offset(first),
        header.crc32c,
    )
    return place_batch(placement, batch)


@pytest.mark.slow
@given(st.lists(rows, min_size=1, max_size=60), st.integers(0, 2**40))
def test_what_goes_in_comes_out(records: list[Row], first: int) -> None:
    """Every value, key and header map survives, absent keys stay absent, and offsets are dense."""
    got = decode_placed(place(encode_records(records), first))
    assert [(r.value, r.key, dict(r.headers)) for r in got] == [
        (value, key, dict(headers or {})) for value, key, headers in records
    ]
    assert [r.offset for r in got] == list(range(first, first + len(records)))
    assert {r.timestamp_ms for r in got} == {1_700_000_000_000}


@pytest.mark.slow
@given(st.lists(rows, min_size=1, max_size=60))
def test_the_builder_never_understates_its_size(records: list[Row]) -> None:
    """A builder kept under a limit yields a batch under it."""
    builder = BatchBuilder()
    for index, record in enumerate(records):
        assert builder.append(*record) == index
    assert len(builder.encode()) <= builder.encoded_bytes
    assert len(builder) == len(records)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.lists(rows, min_size=1, max_size=8))
def test_every_truncation_is_found(records: list[Row]) -> None:
    """A placed batch cut short, or with bytes behind it, is CorruptBatch at any length."""
    placed = place(encode_records(records))
    for size in range(len(placed)):
        with pytest.raises(CorruptBatch):
            decode_placed(placed[:size])
    with pytest.raises(CorruptBatch):
        decode_placed(placed + b"\0")


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.lists(rows, min_size=1, max_size=5))
def test_every_flipped_bit_is_found(records: list[Row]) -> None:
    """Each single bit of placement, header and payload is covered by a checksum."""
    placed = place(encode_records(records))
    for bit in range(8 * len(placed)):
        damaged = bytearray(placed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatch):
            decode_placed(bytes(damaged))


@given(st.binary(max_size=300))
def test_garbage_is_a_typed_error(data: bytes) -> None:
    """Bytes of any kind raise CorruptBatch and nothing else."""
    for reader in (check_batch, check_placed, decode_placed, parse_batch_header, parse_placement):
        with pytest.raises(CorruptBatch):
            reader(data)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_malformed_payload_under_a_right_checksum_is_a_typed_error(
    records: list[Row], seed: int
) -> None:
    """A faulty writer can checksum nonsense: the reader says CorruptBatch or gives records, and
    never breaks in another way."""
    rng = random.Random(seed)
    batch = bytearray(encode_records(records))
    for _ in range(rng.randint(1, 4)):
        batch[rng.randrange(BATCH_HEADER_BYTES, len(batch))] = rng.randrange(256)
    batch[0:4] = crc32c(bytes(batch[4:])).to_bytes(4, "little")
    with contextlib.suppress(CorruptBatch):
        decode_placed(place(bytes(batch)))


def test_another_batch_under_this_placement_is_found() -> None:
    """The placement names its batch by checksum, so the two can't be mixed up."""
    one, other = (place(encode_records([(value, None, None)])) for value in (b"a", b"b"))
    with pytest.raises(CorruptBatch):
        check_placed(one[:PLACEMENT_BYTES] + other[PLACEMENT_BYTES:])


def test_limits_are_typed_errors() -> None:
    """Empty, too many records, too many bytes, too large a record."""
    with pytest.raises(EmptyBatch):
        encode_records([])
    with pytest.raises(BatchTooLarge) as records:
        encode_records([(b"", None, None)] * (BATCH_RECORDS_MAX + 1))
    assert (records.value.unit, records.value.max_size) == ("records", BATCH_RECORDS_MAX)
    with pytest.raises(BatchTooLarge) as size:
        encode_records([(bytes(BATCH_BYTES_MAX // 4), None, None)] * 5)
    assert (size.value.unit, size.value.max_size) == ("bytes", BATCH_BYTES_MAX)
    for record in (
        (bytes(RECORD_BYTES_MAX + 1), None, None),
        (b"", bytes(RECORD_BYTES_MAX + 1), None),
        (b"", None, {"h": bytes(RECORD_BYTES_MAX)}),
    ):
        with pytest.raises(RecordTooLarge):
            encode_records([record])


def test_what_a_server_checks_holds_the_limits() -> None:
    """A batch made elsewhere that breaks a limit is refused by `check_batch` as such."""
    with pytest.raises(BatchTooLarge):
        check_batch(bytes(BATCH_BYTES_MAX + 1))
    body = struct.pack("<HBBHHIIQIQ", 0x4253, 1, 0, BATCH_HEADER_BYTES, 0, 41, 0, 0, 0, 0) + b"\0"
    with pytest.raises(EmptyBatch):
        check_batch(crc32c(body).to_bytes(4, "little") + body)


@given(header_maps)
def test_headers_alone_round_trip(headers: dict[str, bytes]) -> None:
    """Names are UTF-8, values are bytes, order is kept."""
    assert list(decode_headers(encode_headers(headers)).items()) == list(headers.items())


def test_the_layout_is_the_documented_one() -> None:
    """The bytes of docs/batch-format.md; they change only with a new version of the format."""
    batch = encode_records([(b"hello", b"k", {"type": b"greeting"}), (b"", None, None)])
    placed = place(batch)
    assert (PLACEMENT_BYTES, BATCH_HEADER_BYTES) == (68, 40)
    assert placed.hex() == GOLDEN


GOLDEN = (
    "78f38d6d5350020002000000c29c12b3ffffffffffffffff0300000005000000000000000068e5cf"
    "8b010000050000000000000000000000000000000000000000000000c29c12b35342010034000000"
    "67000000020000000000000000000000000000000000000000000000010008000280002000000000"
    "0305000000000000000200000000000000140000000000000068656c6c6f6b010004000800000074"
    "7970656772656574696e67"
)
OLDER = (
    "17d347ee5350020002000000ab84d51dffffffffffffffff0300000005000000000000000068e5cf"
    "8b010000050000000000000000000000000000000000000000000000ab84d51d5342010028000000"
    "5b000000020000000000000000000000000000000000000000000000030500000000000000020000"
    "0000000000140000000000000068656c6c6f6b0100040008000000747970656772656574696e67"
)
"""The same batch without an extension, as writers made it before there were any."""


def test_a_batch_without_an_extension_is_read_as_ever() -> None:
    """What is written with version 1 stays readable."""
    assert decode_placed(bytes.fromhex(OLDER)) == decode_placed(bytes.fromhex(GOLDEN))


def test_the_documented_reader_and_example_hold() -> None:
    """docs/batch-format.md: its reader, run as printed, reads its example, the golden bytes."""
    text = (Path(__file__).parents[2] / "docs" / "batch-format.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    example = text.split("## Example")[1].split("```\n")[1].split("```")[0]
    digits = "".join(part for line in example.splitlines() for part in line[12:].split())
    assert digits == GOLDEN
    names: dict[str, Callable[[bytes], list[tuple[int, bytes, bytes | None]]]] = {}
    exec(code, names)  # the text's own code
    assert names["records"](bytes.fromhex(digits)) == [(5, b"hello", b"k"), (6, b"", None)]
