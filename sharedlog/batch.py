"""The batch: how records are packed, checksummed, placed and read back.

`docs/batch-format.md` has the tables.

A **batch** is encoded and checksummed once, by the client:

    batch header (40 bytes, little-endian) | extension | payload

The extension tells which keys the batch can't have (`key_digest.py`), so that servers can leave it
out for who wants one of them.

The payload is columnar: all sizes, then all values, then all keys, then all record headers.
Packing and unpacking are then a few calls into C for a whole batch rather than some for each
record, which is what makes a Python client fast enough. Servers look at the header and never
into the payload, which the client may have compressed as a whole (`codec.py`).

A **placed batch** is what log servers store and readers get:

    placement (68 bytes, little-endian) | batch

The sequencer writes the placement once: which loglet, first offset, timestamp. The same bytes go
to every log server, to disk, to readers and to the archive. The placement has a checksum of its
own, which covers the batch's checksum too, so that two placed batches are equal when their
placements are.

Deliberately not here: what repetitions are taken for (`sequencer/producers.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from types import MappingProxyType
from typing import Final, NamedTuple

from sharedlog.checksum import CrcBehind, crc32c
from sharedlog.codec import CODEC_NONE, Compressor, compress, decompress
from sharedlog.errors import (
    BatchTooLarge,
    CorruptBatch,
    EmptyBatch,
    InvalidArgument,
    RecordTooLarge,
)
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.key_digest import DIGEST_KEY_BYTES, NO_KEYS, make_extension, may_match
from sharedlog.limits import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    HEADER_NAME_BYTES_MAX,
    RECORD_BYTES_MAX,
    RECORD_HEADERS_MAX,
)

_BATCH_MAGIC: Final = 0x4253  # "SB"
_PLACEMENT_MAGIC: Final = 0x5053  # "SP"
_VERSION: Final = 1  # of a batch
_PLACEMENT_VERSION: Final = 2  # the first one had no state

# crc32c of all that follows · magic · version · codec · header bytes · flags · batch bytes ·
# records · producer id · producer epoch · producer sequence
_BATCH_HEADER: Final = struct.Struct("<IHBBHHIIQIQ")
BATCH_HEADER_BYTES: Final = _BATCH_HEADER.size

# crc32c of the rest of the placement · magic · version · kind · records · batch crc32c · log id ·
# segment index · first offset · timestamp · committed tail · state from · state until
_PLACEMENT: Final = struct.Struct("<IHBBIIQIQQQQQ")
PLACEMENT_BYTES: Final = _PLACEMENT.size

HEADERS_BYTES: Final = PLACEMENT_BYTES + BATCH_HEADER_BYTES
"""The fixed part of a placed batch: all that tells where it lies and who made it."""

# Of what a batch's checksum is about: all behind the four bytes of the checksum itself.
_crc_of_batch: Final = CrcBehind(4)
_crc_of_placed: Final = CrcBehind(PLACEMENT_BYTES + 4)

_KIND_AT: Final = 7  # in the placement; 0: records
_HEADER_BYTES: Final = struct.Struct("<H")
_HEADER_BYTES_AT: Final = PLACEMENT_BYTES + 8  # in a placed batch

_HAS_KEYS: Final = 1
_HAS_HEADERS: Final = 2
_RECORD_OVERHEAD_BYTES: Final = 4  # its size in the table of values
_ZERO: Final = Offset(0)

Headers = Mapping[str, bytes]
_NO_HEADERS: Final[Headers] = MappingProxyType({})


class Record(NamedTuple):
    """One record as it is read back.

    A tuple, so that a batch of them is built in C. `timestamp_ms` is the sequencer's, Unix time in
    milliseconds, the same for all records of a batch, never running backwards within a log.
    """

    offset: Offset
    value: bytes
    key: bytes | None
    headers: Headers
    timestamp_ms: int


class BatchProducer(NamedTuple):
    """Who made a batch, and as which of its batches: what tells a repetition from a new batch."""

    producer_id: int = 0  # random, 64 bits; 0: nobody who could be asked to repeat it
    epoch: int = 0  # of the producer; a newer one shuts out the older
    sequence: int = 0  # of the batch's first record: the producer's records are counted from 0


NO_PRODUCER: Final = BatchProducer()


class BatchHeader(NamedTuple):
    """The fixed header of a batch, checked for form but not against the payload."""

    crc32c: int
    codec: int
    header_bytes: int
    batch_bytes: int
    record_count: int
    producer: BatchProducer


KIND_RECORDS: Final = 0
"""A batch of records, as a client made it."""
KIND_CONTROL: Final = 1
"""A control batch: one record, the log's state (`sharedlog/control.py`). Readers pass over it."""


