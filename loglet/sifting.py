"""What of the batches at hand a reader is sent: all, their headers, or those that may have a key.

Shared by whoever serves `ReadLoglet`: log servers, and nodes for what is archived.
"""

from __future__ import annotations

from loglet.wire import ReadQuery
from sharedlog.batch import HEADERS_BYTES, has_records, may_have_key, parse_placement
from sharedlog.ids import Offset


def headers_of(placed: bytes) -> bytes:
    """The fixed part of a batch of records; a control batch is small, and wanted whole."""
    return placed[:HEADERS_BYTES] if has_records(placed) else placed


def sift(batches: list[bytes], query: ReadQuery) -> tuple[list[bytes], list[tuple[Offset, Offset]]]:
    """The sound batches that are to be sent, and the ranges of the others, adjoining ones joined.

    A batch is left out only if its digest rules out the key that is asked for.
    """
    key_hash = query.key_hash
    if key_hash is None:
        return batches, []
    sent: list[bytes] = []
    skipped: list[tuple[Offset, Offset]] = []
    for placed in batches:
        if may_have_key(placed, key_hash) or (query.include_control and not has_records(placed)):
            sent.append(placed)
            continue
        placement = parse_placement(placed)
        if skipped and skipped[-1][1] == placement.first:
            skipped[-1] = (skipped[-1][0], placement.end)
        else:
            skipped.append((placement.first, placement.end))
    return sent, skipped
