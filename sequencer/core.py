"""The order of one loglet: offsets, timestamps, acknowledgements and the committed tail.

Rules of this file: no I/O, no clock, no `async`. An event and the time come in, a list of effects
goes out, and the shell (`service.py`) carries them out in list order. Batches pass through as
opaque bytes.

Theory of operation. A batch that is admitted gets the next offsets at once and goes to every
replica whose stream is *in step*. A replica answers with ranges that it holds, fsynced. The
committed tail is the highest offset below which every batch is on a write quorum: since a log
server takes offset N only if it holds N-1 or knows it to be committed, a replica that acknowledged
up to N holds everything from the committed tail to N, so the committed tail is simply the highest
point that a write quorum's acknowledged ends have reached (`metadata/quorum.py`). Batches are
acknowledged to their callers in order, as the committed tail passes them.

A replica whose stream broke, or whose backlog is full, falls *out of step*: it is sent nothing, and
nothing is kept for it. It comes back into step by a *resume*: open the loglet (again), tell it the
committed tail, send every batch above it. What it missed below is a legal hole.

When any replica says SEALED, the loglet is over for this process: everything in flight ends as
indefinite, for a repair may yet make it part of the log, and no answer of a replica acknowledges
anything any more.

When the chain says where the segment ends, that is over too, but nothing is left unknown: an offset
of this loglet was only ever given to one batch, so what was in flight below the end is in the log,
and what was at or above it is not and never will be. (Not so if a part of the segment was given up
for lost: then the end proves nothing, and `moves.end_of` does not name it.)

Invariants (checked by `check_invariants`):
 1. An offset is given once: `next_offset` only grows, and the batches in flight tile
    [committed_tail, next_offset) without gap or overlap.
 2. `committed_tail` only grows, and never passes a batch that fewer than a write quorum hold.
 3. Timestamps never run backwards.
 4. Nothing is acknowledged after the loglet ended, but what the chain's end proves as it ends.

Deliberately not here: deduplication (`producers.py`), conditions and the log's state
(`admission.py`, `state.py`); a placement says where the state lies, and only passes through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from metadata.quorum import QuorumRule
from sharedlog.batch import KIND_RECORDS, BatchHeader, Placement, place_batch
from sharedlog.errors import AppendIndefinite, ProtocolError, SharedLogError
from sharedlog.ids import LogletId, Offset

_NO_STATE: Final = (Offset(0), Offset(0))


@dataclass(slots=True, eq=False)
class InFlight:
    """A batch that has offsets and is not yet committed. `ticket` is the shell's own."""

    first: Offset
    end: Offset
    timestamp_ms: int
    placed: bytes
    ticket: object


@dataclass(slots=True)
class StoreBatch:
    """Hand the batch to these replicas, after all that was handed to them before."""

    replicas: Sequence[int]
    batch: InFlight


@dataclass(slots=True)
class ResumeReplica:
    """Bring a replica into step: open, committed tail, then these batches, all in this order."""

    replica: int
    committed: Offset
    batches: Sequence[InFlight]


@dataclass(slots=True)
class Acknowledge:
    """These batches are committed, in order: answer their callers."""

    batches: Sequence[InFlight]


@dataclass(slots=True)
class PublishTail:
    """Tell the replicas in step the committed tail: with what follows, or alone (`link.py`)."""

    replicas: Sequence[int]
    committed: Offset


@dataclass(slots=True)
class FailAppends:
    """These batches end with this error: their outcome is unknown."""

    batches: Sequence[InFlight]
    error: AppendIndefinite


@dataclass(slots=True)
class DropAppends:
    """These batches are not in the log and never will be: they may be appended elsewhere."""

    batches: Sequence[InFlight]


Effect = StoreBatch | ResumeReplica | Acknowledge | PublishTail | FailAppends | DropAppends


