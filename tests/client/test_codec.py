"""Compression: round trips, the same bytes each time, bounds, and libraries that are not there."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedlog.append_queue import AppendQueue
from sharedlog.batch import (
    BATCH_HEADER_BYTES,
    NO_PRODUCER,
    BatchBuilder,
    BatchProducer,
    Headers,
    Placement,
    check_batch,
    decode_placed,
    encode_records,
    parse_batch_header,
    place_batch,
    stamp_batch,
)
from sharedlog.checksum import crc32c
from sharedlog.codec import Compression, compress, decompress, make_compressor
from sharedlog.config import AppenderConfig
from sharedlog.errors import BatchTooLarge, CodecUnavailable, CorruptBatch, InvalidArgument
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.limits import BATCH_BYTES_MAX, MIB

CODECS: dict[Compression, int] = {"zstd": 1, "lz4": 2}
MODULES = {
    "zstd": "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd",
    "lz4": "lz4.block",
}
LINES = [
    json.dumps({"user": f"user-{index % 7}", "text": "hello " * 5, "n": index}).encode()
    for index in range(200)
]

both = pytest.mark.parametrize("name", list(CODECS))
rows = st.tuples(
    st.binary(max_size=80) | st.just(b"again and again " * 20),
    st.none() | st.binary(max_size=20),
    st.none() | st.dictionaries(st.text(max_size=10), st.binary(max_size=20), max_size=3),
)


def place(batch: bytes) -> bytes:
    header = parse_batch_header(batch)
    placement = Placement(
        LogletId(LogId(1), 0), Offset(0), header.record_count, 1, Offset(0), header.crc32c
    )
    return place_batch(placement, batch)


def build(values: list[bytes]) -> BatchBuilder:
    builder = BatchBuilder()
    for value in values:
        builder.append(value)
    return builder


def packed(name: Compression, values: list[bytes]) -> bytes:
    return build(values).encode(compressor=make_compressor(name))


def with_payload(codec: int, payload: bytes, *, count: int = 1) -> bytes:
    """A batch as a faulty writer may make it: any payload, under a right checksum."""
    size = BATCH_HEADER_BYTES + len(payload)
    fields = (0x4253, 1, codec, BATCH_HEADER_BYTES, 0, size, count, 0, 0, 0)
    body = struct.pack("<HBBHHIIQIQ", *fields) + payload
    return crc32c(body).to_bytes(4, "little") + body


@both
@pytest.mark.slow
@settings(deadline=None)
@given(records=st.lists(rows, min_size=1, max_size=40))
def test_what_goes_in_comes_out(
    name: Compression, records: list[tuple[bytes, bytes | None, Headers | None]]
) -> None:
    """Compressed or not, a batch says the same; it is never larger, and the same each time."""
    builder = BatchBuilder()
    for record in records:
        builder.append(*record)
    plain = builder.encode()
    batch = builder.encode(compressor=make_compressor(name))
    assert decode_placed(place(batch)) == decode_placed(place(plain))
    assert len(batch) <= len(plain)
    assert check_batch(batch).codec in (0, CODECS[name])
    assert batch == builder.encode(compressor=make_compressor(name))


@both
def test_lines_of_json_get_smaller(name: Compression) -> None:
    """The header says by which codec; its other fields are those of any batch."""
    batch = packed(name, LINES)
    header = check_batch(batch)
    assert (header.codec, header.record_count) == (CODECS[name], len(LINES))
    assert header.batch_bytes == len(batch) < len(b"".join(LINES)) / 4
    assert [record.value for record in decode_placed(place(batch))] == LINES


@both
def test_what_does_not_get_smaller_is_sent_as_it_is(name: Compression) -> None:
    """Random bytes, and batches that are not worth the try."""
    noise = random.Random(1).randbytes(10_000)
    for values in ([noise], [b"short"]):
        assert packed(name, values) == build(values).encode()


@both
def test_a_stamp_leaves_the_payload_alone(name: Compression) -> None:
    """The producer's place is written into the header; nothing is compressed again."""
    compressor = make_compressor(name)
    producer = BatchProducer(7, 0, 3)
    stamped = stamp_batch(packed(name, LINES), producer)
    assert stamped == build(LINES).encode(producer, compressor=compressor)
    assert check_batch(stamped).producer == producer
    assert stamp_batch(stamped, NO_PRODUCER) == packed(name, LINES)


@both
def test_the_limit_on_batches_is_one_before_compression(name: Compression) -> None:
    """What no reader would decompress is refused where it is made."""
    zeros = [bytes(2 * MIB)] * 4
    with pytest.raises(BatchTooLarge) as raised:
        packed(name, zeros)
    assert raised.value.unit == "bytes"
    assert len(packed(name, zeros[:3])) < MIB


