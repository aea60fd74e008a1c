"""The way to a log's sequencer: the shell around `attempts.py`.

Appenders and tail calls go the same way: to the sequencer's own node if that can be reached, else
through another one; and when it fails them they report it, so that the log gets a sequencer that
answers. A client in plain mode goes through the addresses that it was given, always.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from sharedlog.attempts import Attempts, Failure
from sharedlog.connection import Connection
from sharedlog.errors import LogNotFound, SharedLogError
from sharedlog.route import Route

log = logging.getLogger(__name__)


class Stop(NamedTuple):
    """Where an attempt goes."""

    address: str
    direct: bool  # it must be the sequencer's own node


class SequencerPath:
    """One for each appender, and for each call.

    With `create`, a log that does not exist is no failure: whichever node is asked makes it.
    """

    def __init__(self, connection: Connection, route: Route, *, create: bool = False) -> None:
        self.attempts = Attempts(connection.rng, smart=connection.smart)
        self._connection = connection
        self._route = route
        self._create = create

    async def next_stop(self) -> Stop:
        """Where to go now.

        Raises:
            LogNotFound: there is no such log, and it is not to be made.
            SharedLogError: no node could tell.
        """
        attempts = self.attempts
        if self._connection.smart and not attempts.forward:
            address, attempts.told = attempts.told, ""
            if not address:
                address = await self._sequencer_address()
                attempts.refresh, attempts.named = False, None
            if address:
                return Stop(address, direct=True)
        attempts.forward = False
        address = self._connection.address()
        self._connection.avoid(address)  # so that the next attempt tries another
        return Stop(address, direct=False)

    async def _sequencer_address(self) -> str:
        """Where the log's sequencer is; "" if nobody knows, or there is none yet."""
        attempts = self.attempts
        try:
            return await self._route.sequencer_address(
                refresh=attempts.refresh, named=attempts.named
            )
        except LogNotFound:
            if not self._create:
                raise
            return ""

    def limit_s(self, base_s: float) -> float:
        """How long to wait for an answer that should come within `base_s`."""
        return self.attempts.limit_s(base_s, self._connection.clock.monotonic_s())

    async def after(self, failure: Failure) -> None:
        """Do what the failure calls for, and wait until it is time for the next attempt."""
        if self.attempts.on_failure(failure):
            await self._report(failure)
        await self._connection.clock.sleep(self.attempts.wait_s(failure.error))

    async def _report(self, failure: Failure) -> None:
        reason = f"{failure.kind}: {failure.error}"
        peer = self._connection.peers.at(failure.address)
        now_s = self._connection.clock.monotonic_s
        try:
            verdict = await self._route.report_suspect(failure.address, reason)
        except SharedLogError as error:
            fields = {"log": self._route.name, "suspect": failure.address, "error": str(error)}
            log.debug("path.report_failed", extra=fields)
            peer.on_verdict(now_s(), innocent=False)
            return
        if failure.direct:
            peer.on_verdict(now_s(), innocent=verdict.innocent)
        self.attempts.on_report_answered(
            failure, address=verdict.address, innocent=verdict.innocent, now_s=now_s()
        )
