"""Which batches of which producer are in the log already: what makes a repetition harmless.

Rules of this file: no I/O, no clock, no `async`. The shell (`service.py`, `opening.py`) asks before
it admits a batch, and tells what it admitted and what it has found in the log.

**Theory of operation.** An appender is a *producer*: a random id, and a sequence number for each of
its records; a batch has that of its first, and keeps it however often it is sent. It sends them
over *sessions*, one at a time. A session that is lost leaves batches behind whose outcome the
client does not know; the next session carries those again, first and in order. So a session says
with which sequence it begins and, if it repeats anything, from which offset on an earlier copy
could lie (`resolve_from`).

The table keeps, for each producer that it has seen, the batches that this loglet was given by it,
the newest few, and says of a batch whether it is one of those. What it does not know it asks for:
`open` answers with a range of the log to be searched, and nothing of the session may be admitted
before that was done and told to `on_found`. A new sequencer's table is empty, and the range is what
precedes its segment; an old one's needs no search unless it has forgotten something.

**What is known, and from where on.** Within a loglet this process alone gives out offsets, so it
has seen every batch at or above the loglet's base. Forgetting is what moves the border up:
 - A producer's `complete_from`: all of its batches in the log at or above this offset that are in
   its epoch and not below `lowest` are remembered. It rises to the end of each batch that is
   forgotten because too many are remembered, and falls to where a search began once that has met
   it.
 - The table's `horizon`: the same of producers that it has no entry for. It starts at the loglet's
   base and rises to the end of the last batch of each producer that is forgotten as a whole. It is
   the `complete_from` of a producer that comes anew.
 - `lowest`: the sequence with which the producer's latest session began. Those before it have an
   outcome that the client knows, so they are never asked for again.

Nothing here trusts a client's claim that it repeats nothing for longer than that session.

**Order.** Within a session sequences are consecutive, and after a batch that was refused all others
are refused: a batch must not overtake the one before it. Hence of a producer's batches that any one
session began with, those in the log are the first so many, and a batch that is new is newer than
every one that is remembered.

Invariants (checked by `check_invariants`, and against a plain model by the tests):
 1. A batch that is in the log, at or above its producer's `complete_from` and not below `lowest`,
    is never taken for a new one.
 2. At most one session of a producer is admitted from: the one that opened last (`session`), and it
    is never one of an older epoch.
 3. Remembered batches have rising sequences and rising offsets. There are at most `remembered_max`
    after each that is admitted, and before that as many more as a search has found.
 4. A producer with a session is never forgotten; those without one are at most
    `IdleProducers.producers_max` in the whole process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from sharedlog.batch import BatchProducer, Placement
from sharedlog.errors import InvalidArgument, LogUnavailable, ProducerFenced, SequenceGap
from sharedlog.ids import Offset

REMEMBERED_MAX: Final = 64
"""Batches of one producer that are remembered, and that one session may have unanswered."""

FOUND_MAX: Final = 16_384
"""Batches that one search may find: more than any client of ours has unanswered."""


class Remembered(NamedTuple):
    """Where a batch lies: offsets [first, end), and its time."""

    first: Offset
    end: Offset
    timestamp_ms: int


class ProducerOpen(NamedTuple):
    """What a session says of its producer when it opens; see `AppendSessionOpen`."""

    producer_id: int
    epoch: int = 0
    next_sequence: int = 0
    unresolved: bool = False
    resolve_from: Offset = Offset(0)


class Search(NamedTuple):
    """Search [start, end) of the log for the producer's batches."""

    start: Offset
    end: Offset


@dataclass(slots=True, eq=False)
class ProducerSession:
    """One session of a producer; `owner` is the shell's own."""

    producer_id: int
    epoch: int
    expected: int  # sequence of the next batch's first record
    owner: object = None
    refused: bool = False  # a batch was refused, and so is all that follows


class Opened(NamedTuple):
    """A session was opened. It may be admitted from once the search, if any, is done."""

    session: ProducerSession
    shut_out: ProducerSession | None  # the session that had the producer until now
    search: Search | None


@dataclass(slots=True, eq=False)
class _Found:
    """A search that has begun: [start, up_to) was seen."""

    start: Offset
    up_to: Offset
    batches: dict[int, Remembered] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Producer:
    epoch: int
    lowest: int
    complete_from: Offset
    last_end: Offset  # end of its last batch in this loglet; the horizon when it came, if none
    session: ProducerSession | None = None
    batches: dict[int, Remembered] = field(default_factory=dict)  # by sequence, in order
    last_sequence: int = -1  # of the last of `batches`, whether remembered still or not
    found: _Found | None = None


