"""An archive object: what goes in comes out, in parts; and no damage is believed."""

from __future__ import annotations

import pytest
from helpers.log_servers import placed
from hypothesis import given
from hypothesis import strategies as st

from loglet.archive import object_format
from loglet.archive.errors import CorruptObject
from loglet.archive.object_format import (
    FOOTER_BYTES,
    MAGIC,
    Block,
    Footer,
    ObjectBuilder,
    block_at,
    block_since,
    decode_footer,
    decode_index,
    split_block,
)
from sharedlog.batch import parse_placement
from sharedlog.ids import LogId, LogletId, Offset

LOG_ID = LogId(7)


def builder(first: int = 0) -> ObjectBuilder:
    return ObjectBuilder(
        cluster_id=b"c" * 16, log_id=LOG_ID, object_id=b"o" * 16, first=Offset(first), created_ms=9
    )


def batch(first: int, count: int = 1, *, timestamp_ms: int = 1_000, segment: int = 0) -> bytes:
    return placed(first, count, loglet=LogletId(LOG_ID, segment), timestamp_ms=timestamp_ms)


def opened(data: bytes) -> tuple[Footer, list[Block]]:
    footer = decode_footer(data[-FOOTER_BYTES:], len(data))
    at = footer.index_position
    return footer, decode_index(data[at : at + footer.index_bytes], footer)


def read_all(data: bytes) -> None:
    """Look at every byte but the magic."""
    for block in opened(data)[1]:
        split_block(data[block.position : block.position + block.size], block)


BATCHES = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 4)), max_size=30)


@given(BATCHES, st.integers(1, 600), st.integers(0, 1_000))
def test_what_goes_in_comes_out(
    batches: list[tuple[int, int, int]], block_bytes: int, first: int
) -> None:
    """Batches as they were, losses between them, in blocks of any size, taken in any parts."""
    made, kept, time_ms = builder(first), [], 1_000
    parts: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_format, "BLOCK_BYTES", block_bytes)
        for count, later_ms, lost in batches:
            if lost == 4:
                made.skip_to(Offset(made.end + 2))
            time_ms += later_ms
            kept.append(batch(made.end, count, timestamp_ms=time_ms, segment=later_ms))
            made.add(kept[-1])
            if lost == 3:
                parts += made.take()
        parts += made.finish()
    data = b"".join(parts)
    footer, blocks = opened(data)
    assert (footer.first, footer.end) == (first, made.end)
    assert footer.batch_count == len(kept)
    assert footer.record_count == sum(count for count, _, _ in batches)
    assert data.startswith(MAGIC)
    found = [
        it
        for block in blocks
        for it in split_block(data[block.position : block.position + block.size], block)
    ]
    assert found == kept
    placements = [parse_placement(it) for it in kept]
    for offset in range(first, footer.end + 2):
        at = block_at(blocks, Offset(offset))
        wanted = next((it for it in placements if it.end > offset), None)
        assert (wanted is None) == (at == len(blocks))
        assert wanted is None or blocks[at].first <= wanted.first < blocks[at].end
    for moment_ms in range(999, time_ms + 2):
        at = block_since(blocks, moment_ms)
        wanted = next((it for it in placements if it.timestamp_ms >= moment_ms), None)
        assert (wanted is None) == (at == len(blocks))
        assert wanted is None or blocks[at].first <= wanted.first < blocks[at].end


@pytest.mark.parametrize(
    ("block_batches", "expected"),
    [(0.4, [1, 1, 1, 1]), (1.2, [1, 1, 1, 1]), (1.8, [2, 2]), (2.4, [2, 2]), (2.6, [3, 1])],
)
def test_a_block_ends_where_it_is_nearest_to_its_size(
    monkeypatch: pytest.MonkeyPatch, block_batches: float, expected: list[int]
) -> None:
    """Four batches of one size, and blocks of so many times that."""
    made = builder()
    batches = [batch(first) for first in range(4)]
    monkeypatch.setattr(object_format, "BLOCK_BYTES", int(block_batches * len(batches[0])))
    for it in batches:
        made.add(it)
    _, blocks = opened(b"".join(made.finish()))
    assert [block.end - block.first for block in blocks] == expected


@given(st.data())
def test_no_flipped_bit_is_believed(data: st.DataObject) -> None:
    """Wherever it is: in a block, the index or the footer. The magic at the begin is for people."""
    made = builder()
    for first in range(0, 12, 3):
        made.add(batch(first, 3))
    whole = bytearray(b"".join(made.finish()))
    bit = data.draw(st.integers(8 * len(MAGIC), 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptObject):
        read_all(bytes(whole))


def test_an_object_that_was_cut_short_is_none() -> None:
    made = builder()
    made.add(batch(0))
    whole = b"".join(made.finish())
    for size in (0, 10, FOOTER_BYTES, len(whole) - 1):
        with pytest.raises(CorruptObject):
            opened(whole[:size])
    with pytest.raises(CorruptObject, match="bytes has"):
        decode_footer(whole[-FOOTER_BYTES:], len(whole) + 1)


def test_only_the_next_batch_is_taken() -> None:
    made = builder(5)
    for wrong in (batch(4), batch(6), placed(5, 1, loglet=LogletId(LogId(8), 0))):
        with pytest.raises(ValueError, match="at 5"):
            made.add(wrong)
    made.add(batch(5, 2))
    with pytest.raises(ValueError, match="lies below"):
        made.skip_to(Offset(6))
