"""An archive object: blocks of placed batches, an index, a footer (docs/archive-format.md).

Rules of this file: no I/O, no clock, no `async`; work per batch. An object is built and read in
parts, so that neither needs memory for all of it.

`ObjectBuilder` takes the batches of a range in the order of their offsets and gives bytes to be
uploaded. `decode_footer`, `decode_index` and `split_block` read one back; each checks what it is
given against its checksum, so that no byte is believed for where it came from.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from loglet.archive.errors import CorruptObject
from sharedlog.batch import BATCH_HEADER_BYTES, PLACEMENT_BYTES, Placement, parse_placement
from sharedlog.checksum import crc32c
from sharedlog.ids import LogId, Offset

MAGIC: Final = b"SLOGARC1"
BLOCK_BYTES: Final = 512 * 1024
"""A block ends where it is nearest to this size: who wants one record reads a whole block."""

_FOOTER: Final = struct.Struct("<I4sHHIQIIQQQQQQ16s16s16x")
FOOTER_BYTES: Final = _FOOTER.size
_FOOTER_MAGIC: Final = b"SLAF"
_VERSION: Final = 1
_INDEX_ENTRY: Final = struct.Struct("<QQQIIQQ")
INDEX_ENTRY_BYTES: Final = _INDEX_ENTRY.size
_BATCH_BYTES: Final = struct.Struct("<I")
_BATCH_BYTES_AT: Final = PLACEMENT_BYTES + 12  # in a placed batch


class Block(NamedTuple):
    """An entry of the index."""

    first: Offset  # of its first record
    end: Offset  # behind its last
    position: int  # in the object
    size: int
    crc32c: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What an object says of itself."""

    cluster_id: bytes  # 16 bytes
    log_id: LogId
    object_id: bytes  # 16 bytes
    first: Offset
    end: Offset
    batch_count: int
    record_count: int
    created_ms: int
    block_count: int
    index_position: int
    index_crc32c: int

    @property
    def index_bytes(self) -> int:
        """Of the index alone."""
        return self.block_count * INDEX_ENTRY_BYTES

    @property
    def object_bytes(self) -> int:
        """Of the whole object."""
        return self.index_position + self.index_bytes + FOOTER_BYTES

    def holds(self, first: Offset, end: Offset, records: int, *, is_own: bool) -> bool:
        """Whether it is the object that a manifest names so.

        One of another log, which this one was forked off, may reach beyond the fork.
        """
        if not is_own and end < self.end:
            return first == self.first
        return (first, end, records) == (self.first, self.end, self.record_count)

    @property
    def range_text(self) -> str:
        """What it holds, for people."""
        return f"{self.record_count} records of [{self.first}, {self.end})"


class ObjectBuilder:
    """Makes one object of the range [first, end) of a log.

    `add` each batch, `take` what is to be uploaded by then, and `finish`. Who builds must add every
    batch of the range that is in the log: that they adjoin is checked, but for `skip_to` over what
    is lost. The first batch may begin below `first`: then so does the range.
    """

    def __init__(
        self, *, cluster_id: bytes, log_id: LogId, object_id: bytes, first: Offset, created_ms: int
    ) -> None:
        self._identity = (cluster_id, log_id, object_id)
        self._created_ms = created_ms
        self.first = first
        self.end = first  # all below it was added, or skipped
        self.size = len(MAGIC)  # what was taken, and what is to be
        self.first_ms = self.last_ms = 0  # of the records; an index never runs back
        self.footer: Footer | None = None  # once it is finished
        self._ready: list[bytes] = [MAGIC]
        self._open: list[bytes] = []  # the block that is not full yet
        self._open_bytes = 0
        self._open_first: Placement | None = None
        self._open_first_ms = 0
        self._blocks: list[Block] = []
        self._batches = self._records = 0

    def add(self, placed: bytes) -> None:
        """The next batch. Raises `CorruptBatch` if it is none, ValueError if it is not the next."""
        placement = parse_placement(placed)
        if self._batches == 0 and placement.first < self.first == self.end < placement.end:
            self.first = self.end = Offset(placement.first)  # the log was purged up to within it
        if placement.loglet.log_id != self._identity[1] or placement.first != self.end:
            raise ValueError(
                f"[{placement.first}, {placement.end}) of {placement.loglet} at {self.end}"
            )
        if 2 * self._open_bytes + len(placed) > 2 * BLOCK_BYTES:
            self._close_block()  # with this batch it would be further beyond than it is below
        self.last_ms = max(self.last_ms, placement.timestamp_ms)
        if self._open_first is None:
            self._open_first, self._open_first_ms = placement, self.last_ms
        if self._batches == 0:
            self.first_ms = self.last_ms
        self._open.append(placed)
        self._open_bytes += len(placed)
        self.end = Offset(placement.end)
        self._batches += 1
        self._records += placement.record_count
        if self._open_bytes >= BLOCK_BYTES:
            self._close_block()

    def skip_to(self, offset: Offset) -> None:
        """The loss of what lies below was accepted."""
        if offset < self.end:
            raise ValueError(f"{self.end} was added already, {offset} lies below")
        self._close_block()
        self.end = offset

    def take(self) -> list[bytes]:
        """What became ready since the last call, in order."""
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> list[bytes]:
        """The rest; nothing is added after that."""
        self._close_block()
        index = b"".join(_INDEX_ENTRY.pack(*block) for block in self._blocks)
        self.footer = Footer(
            cluster_id=self._identity[0],
            log_id=self._identity[1],
            object_id=self._identity[2],
            first=self.first,
            end=self.end,
            batch_count=self._batches,
            record_count=self._records,
            created_ms=self._created_ms,
            block_count=len(self._blocks),
            index_position=self.size,
            index_crc32c=crc32c(index),
        )
        self._put(index, encode_footer(self.footer))
        return self.take()

    def _close_block(self) -> None:
        if self._open_first is None:
            return
        checksum = 0
        for placed in self._open:
            checksum = crc32c(placed, checksum)
        self._blocks.append(
            Block(
                Offset(self._open_first.first),
                self.end,
                self.size,
                self._open_bytes,
                checksum,
                self._open_first_ms,
                self.last_ms,
            )
        )
        self._put(*self._open)
        self._open, self._open_bytes, self._open_first = [], 0, None

    def _put(self, *parts: bytes) -> None:
        self._ready += parts
        self.size += sum(map(len, parts))


