"""What a search takes from a log server."""

from __future__ import annotations

import pytest
from helpers.log_servers import LOGLET, OTHER, flipped, placed

from sequencer.history import _parse
from sharedlog.batch import HEADERS_BYTES
from sharedlog.errors import CorruptBatch
from sharedlog.ids import Offset


def heads(*batches: bytes) -> list[bytes]:
    return [it[:HEADERS_BYTES] for it in batches]


def test_the_fixed_parts_are_enough() -> None:
    page = _parse(LOGLET, heads(placed(4, 2), placed(6, 1)), Offset(5), Offset(7))
    assert [(it.first, it.end) for it, _ in page.batches] == [(4, 6), (6, 7)]
    assert page.up_to == 7


@pytest.mark.parametrize(
    "batches",
    [
        heads(placed(5), placed(7)),
        heads(placed(6)),
        heads(placed(3, 2)),
        heads(placed(5, loglet=OTHER)),
        heads(flipped(placed(5), 20)),
        [placed(5)[: HEADERS_BYTES - 1]],
        heads(placed(5, 6)),
    ],
    ids=["a gap", "begins late", "ends early", "another's", "damaged", "cut short", "beyond"],
)
def test_what_does_not_fit_is_not_taken(batches: list[bytes]) -> None:
    """Nothing is skipped, and nothing at or above the end is counted (field note 7)."""
    with pytest.raises(CorruptBatch):
        _parse(LOGLET, batches, Offset(5), Offset(10))


def test_what_the_archive_has_may_be_another_logs() -> None:
    """Of a log that was forked: whose it is the offsets say, and these must fit."""
    page = _parse(None, heads(placed(5, loglet=OTHER), placed(6)), Offset(5), Offset(7))
    assert page.up_to == 7
    with pytest.raises(CorruptBatch):
        _parse(None, heads(placed(6, loglet=OTHER)), Offset(5), Offset(7))