class Placement(NamedTuple):
    """Where a batch lies: its loglet, its offsets [first, first + record_count) and its time.

    The log's state behind the batch is that of the control batch at `state_from`, and what the
    batches behind that one and below `state_until` changed; no state yet if both are 0. See
    `sequencer/state.py`.
    """

    loglet: LogletId
    first: Offset
    record_count: int
    timestamp_ms: int
    committed_tail: (
        Offset  # exclusive; what the sequencer knew to be committed when it placed the batch
    )
    batch_crc32c: int
    kind: int = KIND_RECORDS
    state_from: Offset = _ZERO
    state_until: Offset = _ZERO  # exclusive

    @property
    def end(self) -> Offset:
        """First offset after the batch, exclusive."""
        return Offset(self.first + self.record_count)


class BatchBuilder:
    """Gathers records until they are encoded as one batch.

    Invariant: `encoded_bytes` is never less than what `encode` will return, so a builder that was
    kept under a limit yields a batch under it.
    """

    __slots__ = ("_headers", "_keys", "_values", "encoded_bytes")

    def __init__(self) -> None:
        self._values: list[bytes] = []
        self._keys: list[bytes | None] | None = None  # None until the first record that has a key
        self._headers: list[bytes] | None = None  # encoded; None until the first that has headers
        self.encoded_bytes = BATCH_HEADER_BYTES + len(NO_KEYS) + 1

    def __len__(self) -> int:
        return len(self._values)

    def append(self, value: bytes, key: bytes | None = None, headers: Headers | None = None) -> int:
        """Add a record; returns its index in the batch, from 0.

        Raises:
            RecordTooLarge: value, key and headers together exceed `RECORD_BYTES_MAX`.
            InvalidArgument: a header's name is too long, or there are too many.
        """
        index = len(self._values)
        size = len(value) + _RECORD_OVERHEAD_BYTES
        if key is not None or headers or self._keys is not None or self._headers is not None:
            size += self._append_extras(index, len(value), key, headers)
        elif size > RECORD_BYTES_MAX:
            raise RecordTooLarge(size_bytes=len(value), max_bytes=RECORD_BYTES_MAX)
        self._values.append(value)
        self.encoded_bytes += size
        return index

    def _append_extras(
        self, index: int, value_bytes: int, key: bytes | None, headers: Headers | None
    ) -> int:
        """Add key and headers of record `index`; returns the bytes that they take."""
        encoded = encode_headers(headers) if headers else b""
        record_bytes = value_bytes + (len(key) if key is not None else 0) + len(encoded)
        if record_bytes > RECORD_BYTES_MAX:
            raise RecordTooLarge(size_bytes=record_bytes, max_bytes=RECORD_BYTES_MAX)
        size = 0
        if self._keys is None and key is not None:
            self._keys = [None] * index
            size += 4 * index + DIGEST_KEY_BYTES
        if self._keys is not None:
            self._keys.append(key)
            size += 4 + (len(key) + DIGEST_KEY_BYTES if key is not None else 0)
        if self._headers is None and encoded:
            self._headers = [b""] * index
            size += 4 * index
        if self._headers is not None:
            self._headers.append(encoded)
            size += 4 + len(encoded)
        return size

    def encode(
        self, producer: BatchProducer = NO_PRODUCER, *, compressor: Compressor | None = None
    ) -> bytes:
        """The batch's bytes, the same for the same arguments. There must be at least one record.

        Compressed if there is a compressor and that makes it smaller.

        Raises:
            EmptyBatch: there is no record.
            BatchTooLarge: more than `BATCH_BYTES_MAX` bytes, compressed or not, or
            `BATCH_RECORDS_MAX` records.
        """
        values = self._values
        count = len(values)
        flags = 0
        columns: list[bytes] = []
        keys, headers = self._keys, self._headers
        sizes = struct.Struct(f"<{count}I").pack
        tables = [sizes(*map(len, values))]
        columns.extend(values)
        if keys is not None:
            flags |= _HAS_KEYS
            tables.append(sizes(*[0 if key is None else len(key) + 1 for key in keys]))
            columns.extend(key for key in keys if key)
        if headers is not None:
            flags |= _HAS_HEADERS
            tables.append(sizes(*map(len, headers)))
            columns.extend(headers)
        payload = b"".join([bytes((flags,)), *tables, *columns])
        extension = NO_KEYS if keys is None else make_extension(keys)
        _check_limits(BATCH_HEADER_BYTES + len(extension) + len(payload), count)
        packed = None if compressor is None else compress(compressor, payload)
        if compressor is None or packed is None:
            return _encode_batch(count, CODEC_NONE, extension, payload, producer)
        return _encode_batch(count, compressor.codec, extension, packed, producer)


