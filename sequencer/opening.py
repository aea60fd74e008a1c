"""Opening a session: wait until the log admits, claim its producer, search what is not known.

A session is opened only when every batch that it may repeat is known: nothing is admitted before.
What was purged meanwhile nobody can search; a session that would need it is refused.

A session of a named producer is opened only once its life is in the log, committed: should this
process end, the next sequencer knows of it, and refuses the lives before. Where that life goes on
is told only then, for it rests on what was admitted before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from metadata.records import LogRecord
from sequencer.admission import Admission
from sequencer.config import SequencerConfig
from sequencer.core import InFlight
from sequencer.history import HistoryScanner
from sequencer.loglets import ActiveLoglet, FutureTicket, MovedOn
from sequencer.metrics import SequencerMetrics
from sequencer.moves import KnownChain, search_from
from sequencer.producers import Opened, ProducerOpen, ProducerSession, Remembered, Search
from sequencer.session import AppendSession
from sequencer.state import PRODUCER, Life
from sharedlog.clock import Clock
from sharedlog.control import check_producer_name, producer_id_of
from sharedlog.errors import (
    AppendIndefinite,
    InvalidArgument,
    LogUnavailable,
    ProducerFenced,
    Purged,
)
from sharedlog.ids import Offset
from sharedlog.v1 import log_pb2

Admitting = Callable[[], Awaitable[tuple[ActiveLoglet, KnownChain]]]
"""Waits until the log admits, wherever its chain has gone by then."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a session was given: its loglet, and its producer."""

    active: ActiveLoglet
    chain: KnownChain
    session: ProducerSession
    life: Life | None  # of a named producer


def producer_of(opening: log_pb2.AppendSessionOpen) -> ProducerOpen | None:
    """What the client says of its producer; None if it has none.

    Raises:
        InvalidArgument: a named producer's id is not that of its name.
    """
    if opening.producer_name:
        check_producer_name(opening.producer_name)
        if opening.producer_id != producer_id_of(opening.producer_name):
            raise InvalidArgument("the producer's id is not that of its name")
    elif opening.producer_id == 0:
        return None
    return ProducerOpen(
        opening.producer_id,
        opening.producer_epoch,
        opening.next_sequence,
        opening.unresolved,
        Offset(opening.resolve_from),
    )


class Openings:
    """Opens sessions; bounds the searches that go on at once."""

    def __init__(
        self,
        *,
        history: HistoryScanner,
        admission: Admission,
        clock: Clock,
        config: SequencerConfig,
        metrics: SequencerMetrics,
    ) -> None:
        self._history = history
        self._admission = admission
        self._clock = clock
        self._config = config
        self._metrics = metrics
        self._places = asyncio.Semaphore(config.searches_max)

    @asynccontextmanager
    async def claim(
        self,
        opening: ProducerOpen,
        admitting: Admitting,
        *,
        resolve_segment: int = 0,
        name: str = "",
    ) -> AsyncIterator[Claim]:
        """The producer's own for a session, in a loglet that admits, with all known that matters.

        `resolve_segment`: the index of the segment in which `opening.resolve_from` was told.
        `name`: of a named producer; with epoch 0 a new life of it begins.

        Raises:
            NotSequencer, LogUnavailable: as `admitting` does; or the log could not be searched.
            ProducerFenced: a newer session or epoch of the producer is known.
            Purged: what the session may repeat could lie in what was purged, and be there no more.
            Overloaded: the log has as many named producers at work as it can have.
        """
        asked = opening
        while True:
            active, chain = await admitting()
            start = search_from(chain.record, asked.resolve_from, resolve_segment)
            opening = asked._replace(resolve_from=start)
            life: Life | None = None
            if name:
                life = self._live(active, asked, name)
                sequence = life.next_sequence
                opening = opening._replace(epoch=life.epoch, next_sequence=sequence)
            elif active.known_state.is_named(asked.producer_id):
                raise InvalidArgument("the producer has a name, which the session has not said")
            opened = active.producers.open(opening, active.core.next_offset)
            session = opened.session
            try:
                _shut_out(opened)
                # It has its session by now: what is written here forgets those that have none.
                if life is not None and not await self._is_said(active, life):
                    continue
                if opened.search is not None:
                    if opened.search.start < chain.record.start:
                        raise Purged(offset=opened.search.start, start=chain.record.start)
                    await self._search(active, chain.record, session, opened.search)
                if active.gate is None and not active.left:
                    yield Claim(active, chain, session, life)
                    return
            finally:
                owner = session.owner
                settled = isinstance(owner, AppendSession) and owner.settled
                active.producers.close(session, settled=settled)

    def _live(self, active: ActiveLoglet, opening: ProducerOpen, name: str) -> Life:
        """The life of a named producer that the session is of."""
        state, now_ms = active.known_state, self._clock.now_ms()
        busy = active.producers.in_session
        if opening.epoch == 0:
            return state.begin_life(name, busy, now_ms)
        return state.go_on(name, opening.epoch, opening.next_sequence, busy, now_ms)

    async def _is_said(self, active: ActiveLoglet, life: Life) -> bool:
        """Have the log say it, if it has to; False if the log has moved, and all begins anew."""
        if not life.is_new and active.known_state.is_counted:
            return True
        said: asyncio.Future[InFlight | Remembered] = asyncio.get_running_loop().create_future()
        self._admission.control(active, PRODUCER, FutureTicket(said))
        try:
            async with asyncio.timeout(self._config.search_timeout_s):
                await said
        except (MovedOn, AppendIndefinite):
            return False
        except TimeoutError as error:
            raise LogUnavailable(f"log {active.name}: no write quorum takes appends") from error
        return True

    async def _search(
        self, active: ActiveLoglet, record: LogRecord, session: ProducerSession, search: Search
    ) -> None:
        """Tell the table what the log has of the producer."""
        self._metrics.searches.inc()
        try:
            async with asyncio.timeout(self._config.search_timeout_s):
                while active.core.committed_tail < search.end and active.gate is None:
                    await active.wait_progress()
                if active.core.committed_tail < search.end:
                    return  # the log moves: the search begins anew, where it goes
                # Only who reads has a place, and no log has them all: one that is slow holds up its
                # own sessions, and not those of others.
                async with (
                    active.search_places,
                    self._places,
                    aclosing(self._history.scan(record, *search)) as pages,
                ):
                    async for page in pages:
                        self._metrics.searched_batches.inc(len(page.batches))
                        active.producers.on_found(session, page.batches, page.up_to)
        except TimeoutError as error:
            raise LogUnavailable(
                f"log {record.name}: offsets [{search.start}, {search.end}) could not be searched "
                f"for the session's batches within {self._config.search_timeout_s:g} s"
            ) from error
        if not active.left and not active.producers.is_known(session):
            raise LogUnavailable(f"log {record.name}: the search ended early")


def _shut_out(opened: Opened) -> None:
    """The producer's older session ends; what it admitted goes on."""
    if opened.shut_out is not None and isinstance(opened.shut_out.owner, AppendSession):
        opened.shut_out.owner.end(ProducerFenced("the producer has opened a newer session"))
