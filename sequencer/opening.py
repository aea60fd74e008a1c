"""Opening a session: wait until the log admits, claim its producer, search what is not known.

A session is opened only when every batch that it may repeat is known: nothing is admitted before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

from metadata.records import LogRecord
from sequencer.config import SequencerConfig
from sequencer.history import HistoryScanner
from sequencer.loglets import ActiveLoglet
from sequencer.metrics import SequencerMetrics
from sequencer.moves import KnownChain, search_from
from sequencer.producers import Opened, ProducerOpen, ProducerSession, Search
from sequencer.session import AppendSession
from sharedlog.errors import LogUnavailable, ProducerFenced
from sharedlog.ids import Offset
from sharedlog.v1 import log_pb2

Admitting = Callable[[], Awaitable[tuple[ActiveLoglet, KnownChain]]]
"""Waits until the log admits, wherever its chain has gone by then."""


def producer_of(opening: log_pb2.AppendSessionOpen) -> ProducerOpen | None:
    """What the client says of its producer; None if it has none."""
    if opening.producer_id == 0:
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
        self, *, history: HistoryScanner, config: SequencerConfig, metrics: SequencerMetrics
    ) -> None:
        self._history = history
        self._config = config
        self._metrics = metrics
        self._places = asyncio.Semaphore(config.searches_max)

    @asynccontextmanager
    async def claim(
        self, opening: ProducerOpen, admitting: Admitting, *, resolve_segment: int = 0
    ) -> AsyncIterator[tuple[ActiveLoglet, KnownChain, ProducerSession]]:
        """The producer's own for a session, in a loglet that admits, with all known that matters.

        `resolve_segment`: the index of the segment in which `opening.resolve_from` was told.

        Raises:
            NotSequencer, LogUnavailable: as `admitting` does; or the log could not be searched.
            ProducerFenced: a newer session or epoch of the producer is known.
        """
        resolve_from = opening.resolve_from
        while True:
            active, chain = await admitting()
            start = search_from(chain.record, resolve_from, resolve_segment)
            opening = opening._replace(resolve_from=start)
            opened = active.producers.open(opening, active.core.next_offset)
            session = opened.session
            try:
                _shut_out(opened)
                if opened.search is not None:
                    await self._search(active, chain.record, session, opened.search)
                if active.gate is None and not active.left:
                    yield active, chain, session
                    return
            finally:
                owner = session.owner
                settled = isinstance(owner, AppendSession) and owner.settled
                active.producers.close(session, settled=settled)

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