def _check_limits(batch_bytes: int, record_count: int) -> None:
    if record_count == 0:
        raise EmptyBatch
    if batch_bytes > BATCH_BYTES_MAX:
        raise BatchTooLarge(size=batch_bytes, max_size=BATCH_BYTES_MAX, unit="bytes")
    if record_count > BATCH_RECORDS_MAX:
        raise BatchTooLarge(size=record_count, max_size=BATCH_RECORDS_MAX, unit="records")


def _encode_batch(
    record_count: int, codec: int, extension: bytes, payload: bytes, producer: BatchProducer
) -> bytes:
    header_bytes = BATCH_HEADER_BYTES + len(extension)
    batch_bytes = header_bytes + len(payload)
    fields = (_BATCH_MAGIC, _VERSION, codec, header_bytes, 0, batch_bytes, record_count)
    header = _BATCH_HEADER.pack(0, *fields, *producer)[4:] + extension
    checksum = crc32c(payload, crc32c(header))
    return b"".join((checksum.to_bytes(4, "little"), header, payload))


def stamp_batch(batch: bytes, producer: BatchProducer) -> bytes:
    """A batch that was encoded before its place in its producer's order was known, as its own."""
    fields = _BATCH_HEADER.unpack_from(batch)
    header = _BATCH_HEADER.pack(*fields[:-3], *producer)
    rest = batch[BATCH_HEADER_BYTES:]  # extension and payload, as they are
    checksum = crc32c(rest, crc32c(header[4:]))
    return b"".join((checksum.to_bytes(4, "little"), header[4:], rest))


def encode_records(records: Iterable[tuple[bytes, bytes | None, Headers | None]]) -> bytes:
    """One batch of (value, key, headers). Raises what `BatchBuilder` raises."""
    builder = BatchBuilder()
    for value, key, headers in records:
        builder.append(value, key, headers)
    return builder.encode()


def parse_batch_header(data: bytes, at: int = 0) -> BatchHeader:
    """The fixed header of the batch from `at` to the end of `data`; the payload is not read.

    Raises:
        CorruptBatch: not a batch, or cut short.
    """
    if len(data) - at < BATCH_HEADER_BYTES:
        raise CorruptBatch(f"{len(data) - at} bytes are too few for a batch")
    fields = _BATCH_HEADER.unpack_from(data, at)
    crc, magic, version, codec, header_bytes, _, batch_bytes, count, *producer = fields
    if magic != _BATCH_MAGIC or version != _VERSION:
        raise CorruptBatch(f"not a batch: magic {magic:#06x}, version {version}")
    if batch_bytes != len(data) - at or not BATCH_HEADER_BYTES <= header_bytes <= batch_bytes:
        raise CorruptBatch(f"a batch of {batch_bytes} bytes came as {len(data) - at}")
    made_by = BatchProducer(*producer) if producer[0] else NO_PRODUCER
    return BatchHeader(crc, codec, header_bytes, batch_bytes, count, made_by)


def parse_producer(placed: bytes) -> BatchProducer:
    """Who made a placed batch, from its fixed part alone (`HEADERS_BYTES` of it are enough).

    Raises:
        CorruptBatch: too short, or no batch follows the placement.
    """
    if len(placed) < HEADERS_BYTES:
        raise CorruptBatch(f"{len(placed)} bytes are too few for a placed batch")
    _, magic, version, _, _, _, _, _, *producer = _BATCH_HEADER.unpack_from(placed, PLACEMENT_BYTES)
    if magic != _BATCH_MAGIC or version != _VERSION:
        raise CorruptBatch(f"not a batch: magic {magic:#06x}, version {version}")
    return BatchProducer(*producer)