@both
def test_bombs_are_refused_by_the_size_in_front(name: Compression) -> None:
    """Too large a size, and a payload that is larger or smaller than it says."""
    compressor = make_compressor(name)
    assert compressor is not None
    huge = compressor.pack(bytes(64 * MIB))
    for size in (BATCH_BYTES_MAX, 2**32 - 1, 0, 100, len(huge)):
        with pytest.raises(CorruptBatch):
            decode_placed(place(with_payload(compressor.codec, struct.pack("<I", size) + huge)))
    payload = bytes(range(200)) * 5
    whole = compress(compressor, payload)
    assert whole is not None
    at_most = len(payload)
    assert decompress(compressor.codec, whole, 0, bytes_max=at_most) == payload
    with pytest.raises(CorruptBatch, match="at most"):
        decompress(compressor.codec, whole, 0, bytes_max=at_most - 1)
    for wrong in (len(payload) - 1, len(payload) + 1):
        with pytest.raises(CorruptBatch):
            decompress(
                compressor.codec, struct.pack("<I", wrong) + whole[4:], 0, bytes_max=2 * at_most
            )


def test_a_frame_that_looks_back_too_far_is_refused() -> None:
    """A zstd frame can ask its reader for gigabytes of window whatever its content's size is."""
    window_log = (27 - 10) << 3  # 128 MiB; no content size, no single segment
    raw_block = struct.pack("<I", 1 | 5 << 3)[:3] + b"\0" * 5
    frame = bytes.fromhex("28b52ffd") + bytes((0, window_log)) + raw_block
    with pytest.raises(CorruptBatch, match="zstd"):
        decompress(1, struct.pack("<I", 5) + frame, 0, bytes_max=100)
    modest = frame[:5] + bytes(((20 - 10) << 3,)) + raw_block
    assert decompress(1, struct.pack("<I", 5) + modest, 0, bytes_max=100) == bytes(5)


@both
def test_bytes_behind_and_missing_bytes_are_found(name: Compression) -> None:
    """A compressed payload is one frame or block, whole, and nothing else."""
    batch = packed(name, LINES)
    header = parse_batch_header(batch)
    payload = batch[header.header_bytes :]
    for wrong in (payload + b"\0", payload + payload[4:], b"", payload[:3], payload[:4]):
        with pytest.raises(CorruptBatch):
            decode_placed(place(with_payload(header.codec, wrong, count=len(LINES))))
    for size in range(4, len(payload), 7):
        with pytest.raises(CorruptBatch):
            decode_placed(place(with_payload(header.codec, payload[:size], count=len(LINES))))


@both
@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_nonsense_under_a_right_checksum_is_a_typed_error(name: Compression, seed: int) -> None:
    """A faulty writer's bytes are CorruptBatch or records, and never break in another way."""
    rng = random.Random(seed)
    batch = bytearray(packed(name, LINES[:30]))
    for _ in range(rng.randint(1, 4)):
        batch[rng.randrange(BATCH_HEADER_BYTES, len(batch))] = rng.randrange(256)
    batch[0:4] = crc32c(bytes(batch[4:])).to_bytes(4, "little")
    with contextlib.suppress(CorruptBatch):
        decode_placed(place(bytes(batch)))


@both
def test_a_missing_library_is_said_by_writer_and_reader(
    name: Compression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names what to install: when the appender is made, and when a batch is met."""
    batch = packed(name, LINES)
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(CodecUnavailable) as writing:
        AppendQueue(AppenderConfig(compression=name), producer_id=1)
    with pytest.raises(CodecUnavailable) as reading:
        decode_placed(place(batch))
    for raised in (writing, reading):
        assert f"sharedlog[{name}]" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert (raised.value.codec, raised.value.retryable) == (CODECS[name], False)
    assert len(decode_placed(place(encode_records([(b"plain", None, None)])))) == 1


def test_an_unknown_codec_is_no_damage() -> None:
    """A batch of a later version: to ask another replica would not help."""
    with pytest.raises(CodecUnavailable, match="unknown codec 9"):
        decode_placed(place(with_payload(9, b"payload")))


def test_an_unknown_compression_is_refused() -> None:
    """When the setting is made."""
    with pytest.raises(InvalidArgument, match="none, zstd, lz4"):
        AppenderConfig(compression="gzip")  # type: ignore[arg-type]  # the point


@both
@pytest.mark.parametrize("values", [LINES, [random.Random(1).randbytes(10_000)]])
def test_a_repeated_batch_has_the_same_bytes(name: Compression, values: list[bytes]) -> None:
    """Its bytes are kept, and its records let go, whether it got smaller or not."""
    queue = AppendQueue(AppenderConfig(compression=name), producer_id=5)
    queue.on_opened(floor=Offset(0))
    for value in values:
        queue.put(value, None, None, timeout_s=30, now_s=0)
    queue.put_batch(build(values), timeout_s=30, now_s=0)
    sent = []
    for _ in range(2):
        batch = queue.next_to_send(0.0)
        assert batch is not None
        assert len(batch.builder) == 0, "or its bytes would be let go when it is sent"
        assert (batch.count, batch.size) == (len(values), len(batch.data))
        assert [record.value for record in decode_placed(place(batch.data))] == values
        sent.append(batch.data)
    queue.on_session_lost()
    queue.check_invariants()
    queue.opening()
    queue.on_opened(floor=Offset(0))
    for data in sent:
        again = queue.next_to_send(1.0)
        assert again is not None
        assert again.data == data
    queue.check_invariants()