class IdleProducers:
    """Producers without a session, of all tables of a process: the longest idle is forgotten."""

    __slots__ = ("_idle", "producers_max")

    def __init__(self, producers_max: int) -> None:
        assert producers_max > 0
        self.producers_max = producers_max
        # Invariant: at most producers_max of them; each is in its table, and has no session.
        self._idle: OrderedDict[tuple[ProducerTable, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._idle)

    def add(self, table: ProducerTable, producer_id: int) -> None:
        """A producer has lost its session."""
        self._idle[table, producer_id] = None
        while len(self._idle) > self.producers_max:
            (oldest, oldest_id), _ = self._idle.popitem(last=False)
            oldest.forget(oldest_id)

    def remove(self, table: ProducerTable, producer_id: int) -> None:
        """It has a session again, or its table is no more."""
        self._idle.pop((table, producer_id), None)


class ProducerTable:
    """The producers of one loglet. See the module's docstring."""

    __slots__ = ("_idle", "_over", "_producers", "_remembered_max", "horizon")

    def __init__(
        self, base: Offset, idle: IdleProducers, *, remembered_max: int = REMEMBERED_MAX
    ) -> None:
        assert remembered_max > 0
        self.horizon = base
        self._idle = idle
        self._remembered_max = remembered_max
        self._producers: dict[int, _Producer] = {}
        self._over = False

    def __len__(self) -> int:
        return len(self._producers)

    def open(self, opening: ProducerOpen, next_offset: Offset) -> Opened:
        """Give the producer to a new session; what it had before is shut out from now on.

        Raises:
            ProducerFenced: a newer epoch was seen, or a later session has already gone beyond.
        """
        producer = self._at_epoch(opening)
        if opening.next_sequence < producer.lowest:
            raise ProducerFenced(
                f"producer {opening.producer_id:016x} has had a session since that began with "
                f"batch {producer.lowest}; this one begins with {opening.next_sequence}"
            )
        if producer.session is None:
            self._idle.remove(self, opening.producer_id)
        shut_out = producer.session
        session = ProducerSession(opening.producer_id, opening.epoch, opening.next_sequence)
        producer.session = session
        _forget_below(producer, opening.next_sequence)
        search = _search(producer, opening, next_offset) if opening.unresolved else None
        if search is None:
            producer.found = None  # what an earlier session had begun is not needed
        return Opened(session, shut_out, search)

    def on_found(
        self,
        session: ProducerSession,
        found: Iterable[tuple[Placement, BatchProducer]],
        up_to: Offset,
    ) -> None:
        """The session's search has gone on to `up_to`, exclusive, and met these batches of anyone.

        Raises:
            ProducerFenced: another session has the producer now, or a newer epoch wrote.
            LogUnavailable: far more was found than a client can have unanswered.
        """
        producer = self._owned(session)
        search = producer.found
        assert search is not None, "nothing is being searched for"
        assert up_to >= search.up_to, "a search only goes on"
        for placement, by in found:
            if by.producer_id != session.producer_id or by.epoch < session.epoch:
                continue
            if by.epoch > session.epoch:
                raise ProducerFenced(f"epoch {by.epoch} of the producer has written since")
            if by.sequence >= producer.lowest:
                place = Remembered(placement.first, placement.end, placement.timestamp_ms)
                search.batches.setdefault(by.sequence, place)
        if len(search.batches) > FOUND_MAX:
            raise LogUnavailable(f"more than {FOUND_MAX:,} unanswered batches of one producer")
        search.up_to = up_to
        if up_to >= producer.complete_from:
            producer.complete_from = search.start
            producer.batches = search.batches | producer.batches
            producer.last_sequence = max(producer.last_sequence, *producer.batches, -1)
            producer.found = None

    def is_known(self, session: ProducerSession) -> bool:
        """Nothing is left to be searched: batches of the session may be checked."""
        producer = self._producers.get(session.producer_id)
        return producer is not None and producer.session is session and producer.found is None

    def check(self, session: ProducerSession, by: BatchProducer) -> Remembered | None:
        """Where the batch lies already, or None if it is new: then admit it, and say `admitted`.

        Raises:
            ProducerFenced: another session has the producer now.
            InvalidArgument: the batch is another producer's.
            SequenceGap: the batch is not the next one, or one before it was refused.
        """
        producer = self._producers.get(session.producer_id)
        if producer is None or producer.session is not session:
            raise ProducerFenced(f"producer {session.producer_id:016x} has opened a newer session")
        if session.refused:
            raise SequenceGap("a batch before it in the session was refused")
        if by.producer_id != session.producer_id or by.epoch != session.epoch:
            raise InvalidArgument("the batch is not of the session's producer and epoch")
        sequence = by.sequence
        if sequence != session.expected:
            raise SequenceGap(f"batch {sequence} came where {session.expected} was to come")
        place = producer.batches.get(sequence)
        if place is not None:
            session.expected = sequence + place.end - place.first
        elif sequence <= producer.last_sequence:
            raise SequenceGap(
                f"batch {sequence} is not in the log, but {producer.last_sequence} is"
            )
        return place

    def admitted(
        self, session: ProducerSession, first: Offset, end: Offset, timestamp_ms: int
    ) -> None:
        """The new batch that was checked last has these offsets."""
        producer = self._producers[session.producer_id]
        assert producer.session is session, "checked before"
        sequence = session.expected
        assert sequence > producer.last_sequence, "checked before"
        session.expected = sequence + end - first
        producer.last_sequence = sequence
        producer.last_end = end
        batches = producer.batches
        batches[sequence] = Remembered(first, end, timestamp_ms)
        while len(batches) > self._remembered_max:
            oldest = batches.pop(next(iter(batches)))
            producer.complete_from = max(producer.complete_from, oldest.end)

    def close(self, session: ProducerSession, *, settled: bool) -> None:
        """The session is over; `settled` if its client was sent every result and had ended."""
        producer = self._producers.get(session.producer_id)
        if producer is None or producer.session is not session:
            return
        producer.session = None
        if settled:
            producer.batches.clear()
            producer.found = None
            producer.complete_from = max(producer.complete_from, producer.last_end)
        if not self._over:
            self._idle.add(self, session.producer_id)

    def forget(self, producer_id: int) -> None:
        """Forget a producer that has no session."""
        producer = self._producers.pop(producer_id)
        assert producer.session is None, "its session would not be shut out by the next one"
        self.horizon = max(self.horizon, producer.last_end)

    def in_session(self) -> set[int]:
        """Ids of the producers that have a session."""
        return {it for it, producer in self._producers.items() if producer.session is not None}

    def drop_all(self) -> None:
        """The loglet is over: nothing more is asked but by sessions that are about to end."""
        self._over = True
        for producer_id in self._producers:
            self._idle.remove(self, producer_id)

    def _at_epoch(self, opening: ProducerOpen) -> _Producer:
        """The producer, made anew if it is not known, or not by this epoch."""
        producer = self._producers.get(opening.producer_id)
        if producer is None:
            producer = _Producer(opening.epoch, 0, self.horizon, self.horizon)
            self._producers[opening.producer_id] = producer
        elif opening.epoch < producer.epoch:
            raise ProducerFenced(f"epoch {producer.epoch} of the producer is known")
        elif opening.epoch > producer.epoch:
            # Nothing of the new epoch was admitted here: what there is lies below the base, or the
            # producer was forgotten with it.
            producer.epoch = opening.epoch
            producer.lowest, producer.last_sequence = 0, -1
            producer.batches, producer.found = {}, None
        return producer

    def _owned(self, session: ProducerSession) -> _Producer:
        producer = self._producers.get(session.producer_id)
        if producer is None or producer.session is not session:
            raise ProducerFenced(f"producer {session.producer_id:016x} has opened a newer session")
        return producer

    def check_invariants(self) -> None:
        """Assert what the module's docstring promises. For tests: it walks everything."""
        assert len(self._idle) <= self._idle.producers_max
        for producer in self._producers.values():
            places = list(producer.batches.items())
            for (sequence, place), (following, after) in pairwise(places):
                assert sequence < following, "sequences rise"
                assert place.end <= after.first, "offsets rise"
            assert all(it >= producer.lowest for it in producer.batches)
            assert not places or places[-1][0] <= producer.last_sequence
            assert len(places) <= self._remembered_max + FOUND_MAX
            session = producer.session
            assert session is None or session.epoch == producer.epoch


def _forget_below(producer: _Producer, sequence: int) -> None:
    """The client knows the outcome of all batches before this one."""
    producer.lowest = sequence
    for batches in (producer.batches, producer.found.batches if producer.found else {}):
        for known in [it for it in batches if it < sequence]:
            del batches[known]


def _search(producer: _Producer, opening: ProducerOpen, next_offset: Offset) -> Search | None:
    """What must be searched; what an earlier session's search has seen is not searched again."""
    end = min(next_offset, producer.complete_from)
    if opening.resolve_from >= end:
        return None
    found = producer.found
    if found is None or not found.start <= opening.resolve_from <= found.up_to:
        found = producer.found = _Found(opening.resolve_from, opening.resolve_from)
    return Search(found.up_to, end)