def check_batch(data: bytes) -> BatchHeader:
    """The header of a batch whose checksum and limits were verified.

    Raises:
        CorruptBatch: not a batch, or its checksum does not match.
        EmptyBatch, BatchTooLarge: outside the limits.
    """
    if len(data) > BATCH_BYTES_MAX:
        raise BatchTooLarge(size=len(data), max_size=BATCH_BYTES_MAX, unit="bytes")
    header = parse_batch_header(data)
    if _crc_of_batch(data) != header.crc32c:
        raise CorruptBatch("the batch's checksum does not match its bytes")
    _check_limits(header.batch_bytes, header.record_count)
    return header


def may_have_key(placed: bytes, key_hash: int) -> bool:
    """Whether a placed batch that `check_placed` has passed can have a key of this `hash_key`.

    Never False if it has. True if nothing is known.
    """
    (header_bytes,) = _HEADER_BYTES.unpack_from(placed, _HEADER_BYTES_AT)
    return may_match(placed[HEADERS_BYTES : PLACEMENT_BYTES + header_bytes], key_hash)


def has_records(placed: bytes) -> bool:
    """Whether a placed batch is one of records, by the kind in its placement."""
    return placed[_KIND_AT] == KIND_RECORDS


def place_batch(placement: Placement, batch: bytes) -> bytes:
    """The placed batch: what every log server stores."""
    loglet = placement.loglet
    body = _PLACEMENT.pack(
        0,
        _PLACEMENT_MAGIC,
        _PLACEMENT_VERSION,
        placement.kind,
        placement.record_count,
        placement.batch_crc32c,
        loglet.log_id,
        loglet.segment_index,
        placement.first,
        placement.timestamp_ms,
        placement.committed_tail,
        placement.state_from,
        placement.state_until,
    )[4:]
    return b"".join((crc32c(body).to_bytes(4, "little"), body, batch))


def parse_placement(placed: bytes) -> Placement:
    """The placement of a placed batch, its own checksum verified; the batch is not read.

    Raises:
        CorruptBatch: not a placed batch, or the placement's checksum does not match.
    """
    if len(placed) < PLACEMENT_BYTES + BATCH_HEADER_BYTES:
        raise CorruptBatch(f"{len(placed)} bytes are too few for a placed batch")
    fields = _PLACEMENT.unpack_from(placed)
    crc, magic, version, kind, count, batch_crc, log_id, segment, first, timestamp, *rest = fields
    if magic != _PLACEMENT_MAGIC or version != _PLACEMENT_VERSION:
        raise CorruptBatch(f"not a placed batch: magic {magic:#06x}, version {version}")
    if crc32c(placed[4:PLACEMENT_BYTES]) != crc:
        raise CorruptBatch("the placement's checksum does not match")
    loglet = LogletId(LogId(log_id), segment)
    committed, state_from, state_until = rest
    return Placement(
        loglet, first, count, timestamp, committed, batch_crc, kind, state_from, state_until
    )


def check_placed(placed: bytes) -> Placement:
    """The placement of a placed batch, placement and batch verified against their checksums.

    Raises:
        CorruptBatch: either does not match.
    """
    placement = parse_placement(placed)
    header = parse_batch_header(placed, PLACEMENT_BYTES)
    if header.crc32c != placement.batch_crc32c or header.record_count != placement.record_count:
        raise CorruptBatch("the batch is not the one that was placed here")
    if _crc_of_placed(placed) != header.crc32c:
        raise CorruptBatch("the batch's checksum does not match its bytes")
    return placement


def decode_placed(placed: bytes) -> list[Record]:
    """All records of a placed batch, in order, checksums verified.

    Raises:
        CorruptBatch: a checksum does not match, or the payload is malformed.
        CodecUnavailable: nothing is here that could decompress it.
    """
    return decode_checked(placed, check_placed(placed))