class LogletSequencer:
    """See the module's docstring. Replicas are indexes into the segment's nodeset."""

    __slots__ = (
        *("_acked", "_in_flight", "_in_step", "_opened", "_steps", "base", "committed_tail"),
        *("ended", "last_timestamp_ms", "loglet", "next_offset", "rule"),
    )

    def __init__(
        self,
        loglet: LogletId,
        *,
        base: Offset,
        rule: QuorumRule,
        last_timestamp_ms: int = 0,
    ) -> None:
        assert rule.is_write_quorum(range(rule.replicas)), "no set of replicas commits anything"
        self.loglet = loglet
        self.base = base
        self.rule = rule
        self.next_offset = base
        self.committed_tail = base
        self.last_timestamp_ms = last_timestamp_ms
        self.ended: SharedLogError | None = None  # why this process orders the loglet no more
        self._in_flight: deque[InFlight] = deque()
        # Invariant: acked[r] <= next_offset; [committed_tail, acked[r]) is held by replica r,
        # fsynced.
        self._acked: list[Offset] = [base] * rule.replicas
        self._opened: list[bool] = [False] * rule.replicas  # it has said so, and never forgets
        self._in_step: list[bool] = [False] * rule.replicas
        self._steps: list[int] = []  # the indexes in step, kept because every append needs them

    @property
    def in_flight(self) -> int:
        """Batches that have offsets and are not committed."""
        return len(self._in_flight)

    @property
    def oldest(self) -> InFlight | None:
        """The batch in flight with the lowest offsets."""
        return self._in_flight[0] if self._in_flight else None

    @property
    def newest(self) -> InFlight | None:
        """The batch in flight with the highest offsets."""
        return self._in_flight[-1] if self._in_flight else None

    @property
    def all_in_step(self) -> bool:
        """Every replica is sent every batch."""
        return len(self._steps) == self.rule.replicas

    def in_step(self, replica: int) -> bool:
        """The replica is sent every batch."""
        return self._in_step[replica]

    def has_opened(self, replica: int) -> bool:
        """The replica has opened the loglet, which nobody but this process can have it do."""
        return self._opened[replica]

    def behind(self) -> list[int]:
        """Replicas that have not acknowledged the oldest batch in flight."""
        oldest = self.oldest
        if oldest is None:
            return []
        return [replica for replica, acked in enumerate(self._acked) if acked < oldest.end]

    def lagging(self) -> list[int]:
        """Replicas that are sent nothing and lack something that is committed.

        One in step that has yet to answer is on its way, within the bound of its link.
        """
        return [
            replica
            for replica, acked in enumerate(self._acked)
            if acked < self.committed_tail and not self._in_step[replica]
        ]

    def lacks(self, replica: int) -> int:
        """Committed records that the replica is not known to hold."""
        return max(0, self.committed_tail - self._acked[replica])

    def on_append(
        self,
        header: BatchHeader,
        batch: bytes,
        ticket: object,
        now_ms: int,
        *,
        kind: int = KIND_RECORDS,
        state: tuple[Offset, Offset] = _NO_STATE,
    ) -> list[Effect]:
        """Admit a batch that was checked: it gets its offsets and its timestamp.

        `state` is what its placement says of the log's state behind it.
        """
        assert self.ended is None, "an ended loglet admits nothing"
        first = self.next_offset
        end = Offset(first + header.record_count)
        self.last_timestamp_ms = max(self.last_timestamp_ms, now_ms)
        placement = Placement(
            self.loglet,
            first,
            header.record_count,
            self.last_timestamp_ms,
            self.committed_tail,
            header.crc32c,
            kind,
            *state,
        )
        placed = place_batch(placement, batch)
        entry = InFlight(first, end, self.last_timestamp_ms, placed, ticket)
        self._in_flight.append(entry)
        self.next_offset = end
        return [StoreBatch(self._steps, entry)]

    def on_stored(self, replica: int, first: Offset, end: Offset) -> list[Effect]:
        """The replica holds [first, end), fsynced, and said so before it was sealed.

        An empty range says that it has opened the loglet.

        Raises:
            ProtocolError: the range was never given out.
        """
        acked = self._acked[replica]
        if end > self.next_offset:
            raise ProtocolError(f"{self.loglet}: a replica holds {end - 1}, never given out")
        self._opened[replica] = True
        # A range that does not touch what is known of the replica proves nothing of what lies
        # between.
        if end <= acked or first > max(acked, self.committed_tail):
            return []
        self._acked[replica] = end
        if self.ended is not None:
            return []
        return self._advance()

    def on_ready(self, replica: int) -> list[Effect]:
        """The replica's stream is up and has room: bring it into step."""
        if self.ended is not None or self._in_step[replica]:
            return []
        self._set_step(replica, in_step=True)
        return [ResumeReplica(replica, self.committed_tail, list(self._in_flight))]

    def on_out_of_step(self, replica: int) -> None:
        """The replica's stream broke, it refused a store, or its backlog is full."""
        self._set_step(replica, in_step=False)

    def on_ended(self, reason: SharedLogError) -> list[Effect]:
        """A replica is sealed, or the loglet is another's: nothing is acknowledged any more."""
        if self.ended is not None:
            return []
        self.ended = reason
        batches = list(self._in_flight)
        self._in_flight.clear()
        message = f"the append was in flight when the log's segment ended: {reason}"
        return [FailAppends(batches, AppendIndefinite(message))] if batches else []

    def on_closed(self, end: Offset, reason: SharedLogError) -> list[Effect]:
        """The chain says that the segment ends at `end`: every outcome is known now."""
        if self.ended is not None:
            return []
        self.ended = reason
        below = [batch for batch in self._in_flight if batch.end <= end]
        above = [batch for batch in self._in_flight if batch.first >= end]
        astride = [batch for batch in self._in_flight if batch.first < end < batch.end]
        self._in_flight.clear()
        effects: list[Effect] = []
        if below:
            effects.append(Acknowledge(below))
        if astride:  # no segment ends within a batch; should one all the same, nothing is proved
            message = f"the log's segment ends at {end}, within the batch"
            effects.append(FailAppends(astride, AppendIndefinite(message)))
        if above:
            effects.append(DropAppends(above))
        return effects

    def _advance(self) -> list[Effect]:
        tail = self.rule.committed_tail(self._acked)
        if tail <= self.committed_tail:
            return []
        self.committed_tail = tail
        done: list[InFlight] = []
        while self._in_flight and self._in_flight[0].end <= tail:
            done.append(self._in_flight.popleft())
        assert done, "the committed tail moves by whole batches"
        return [Acknowledge(done), PublishTail(self._steps, self.committed_tail)]

    def _set_step(self, replica: int, *, in_step: bool) -> None:
        self._in_step[replica] = in_step
        # A new list: effects hold on to the old one.
        self._steps = [index for index, value in enumerate(self._in_step) if value]

    def check_invariants(self) -> None:
        """Assert what the module's docstring promises. For tests: it walks everything."""
        assert self.base <= self.committed_tail <= self.next_offset
        if self.ended is None:
            edges = [self.committed_tail, *(batch.end for batch in self._in_flight)]
            starts = [batch.first for batch in self._in_flight]
            assert edges[:-1] == starts, "batches in flight must tile"
            assert edges[-1] == self.next_offset, "batches in flight must reach the next offset"
        holders = {it for it, acked in enumerate(self._acked) if acked >= self.committed_tail}
        assert self.committed_tail == self.base or self.rule.is_write_quorum(holders)
        times = [batch.timestamp_ms for batch in self._in_flight]
        assert all(a <= b for a, b in pairwise(times)), "timestamps run backwards"
        assert not times or times[-1] <= self.last_timestamp_ms
