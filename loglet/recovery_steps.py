"""What an attempt at ending a segment may have to do next; see `recovery.py`, which decides it.

Servers are numbers, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loglet.ranges import Range
from metadata.records import Replica
from sharedlog.errors import LogUnavailable
from sharedlog.ids import Offset


@dataclass(frozen=True, slots=True)
class AwaitAnswers:
    """Nothing to do before something is heard.

    `spare`: what was heard suffices, if with copying; more answers may spare that, so wait for them
    for a moment, then say `on_grace_over`.
    """

    spare: bool


@dataclass(frozen=True, slots=True)
class SealReplacements:
    """Seal the loglet at these servers, which never heard of it; once told, the same until then."""

    servers: Sequence[int]


@dataclass(frozen=True, slots=True)
class CopyRange:
    """Read [first, end) from the first of `sources` and store it at `targets`, in order.

    Part of it may be done: the step after says what is left. `committed_tail` goes with the stores.
    """

    first: Offset
    end: Offset
    sources: Sequence[int]
    targets: Sequence[int]
    committed_tail: Offset


@dataclass(frozen=True, slots=True)
class EndSegment:
    """All is durable: the segment may end at `end`, by compare-and-swap."""

    end: Offset
    committed_tail: Offset
    last_timestamp_ms: int  # no record below `end` has a later one
    nodeset: tuple[Replica, ...]  # the segment's own, or with replacements
    repaired_records: int


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """This attempt ends nothing. With `leave_out`, begin another without these at once."""

    error: LogUnavailable
    leave_out: frozenset[int] = frozenset()
    # What nobody who answered can give back, to be accepted as lost if that is to stay so.
    gone: tuple[Range, ...] = ()


Step = AwaitAnswers | SealReplacements | CopyRange | EndSegment | StopAttempt
