"""How much of a log waits to be archived, by guess, and when that is enough."""

from __future__ import annotations

from node.archive.due import RECORD_BYTES_GUESS, Backlog
from sharedlog.ids import Offset


def _waiting(records: int) -> Backlog:
    backlog = Backlog(Offset(0), Offset(0))
    backlog.look(Offset(0), Offset(records), 1.0)
    return backlog


def test_nothing_is_known_at_first() -> None:
    """The size of a record is a constant then."""
    assert _waiting(10).bytes_guess == 10 * RECORD_BYTES_GUESS


def test_what_was_committed_tells_the_size_of_records() -> None:
    """So the first object of large records is not late."""
    backlog = _waiting(10)
    backlog.committed_mean(1_000.0)
    assert backlog.bytes_guess == 10_000
    assert backlog.is_due(object_bytes=10_000, after_s=300, now_s=1.0)
    backlog.committed_mean(None)
    assert backlog.bytes_guess == 10_000


def test_what_was_archived_tells_it_better() -> None:
    """It is of the latest records, not of all since the start."""
    backlog = _waiting(20)
    backlog.archived(10, 500)
    backlog.committed_mean(1_000.0)
    backlog.look(Offset(10), Offset(20), 2.0)
    assert backlog.bytes_guess == 500
