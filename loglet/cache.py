"""The newest batches in memory, so that followers do not touch the disk.

Batches of the running commit are *pinned*: they are here and not yet on disk, so they must not be
evicted before the commit has ended: only `landed` evicts. With that, a reader that finds nothing
here finds what there is on disk: there is no moment in between at which a batch could be missed and
taken for a hole.

Batches of a loglet come in order of their offsets; a batch that fills a hole is not kept, and a
reader that meets its range while it is being committed is told of the hole and goes elsewhere.
Bounded by bytes over all loglets; the oldest goes first, whichever loglet it belongs to. What is
trimmed goes at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque

from loglet.store import PutBatch
from sharedlog.ids import LogletId, Offset

# A loglet's list is shortened once so many of its evicted entries lie in front.
_EVICTED_MAX = 64


class _Run:
    """Batches of one loglet, in order. Those before `head` were evicted."""

    __slots__ = ("batches", "ends", "head")

    def __init__(self) -> None:
        self.ends: list[Offset] = []
        self.batches: list[PutBatch | None] = []
        self.head = 0


class TailCache:
    """See the module's docstring."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._runs: dict[LogletId, _Run] = {}
        self._arrivals: deque[tuple[LogletId, int]] = deque()
        self._dropped: Counter[LogletId] = Counter()  # first arrivals of each that are gone already
        # Invariant: the arrivals of a loglet, less those that are gone, are its run from the head.

    @property
    def size_bytes(self) -> int:
        """What is held, pinned batches included."""
        return self._bytes

    def add(self, batch: PutBatch) -> None:
        """Keep a batch that is about to be committed, pinned until `landed`."""
        run = self._runs.get(batch.loglet)
        if run is None:
            run = self._runs[batch.loglet] = _Run()
        elif run.ends and batch.first < run.ends[-1]:
            return
        run.ends.append(batch.end)
        run.batches.append(batch)
        size = len(batch.placed)
        self._bytes += size
        self._arrivals.append((batch.loglet, size))

    def landed(self) -> None:
        """The commit has ended: what was pinned is on disk, and may be evicted."""
        while self._bytes > self._bytes_max:
            self._evict()

    def clear(self) -> None:
        """The commit has failed: forget everything."""
        self._runs.clear()
        self._arrivals.clear()
        self._dropped.clear()
        self._bytes = 0

    def read(self, loglet: LogletId, start: Offset, end: Offset, max_bytes: int) -> list[PutBatch]:
        """The batches from that which holds `start`, unbroken, that begin below `end`.

        At least one if `start` is here, further ones while their sizes stay within `max_bytes`.
        """
        found: list[PutBatch] = []
        run = self._runs.get(loglet)
        if run is None:
            return found
        position, size = start, 0
        for index in range(bisect_right(run.ends, start, run.head), len(run.ends)):
            batch = run.batches[index]
            assert batch is not None, "batches from the head on are there"
            size += len(batch.placed)
            if not batch.first <= position < end or (found and size > max_bytes):
                break
            found.append(batch)
            position = batch.end
        return found

    def newest(self, loglet: LogletId) -> PutBatch | None:
        """The last batch; None if none of the loglet is here."""
        run = self._runs.get(loglet)
        return None if run is None else run.batches[-1]

    def drop(self, loglet: LogletId, below: Offset) -> None:
        """Forget the batches that end at or below `below`: they were trimmed, and have landed."""
        run = self._runs.get(loglet)
        while run is not None and run.ends[run.head] <= below:
            batch = run.batches[run.head]
            assert batch is not None, "batches from the head on are there"
            self._bytes -= len(batch.placed)
            self._dropped[loglet] += 1
            run = self._behead(loglet, run)
        if 2 * self._dropped.total() > len(self._arrivals):
            self._forget_dropped()

    def _forget_dropped(self) -> None:
        """Let go of arrivals that are gone, before they are more than the others."""
        kept: deque[tuple[LogletId, int]] = deque()
        for loglet, size in self._arrivals:
            if self._dropped[loglet]:
                self._dropped[loglet] -= 1
            else:
                kept.append((loglet, size))
        self._arrivals = kept
        self._dropped.clear()

    def _evict(self) -> None:
        loglet, size = self._arrivals.popleft()
        if self._dropped[loglet]:
            self._dropped[loglet] -= 1
            return
        self._bytes -= size
        self._behead(loglet, self._runs[loglet])

    def _behead(self, loglet: LogletId, run: _Run) -> _Run | None:
        """Take a run's first batch away; returns the run if there are more."""
        run.batches[run.head] = None
        run.head += 1
        if run.head == len(run.ends):
            del self._runs[loglet]
            return None
        if run.head >= _EVICTED_MAX and 2 * run.head >= len(run.ends):
            del run.ends[: run.head]
            del run.batches[: run.head]
            run.head = 0
        return run
