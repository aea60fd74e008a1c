"""The controller on every node: it looks at the lease, and serves a term while it holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from metadata.lease import Lease, keep, release
from metadata.store import MetadataStore
from node.controller.config import ControllerConfig
from node.controller.metrics import ControllerMetrics
from node.controller.term import Term
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import SequencerId
from sharedlog.tasks import run_together

log = logging.getLogger("node")


class Controller:
    """See the module's docstring. `run` must be running on every node that may take its turn."""

    def __init__(
        self,
        *,
        me: SequencerId,
        store: MetadataStore,
        new_term: Callable[[], Term],
        clock: Clock,
        random: Random,
        new_id: Callable[[], str],
        config: ControllerConfig,
        metrics: ControllerMetrics,
    ) -> None:
        self._me = me
        self._store = store
        self.new_term = new_term
        self._clock = clock
        self._random = random
        self._config = config
        self._metrics = metrics
        self._lease = Lease(holder=me.node_id, nonce=new_id(), ttl_s=config.lease_ttl_s)
        self._resigned = False
        self._term: Term | None = None

    @property
    def term(self) -> Term | None:
        """The term that this node serves now."""
        return self._term

    @property
    def holder(self) -> str:
        """Who held the lease when this node last looked; "" if nobody did."""
        return self._lease.holder or ""

    @property
    def leads(self) -> bool:
        """This node is the controller now, as far as it knows."""
        return self._lease.held(self._clock.monotonic_s())

    async def run(self) -> None:
        """Look after the lease, and serve a term whenever this node has it; until cancelled."""
        while True:
            # All look at about the same interval, but not at the same time.
            await self._clock.sleep(self._config.lease_renew_s * self._random.uniform(0.5, 1.2))
            if await self._keep():
                await self._serve()

    async def resign(self) -> None:
        """Take no further turn, and let the lease go, so that the next one need not wait for it.

        For a process that is about to stop. Never raises a `SharedLogError`.
        """
        self._resigned = True
        try:
            async with asyncio.timeout(self._config.lease_renew_s):
                await release(self._store, self._lease, self._clock)
        except (SharedLogError, TimeoutError) as error:
            log.debug("controller.not_released", extra={"error": str(error)})

    async def _keep(self) -> bool:
        """Take or renew the lease; whether this node has it. An unknown outcome changes nothing."""
        if self._resigned:
            return False
        try:
            async with asyncio.timeout(self._config.lease_ttl_s / 2):
                await keep(self._store, self._lease, self._clock)
        except (SharedLogError, TimeoutError) as error:
            log.debug("controller.lease_unknown", extra={"error": str(error)})
        return self.leads

    async def _serve(self) -> None:
        fields = {"node": self._me.node_id}
        log.info("controller.begins", extra=fields)
        term = self._term = self.new_term()
        self._metrics.leads.set(1)
        try:
            await run_together({"controller-term": term.run(), "controller-lease": self._renew()})
        except Exception:
            # A bug. Without a controller the logs go on; it is tried again with the next look.
            log.exception("controller.bug", extra={"what": "term"})
        finally:
            self._term = None
            self._metrics.resigned()
        log.info("controller.ends", extra=fields)

    async def _renew(self) -> None:
        """Renew the lease for as long as this node has it."""
        while True:
            await self._clock.sleep(self._config.lease_renew_s * self._random.uniform(0.8, 1.0))
            if not await self._keep():
                return