def encode_footer(footer: Footer) -> bytes:
    """The object's last `FOOTER_BYTES`."""
    packed = _FOOTER.pack(
        0,
        _FOOTER_MAGIC,
        _VERSION,
        0,
        footer.block_count,
        footer.index_position,
        footer.index_bytes,
        footer.index_crc32c,
        footer.log_id,
        footer.first,
        footer.end,
        footer.batch_count,
        footer.record_count,
        footer.created_ms,
        footer.object_id,
        footer.cluster_id,
    )
    return _BATCH_BYTES.pack(crc32c(packed[4:])) + packed[4:]


def decode_footer(end_of_object: bytes, object_bytes: int) -> Footer:
    """The footer, from the object's last bytes, at least `FOOTER_BYTES` of them, and its size.

    Raises:
        CorruptObject: it is none, or says that the object has another size.
    """
    data = end_of_object[-FOOTER_BYTES:]
    if len(data) < FOOTER_BYTES:
        raise CorruptObject(f"{len(data)} bytes are too few for an archive object")
    crc, magic, version, _, blocks, position, index_bytes, index_crc, *rest = _FOOTER.unpack(data)
    if magic != _FOOTER_MAGIC or version != _VERSION:
        raise CorruptObject(f"no archive object: magic {magic!r}, version {version}")
    if crc32c(data[4:]) != crc:
        raise CorruptObject("the footer's checksum does not match")
    log_id, first, end, batches, records, created_ms, object_id, cluster_id = rest
    footer = Footer(
        cluster_id=cluster_id,
        log_id=LogId(log_id),
        object_id=object_id,
        first=Offset(first),
        end=Offset(end),
        batch_count=batches,
        record_count=records,
        created_ms=created_ms,
        block_count=blocks,
        index_position=position,
        index_crc32c=index_crc,
    )
    if index_bytes != footer.index_bytes or footer.object_bytes != object_bytes:
        raise CorruptObject(f"an object of {footer.object_bytes} bytes has {object_bytes}")
    return footer


def decode_index(data: bytes, footer: Footer) -> list[Block]:
    """The index, from its bytes.

    Raises:
        CorruptObject: it does not match the footer, or is not in order.
    """
    if len(data) != footer.index_bytes or crc32c(data) != footer.index_crc32c:
        raise CorruptObject("the index does not match its checksum")
    blocks = [
        Block(Offset(first), Offset(end), *rest)
        for first, end, *rest in _INDEX_ENTRY.iter_unpack(data)
    ]
    position, offset, time_ms = len(MAGIC), footer.first, 0
    for block in blocks:
        in_order = offset <= block.first < block.end and time_ms <= block.first_ms <= block.last_ms
        if block.position != position or not in_order:
            raise CorruptObject(f"the block of [{block.first}, {block.end}) is out of order")
        position, offset, time_ms = position + block.size, block.end, block.last_ms
    if position != footer.index_position or offset > footer.end:
        raise CorruptObject("the blocks are not those that the footer tells of")
    return blocks


def block_at(blocks: Sequence[Block], offset: Offset) -> int:
    """Index of the first block that ends above `offset`; `len(blocks)` if none does."""
    return bisect_right(blocks, offset, key=lambda block: block.end)


def block_since(blocks: Sequence[Block], timestamp_ms: int) -> int:
    """Index of the first block with a record that is not earlier; `len(blocks)` if none has."""
    return bisect_right(blocks, timestamp_ms - 1, key=lambda block: block.last_ms)


def check_block(data: bytes, block: Block) -> None:
    """Raises `CorruptObject` if the bytes do not match the block's checksum."""
    if len(data) != block.size or crc32c(data) != block.crc32c:
        raise CorruptObject(f"the block of [{block.first}, {block.end}) is damaged")


def split_block(data: bytes, block: Block) -> list[bytes]:
    """A block's placed batches, each as it was stored; their own checksums are left to the reader.

    Raises:
        CorruptObject: it does not match its checksum, or is not made of batches.
    """
    check_block(data, block)
    return list(_batches(data))


def _batches(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        if len(data) - at < PLACEMENT_BYTES + BATCH_HEADER_BYTES:
            raise CorruptObject("a block ends within a batch")
        (batch_bytes,) = _BATCH_BYTES.unpack_from(data, at + _BATCH_BYTES_AT)
        end = at + PLACEMENT_BYTES + batch_bytes
        if batch_bytes < BATCH_HEADER_BYTES or end > len(data):
            raise CorruptObject("a block ends within a batch")
        yield data[at:end]
        at = end
