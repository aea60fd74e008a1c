"""Admits batches, or refuses them: repetitions, conditions, the log's state, in this order.

All of it is one step of the event loop, so that nothing comes between the check and the offsets.

**Order.** A batch that is in the log already is answered with its place, whatever it depends on: it
held when the batch was admitted. Only of a new one are the conditions looked at, against what was
admitted before it, committed or not.

**A condition that fails** is told as a definite failure, and rests on two things. What was admitted
before must be committed, or the tail and the token that are told might never have been. And this
process must still be the one that orders the log: an older one could tell of a tail that was passed
long ago. So the refusal leaves when the batch before it is committed, and a find-tail round that
began after the batch came was confirmed by a write quorum (DESIGN.md §4). If the log moves before
that, the batch was never admitted here, and is judged again where the log has gone.

**Checkpoints** (`state.py`) are put in front of the batch that needs one, but behind one that must
get a certain offset.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from sequencer.core import InFlight
from sequencer.loglets import ActiveLoglet, Ticket, Timed, is_of
from sequencer.metrics import SequencerMetrics
from sequencer.producers import ProducerSession, Remembered
from sequencer.replication import Replication
from sequencer.session import AppendSession
from sequencer.state import CHECKPOINT, FENCE, PRODUCER, Cause
from sequencer.watch import Watch
from sharedlog.batch import (
    KIND_CONTROL,
    NO_PRODUCER,
    BatchHeader,
    BatchProducer,
    check_batch,
    parse_batch_header,
)
from sharedlog.clock import Clock
from sharedlog.control import check_fencing_token, encode_control
from sharedlog.errors import (
    ConditionFailed,
    InvalidArgument,
    OffsetMismatch,
    SequenceGap,
    SharedLogError,
)
from sharedlog.ids import Offset
from sharedlog.rpc.session_request import SessionRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What an append depends on, and what it sets."""

    match_offset: Offset | None = None
    """The offset that its first record must get."""
    fencing_token: str | None = None
    """The fencing token that the log must have; "" is none."""
    set_token: str | None = None
    """The log's fencing token from then on: a control batch is written instead of the batch."""


NO_CONDITIONS: Final = Conditions()


def conditions_of(request: SessionRequest) -> Conditions:
    """What the batch of a session's message depends on."""
    match, token = request.match_offset, request.fencing_token
    set_token = request.set_fencing_token
    if match is None and token is None and set_token is None:
        return NO_CONDITIONS
    return Conditions(
        match_offset=None if match is None else Offset(match),
        fencing_token=token,
        set_token=set_token,
    )


@dataclass(slots=True, eq=False)
class PlainSender:
    """Who appends without a producer: a session, or one call."""

    refused: bool = False  # a batch was refused, and so is all that follows


Sender = ProducerSession | PlainSender


class Refusal:
    """A failed condition that is to be told: a `Ticket` of the batch that it rests on."""

    __slots__ = ("_error", "_over", "_resting_on", "tail", "ticket")

    def __init__(
        self, ticket: Ticket, error: ConditionFailed, tail: asyncio.Future[Offset]
    ) -> None:
        self.ticket = ticket
        self.tail = tail
        self._error = error
        self._resting_on = 1  # the round; and the batch, if one is in flight
        self._over = False

    def rest_on_batch(self) -> None:
        """It is not told before `committed` was called, too."""
        self._resting_on += 1

    def on_tail(self, _: asyncio.Future[Offset]) -> None:
        """The round is over, well or not."""
        if self.tail.cancelled() or self.tail.exception() is not None:
            self.dropped()
        else:
            self._stands()

    def committed(self, batch: InFlight | Remembered) -> None:
        """See `Ticket`."""
        del batch
        self._stands()

    def failed(self, error: SharedLogError) -> None:
        """See `Ticket`: nobody knows whether the batch before is in the log."""
        del error
        self.dropped()

    def dropped(self) -> None:
        """See `Ticket`."""
        if not self._over:
            self._over = True
            self.ticket.dropped()

    def _stands(self) -> None:
        self._resting_on -= 1
        if self._resting_on == 0 and not self._over:
            self._over = True
            self.ticket.failed(self._error)


class _Unheard:
    """A ticket of a batch that nobody waits for."""

    def committed(self, batch: InFlight | Remembered) -> None:
        """See `Ticket`."""

    def failed(self, error: SharedLogError) -> None:
        """See `Ticket`."""

    def dropped(self) -> None:
        """See `Ticket`."""


