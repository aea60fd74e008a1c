"""What the controller has found complete, so that it is not looked at again and again.

A cluster has far more closed segments than anybody can look at in a minute, and nearly all of them
are complete and stay so. Each is remembered with the nodeset that it had when it was looked at, and
with those replicas that could not be asked then: it is due again when its nodeset has changed or
one of those is back. In memory only; a new controller looks at everything once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from metadata.records import LogRecord, Replica, Segment
from node.controller.backfill import Mended
from node.coverage import Range
from sharedlog.ids import LogId, LogletId, NodeId, Offset

_NOBODY: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class _Seen:
    nodeset: tuple[Replica, ...]
    absent: frozenset[NodeId]  # could not be asked; the others hold all that is wanted


class Ledger:
    """See the module's docstring. Pure."""

    def __init__(self) -> None:
        # By log, since chains are long and logs go as a whole; by segment index.
        self._closed: dict[LogId, dict[int, _Seen]] = {}
        self._open: dict[LogletId, Offset] = {}  # complete below it, on all replicas
        self._nobody: dict[LogId, dict[int, tuple[Range, ...]]] = {}
        self._incomplete: dict[LogletId, int] = {}  # copies of records that each lacks
        self._lacking_records = 0  # Invariant: the sum of those

    def is_due(
        self, record: LogRecord, segment: Segment, is_back: Callable[[Replica], bool]
    ) -> bool:
        """A closed segment should be looked at; `is_back` says whether a replica can be asked."""
        seen = self._closed.get(record.log_id, {}).get(segment.index)
        if seen is None or seen.nodeset != segment.nodeset:
            return True
        return bool(seen.absent) and any(
            replica.node_id in seen.absent and is_back(replica) for replica in segment.nodeset
        )

    def on_mended(self, record: LogRecord, segment: Segment, mended: Mended) -> None:
        """A segment was looked at. One whose copying failed stays due."""
        if segment.end is None:
            if mended.complete:
                self._open[record.loglet(segment)] = mended.upto
            return
        self._open.pop(record.loglet(segment), None)
        self._note_loss(record.log_id, segment.index, () if mended.away else mended.nobody)
        loglet = record.loglet(segment)
        self._lacking_records -= self._incomplete.pop(loglet, 0)
        if not mended.complete:
            self._incomplete[loglet] = mended.lacking
            self._lacking_records += mended.lacking
        absent = frozenset((*mended.away, *mended.lost))
        if not mended.errors and (mended.complete or absent or mended.nobody):
            seen = _Seen(segment.nodeset, absent or _NOBODY)
            self._closed.setdefault(record.log_id, {})[segment.index] = seen

    def _note_loss(self, log_id: LogId, index: int, nobody: tuple[Range, ...]) -> None:
        lost = self._nobody.setdefault(log_id, {})
        lost.pop(index, None)
        if nobody:
            lost[index] = nobody
        if not lost:
            del self._nobody[log_id]

    def open_upto(self, loglet: LogletId) -> Offset | None:
        """Below which offset an open segment was found complete on all replicas."""
        return self._open.get(loglet)

    def losses(self, limit: int) -> list[tuple[LogId, dict[int, tuple[Range, ...]]]]:
        """Logs of which no replica that was asked had some ranges, by segment; not to be changed.

        While one of a segment's replicas is away nothing is said of it: that one may have them.
        """
        return list(islice(self._nobody.items(), limit))

    @property
    def lacking(self) -> int:
        """Closed segments of which some replica, when last looked at, lacked something."""
        return len(self._incomplete)

    @property
    def lacking_records(self) -> int:
        """Copies of records that those lacked, or that nobody answered for."""
        return self._lacking_records

    def forget_all(self) -> None:
        """Everything is due again."""
        self._closed.clear()
        self._open.clear()
        self._nobody.clear()
        self._incomplete.clear()
        self._lacking_records = 0