def decode_checked(placed: bytes, placement: Placement) -> list[Record]:
    """All records of a placed batch that `check_placed` has passed, in order.

    Raises:
        CorruptBatch: the payload is malformed although its checksum matches: a faulty writer made
        it.
        CodecUnavailable: nothing is here that could decompress it.
    """
    header = parse_batch_header(placed, PLACEMENT_BYTES)
    values, keys, headers = decode_payload(header, placed, PLACEMENT_BYTES)
    offsets = range(placement.first, placement.end)
    rows = zip(offsets, values, keys, headers, repeat(placement.timestamp_ms))
    return list(map(Record._make, rows))


def decode_payload(
    header: BatchHeader, data: bytes, at: int = 0
) -> tuple[Sequence[bytes], Iterable[bytes | None], Iterable[Headers]]:
    """Columns (values, keys, headers) of the batch at `at`; keys and headers may be endless.

    Raises:
        CorruptBatch: sizes that do not add up, or what was compressed can't be decompressed.
        CodecUnavailable: nothing is here that could decompress it.
    """
    count = header.record_count
    position = at + header.header_bytes
    if header.codec != CODEC_NONE:
        bytes_max = BATCH_BYTES_MAX - header.header_bytes
        data = decompress(header.codec, data, position, bytes_max=bytes_max)
        position = 0
    try:
        flags = data[position]
        tables = 1 + (flags & _HAS_KEYS) + ((flags & _HAS_HEADERS) >> 1)
        sizes = struct.Struct(f"<{count * tables}I").unpack_from(data, position + 1)
    except (IndexError, struct.error) as error:
        raise CorruptBatch("the payload is cut short") from error
    position += 1 + 4 * count * tables
    values = list(_slices(data, position, sizes[:count]))
    position += sum(sizes[:count])
    keys: Iterable[bytes | None] = repeat(None)
    headers: Iterable[Headers] = repeat(_NO_HEADERS)
    taken = count
    if flags & _HAS_KEYS:
        key_sizes = sizes[taken : taken + count]
        lengths = [size - 1 if size else 0 for size in key_sizes]
        found = _slices(data, position, lengths)
        keys = [key if size else None for key, size in zip(found, key_sizes, strict=True)]
        position += sum(lengths)
        taken += count
    if flags & _HAS_HEADERS:
        header_sizes = sizes[taken:]
        headers = [decode_headers(raw) for raw in _slices(data, position, header_sizes)]
        position += sum(header_sizes)
    if position != len(data):
        raise CorruptBatch("the payload's sizes do not add up")
    return values, keys, headers


def _slices(data: bytes, start: int, sizes: Sequence[int]) -> Iterator[bytes]:
    ends = list(accumulate(sizes, initial=start))
    return map(data.__getitem__, map(slice, ends, ends[1:]))


def encode_headers(headers: Headers) -> bytes:
    """A record's headers: a count, then for each the name's size, the value's size, name and value.

    Raises:
        InvalidArgument: a name is too long, or there are too many headers.
    """
    if len(headers) > RECORD_HEADERS_MAX:
        raise InvalidArgument(f"{len(headers)} headers; a record takes {RECORD_HEADERS_MAX}")
    parts = [struct.pack("<H", len(headers))]
    for name, value in headers.items():
        raw = name.encode()
        if len(raw) > HEADER_NAME_BYTES_MAX:
            raise InvalidArgument(f"a header's name takes {HEADER_NAME_BYTES_MAX} bytes at most")
        parts.append(struct.pack("<HI", len(raw), len(value)))
        parts.append(raw)
        parts.append(value)
    return b"".join(parts)


def decode_headers(raw: bytes) -> Headers:
    """The inverse of `encode_headers`; empty bytes are no headers.

    Raises:
        CorruptBatch: malformed.
    """
    if not raw:
        return _NO_HEADERS
    headers: dict[str, bytes] = {}
    try:
        (count,) = struct.unpack_from("<H", raw)
        position = 2
        for _ in range(count):
            name_size, value_size = struct.unpack_from("<HI", raw, position)
            position += 6
            name = raw[position : position + name_size].decode()
            position += name_size
            headers[name] = raw[position : position + value_size]
            position += value_size
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptBatch("malformed record headers") from error
    if position != len(raw):
        raise CorruptBatch("malformed record headers")
    return headers