class Admission:
    """See the module's docstring. Whoever submits has looked at the loglet's gate."""

    def __init__(
        self, *, replication: Replication, watch: Watch, clock: Clock, metrics: SequencerMetrics
    ) -> None:
        self._replication = replication
        self._watch = watch
        self._clock = clock
        self._metrics = metrics

    def submit(
        self,
        active: ActiveLoglet,
        sender: Sender,
        batch: bytes,
        conditions: Conditions,
        ticket: Ticket,
    ) -> None:
        """Admit a batch, or refuse it, now or later.

        Raises:
            SharedLogError: it is refused.
        """
        try:
            header = check_batch(batch)
            _check_tokens(header, conditions)
            place = _place_of(active, sender, header)
            if place is not None:
                self._repeated(active, place, ticket)
                return
            _check(active, conditions)
        except ConditionFailed as error:
            self._refused(sender, error)
            self._refuse(active, ticket, error)
            return
        except SharedLogError as error:
            self._refused(sender, error)
            raise
        if conditions.set_token is not None:
            active.known_state.token = conditions.set_token
            first = self.control(active, FENCE, ticket, by=header.producer)
            end = Offset(first + 1)
        else:
            first = self._records(active, header, batch, conditions, ticket)
            end = Offset(first + header.record_count)
        if isinstance(sender, ProducerSession):
            active.producers.admitted(sender, first, end, active.core.last_timestamp_ms)

    def control(
        self, active: ActiveLoglet, cause: Cause, ticket: Ticket, *, by: BatchProducer = NO_PRODUCER
    ) -> Offset:
        """Write the log's state into the log, as it is now; returns the offset."""
        state, now_ms = active.known_state, self._clock.now_ms()
        batch = encode_control(state.message(cause, active.producers.in_session, now_ms), by)
        first = active.core.next_offset
        state.on_control(first, Offset(first + 1), len(batch))
        self._place(active, parse_batch_header(batch), batch, ticket, now_ms, kind=KIND_CONTROL)
        self._metrics.controls.labels(_CAUSES[cause]).inc()
        return first

    def forget(self, active: ActiveLoglet, session: AppendSession) -> None:
        """The session is over: nobody waits for its refusals."""
        for refusal in [it for it in active.refusals if is_of(it.ticket, session)]:
            refusal.tail.cancel()

    def withdraw(self, active: ActiveLoglet, ticket: Ticket) -> None:
        """Nobody waits for this one's refusal any more, if it has one."""
        for refusal in [it for it in active.refusals if it.ticket is ticket]:
            refusal.tail.cancel()

    def _records(
        self,
        active: ActiveLoglet,
        header: BatchHeader,
        batch: bytes,
        conditions: Conditions,
        ticket: Ticket,
    ) -> Offset:
        state, now_ms = active.known_state, self._clock.now_ms()
        checkpoint = state.needs_checkpoint(header.producer, len(batch))
        behind = conditions.match_offset is not None
        if checkpoint and not behind:
            self.control(active, CHECKPOINT, _UNHEARD)
        first = active.core.next_offset
        end = Offset(first + header.record_count)
        state.on_records(header.producer, first, end, len(batch), now_ms)
        self._place(active, header, batch, ticket, now_ms)
        if checkpoint and behind:
            self.control(active, CHECKPOINT, _UNHEARD)
        return first

    def _place(
        self,
        active: ActiveLoglet,
        header: BatchHeader,
        batch: bytes,
        ticket: Ticket,
        now_ms: int,
        *,
        kind: int = 0,
    ) -> None:
        now_s = self._clock.monotonic_s()
        timed = Timed(ticket, now_s)
        state = active.known_state.range
        effects = active.core.on_append(header, batch, timed, now_ms, kind=kind, state=state)
        active.traffic_s = now_s
        if not active.watched:
            self._watch.add(active)
        self._replication.admitted(batch)
        self._replication.apply(active, effects)
        self._replication.bring_into_step(active)

    def _refused(self, sender: Sender, error: SharedLogError) -> None:
        self._metrics.rejected.labels(type(error).__name__).inc()
        sender.refused = True

    def _refuse(self, active: ActiveLoglet, ticket: Ticket, error: ConditionFailed) -> None:
        """Tell that the condition failed, once that is sure."""
        tail: asyncio.Future[Offset] = asyncio.get_running_loop().create_future()
        refusal = Refusal(ticket, error, tail)
        newest = active.core.newest
        if newest is not None:
            refusal.rest_on_batch()
            active.repeated.setdefault(newest.first, []).append(refusal)
        active.refusals[refusal] = None

        def on_tail(found: asyncio.Future[Offset]) -> None:
            del active.refusals[refusal]
            if newest is not None and found.cancelled():
                active.forget_repeated(newest.first, refusal)
            effects = active.rounds.on_withdrawn(tail, active.core.committed_tail)
            self._replication.apply_tail(active, effects)
            refusal.on_tail(found)

        tail.add_done_callback(on_tail)
        self._replication.ask_for_tail(active, tail)

    def _repeated(self, active: ActiveLoglet, place: Remembered, ticket: Ticket) -> None:
        """Answer a batch that has its place, but never before it is committed."""
        self._metrics.repeated.inc()
        if place.end <= active.core.committed_tail:
            ticket.committed(place)
        else:
            active.repeated.setdefault(place.first, []).append(ticket)


_UNHEARD: Final = _Unheard()


_CAUSES: Final = {FENCE: "fence", PRODUCER: "producer", CHECKPOINT: "checkpoint"}


def _check_tokens(header: BatchHeader, conditions: Conditions) -> None:
    if conditions.fencing_token is not None:
        check_fencing_token(conditions.fencing_token)
    if conditions.set_token is None:
        return
    check_fencing_token(conditions.set_token)
    if header.record_count != 1:
        raise InvalidArgument("a fencing token is set by a batch of one record")


def _place_of(active: ActiveLoglet, sender: Sender, header: BatchHeader) -> Remembered | None:
    """Where the batch lies already; None if it is new.

    Raises:
        SharedLogError: the producer may not append it.
    """
    if isinstance(sender, ProducerSession):
        return active.producers.check(sender, header.producer)
    if sender.refused:
        raise SequenceGap("a batch before it in the session was refused")
    if header.producer is not NO_PRODUCER:
        raise InvalidArgument("the batch has a producer, which its session has not said")
    return None


def _check(active: ActiveLoglet, conditions: Conditions) -> None:
    """Raise `ConditionFailed` unless the batch's conditions hold."""
    if conditions is NO_CONDITIONS:
        return
    if conditions.fencing_token is not None:
        active.known_state.check_token(conditions.fencing_token)
    match = conditions.match_offset
    if match is not None and match != active.core.next_offset:
        raise OffsetMismatch(match_offset=match, tail=active.core.next_offset)
