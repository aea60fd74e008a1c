"""What a log's sequencer keeps beyond its order: the fencing token, and the named producers.

Rules of this file: no I/O, no clock, no `async`. The shell asks before it admits, tells what it
admitted, and writes the control batches that are asked for here.

**Theory of operation.** The state lies in the log. A *control batch* (`sharedlog/control.py`) holds
all of it, as of its own offset, and is written when the fencing token is set, when a named producer
begins a new life, and as a *checkpoint*. Between control batches only one thing changes the state:
a batch of a named producer moves that producer's next sequence, which the batch's fixed header
tells. So the state behind any batch is the last control batch and the headers of what follows it.

Where that is, each batch says itself: its placement names `[state_from, state_until)`, the offset
of the last control batch and the end of the last batch that changed the state. A sequencer that
takes over reads the last batch of the log, that control batch, and the headers up to `state_until`:
three short reads, wherever in the chain they lie. Nobody has to look for anything.

**Bounded.** A batch of a named producer that would have more than `BATCHES_MAX` batches, or
`BYTES_MAX` bytes, read to get at it has a checkpoint written in front. What lies behind
`state_until` is not read, so a log whose state rests can grow without any checkpoint. After a
takeover nobody knows how much that was, so the first session of a named producer writes a control
batch in any case. A log that was restored or forked has its state in the archive at first: the
first batch of all has a checkpoint written in front (`is_archived`), so that from then on a
takeover has all that it needs from log servers.

**Named producers.** The name decides the id. A life of a producer has an epoch, one more than the
life before; it is in the log before the life may append. An append of an older epoch is refused,
by this sequencer and by each later one. Sequences go on over all lives, counted in records, so a
new life is told where the last one stopped. A producer that has written nothing for
`expiry_s`, by the log's timestamps, is forgotten with the next control batch, and so is the longest
idle one when there are more than `NAMED_PRODUCERS_MAX`; one that has a session is not. A new life
of it begins anew, at sequence 0, but with an epoch above that of any that was forgotten: so the
life before, which may not be at its end, is refused all the same.

Invariants:
 1. What `on_recovered` makes of [state_from, state_until) equals the state that placed the batch.
 2. Behind every batch, [state_from, state_until) has at most `BATCHES_MAX` batches and
    `BYTES_MAX` bytes, and one batch more.
 3. A producer's epoch and next sequence never fall while it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from sharedlog.batch import KIND_RECORDS, BatchProducer, Placement
from sharedlog.control import producer_id_of
from sharedlog.errors import FencingTokenMismatch, Overloaded, ProducerFenced
from sharedlog.ids import Offset
from sharedlog.limits import MIB, NAMED_PRODUCERS_MAX
from sharedlog.v1 import control_pb2

BATCHES_MAX: Final = 1_024
"""Batches whose headers a takeover reads to know the state."""

BYTES_MAX: Final = 16 * MIB
"""Bytes of those batches: the log servers verify them as a whole."""

FENCE: Final = control_pb2.LogState.CAUSE_FENCE
PRODUCER: Final = control_pb2.LogState.CAUSE_PRODUCER
CHECKPOINT: Final = control_pb2.LogState.CAUSE_CHECKPOINT

_FULL_RETRY_S: Final = 1.0

Cause: TypeAlias = control_pb2.LogState.Cause.ValueType

Busy = Callable[[], Collection[int]]
"""Ids of the producers that have a session: they are not forgotten."""


class StateRange(NamedTuple):
    """Where the log's state is to be had: the control batch at `start`, and what is below `until`.

    Empty if nobody has set anything yet.
    """

    start: Offset
    until: Offset  # exclusive


NO_STATE: Final = StateRange(Offset(0), Offset(0))


@dataclass(slots=True)
class NamedProducer:
    """A producer that keeps its place over its own restarts."""

    name: str
    epoch: int
    next_sequence: int  # of its next record
    last_ms: int  # of its last batch, or of the beginning of its life; the log's time


class Life(NamedTuple):
    """A life of a named producer, as a session is to use it."""

    producer_id: int
    epoch: int
    next_sequence: int
    is_new: bool  # a control batch has to say so before anything else of it


class LogState:
    """The state of one log. See the module's docstring."""

    __slots__ = (
        *("_batches", "_bytes", "_counted", "_expiry_ms", "_forgotten_epoch", "_producers"),
        *("is_archived", "last_ms", "range", "token"),
    )

    def __init__(self, *, expiry_s: float) -> None:
        self.token = ""
        self.range = NO_STATE
        self.is_archived = False  # the control batch at `range.start` is in no log server
        self.last_ms = 0  # timestamp of the log's last batch when the state was taken over
        self._expiry_ms = int(expiry_s * 1_000)
        # By id, the longest idle first.
        self._producers: dict[int, NamedProducer] = {}
        self._forgotten_epoch = 0  # the highest of those that are not remembered
        # What lies in the log from `range.start` on, if all of it was counted.
        self._batches = 0
        self._bytes = 0
        self._counted = True

    def __len__(self) -> int:
        return len(self._producers)

    def producer(self, name: str) -> NamedProducer | None:
        """What is known of a named producer; not to be changed."""
        return self._producers.get(producer_id_of(name))

    @property
    def is_counted(self) -> bool:
        """How much lies behind the last control batch is known."""
        return self._counted

    def is_named(self, producer_id: int) -> bool:
        """The id is that of a named producer of the log."""
        return producer_id in self._producers

    def check_token(self, given: str) -> None:
        """Raise `FencingTokenMismatch` unless this is the log's token."""
        if given != self.token:
            raise FencingTokenMismatch(given=given, current=self.token)

    # Named producers.

    def begin_life(self, name: str, busy: Busy, now_ms: int) -> Life:
        """A new life, to be said by a control batch before it appends anything.

        Raises:
            Overloaded: as many producers as a log can have are at work.
        """
        known = self.producer(name)
        if known is None:
            return self._put(NamedProducer(name, self._forgotten_epoch + 1, 0, now_ms), busy)
        epoch, last_ms = known.epoch + 1, max(known.last_ms, now_ms)
        return self._put(NamedProducer(name, epoch, known.next_sequence, last_ms), busy)

    def go_on(self, name: str, epoch: int, next_sequence: int, busy: Busy, now_ms: int) -> Life:
        """A further session of the life `epoch`, which must be said again if it was forgotten.

        Raises:
            ProducerFenced: a newer life has begun. Overloaded: as for `begin_life`.
        """
        known = self.producer(name)
        if known is None or known.epoch < epoch:
            return self._put(NamedProducer(name, epoch, next_sequence, now_ms), busy)
        if known.epoch > epoch:
            raise ProducerFenced(
                f"life {known.epoch} of producer {name!r} has begun; this is life {epoch}",
                life=known.epoch,
            )
        return Life(producer_id_of(name), epoch, next_sequence, is_new=False)

    def _put(self, producer: NamedProducer, busy: Busy) -> Life:
        """Remember the producer as the latest; the longest idle one may have to go."""
        producer_id = producer_id_of(producer.name)
        known = self._producers.pop(producer_id, None)
        if known is None and len(self._producers) >= NAMED_PRODUCERS_MAX:
            at_work = busy()
            idle = next((it for it in self._producers if it not in at_work), None)
            if idle is None:
                raise Overloaded(
                    f"{NAMED_PRODUCERS_MAX} named producers are at work on the log; it takes no "
                    "more",
                    retry_after_s=_FULL_RETRY_S,
                )
            self._forget(idle)
        assert known is None or known.epoch < producer.epoch, "epochs rise"
        self._producers[producer_id] = producer
        return Life(producer_id, producer.epoch, producer.next_sequence, is_new=True)

    def _forget(self, producer_id: int) -> None:
        epoch = self._producers.pop(producer_id).epoch
        self._forgotten_epoch = max(self._forgotten_epoch, epoch)

    # What is written.

    def needs_checkpoint(self, by: BatchProducer, size: int) -> bool:
        """The batch changes the state, and lies too far from the last control batch.

        Or nobody but the archive has that one.
        """
        if self.is_archived:
            return True
        if by.producer_id not in self._producers:
            return False
        far = self._batches >= BATCHES_MAX or self._bytes + size > BYTES_MAX
        return far or not self._counted

    def message(self, cause: Cause, busy: Busy, now_ms: int) -> control_pb2.LogState:
        """What a control batch that is placed now holds. Forgets the producers that are expired."""
        oldest_ms = now_ms - self._expiry_ms
        expired = [it for it, known in self._producers.items() if known.last_ms < oldest_ms]
        if expired:
            at_work = busy()
            for producer_id in expired:
                if producer_id not in at_work:
                    self._forget(producer_id)
        producers = [
            control_pb2.NamedProducer(
                name=known.name,
                epoch=known.epoch,
                next_sequence=known.next_sequence,
                last_ms=known.last_ms,
            )
            for known in self._producers.values()
        ]
        return control_pb2.LogState(
            cause=cause,
            fencing_token=self.token,
            producers=producers,
            forgotten_epoch=self._forgotten_epoch,
        )

    def on_control(self, first: Offset, end: Offset, size: int) -> None:
        """A control batch with `message` is placed at [first, end)."""
        self.range = StateRange(first, end)
        self._batches, self._bytes, self._counted = 1, size, True
        self.is_archived = False

    def on_records(
        self, by: BatchProducer, first: Offset, end: Offset, size: int, now_ms: int
    ) -> None:
        """A batch of records is placed at [first, end)."""
        self._batches += 1
        self._bytes += size
        if self._producers and by.producer_id in self._producers:
            self._moved(by, first, end, now_ms)
            self.range = StateRange(self.range.start, end)

    def _moved(self, by: BatchProducer, first: Offset, end: Offset, at_ms: int) -> None:
        known = self._producers.pop(by.producer_id)
        if by.epoch == known.epoch:
            known.next_sequence = max(known.next_sequence, by.sequence + end - first)
            known.last_ms = max(known.last_ms, at_ms)
        self._producers[by.producer_id] = known

    # Taking over.

    def on_recovered(
        self,
        found: StateRange,
        control: control_pb2.LogState,
        batches: Iterable[tuple[Placement, BatchProducer]],
    ) -> None:
        """Become the state behind a log's last batch, whose placement says `found`.

        `control` is what the control batch at `found.start` holds, and `batches` are those behind
        it and below `found.until`. How much lies behind that nobody has counted.
        """
        assert self.range == NO_STATE, "only a new state takes over"
        self.range = found
        self._counted = False
        self.token = control.fencing_token
        self._forgotten_epoch = control.forgotten_epoch
        for known in control.producers:
            self._producers[producer_id_of(known.name)] = NamedProducer(
                known.name, known.epoch, known.next_sequence, known.last_ms
            )
        for placement, by in batches:
            if placement.kind == KIND_RECORDS and by.producer_id in self._producers:
                self._moved(by, placement.first, placement.end, placement.timestamp_ms)
