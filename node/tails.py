"""Where a log ends: linearizable from its sequencer, or as some log server knows.

A find-tail changes nothing, so it is tried again wherever the log goes while it is asked.
"""

from __future__ import annotations

from metadata.core import check_log_name
from metadata.store import Version
from metadata.view import ClusterView
from node.peers import Peers
from node.routing import Route, Router, There
from sharedlog.errors import LogUnavailable
from sharedlog.ids import Offset
from sharedlog.rpc.methods import FIND_TAIL
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_pb2


class Tails:
    """`FindTail` and `GetKnownTail` of the public API."""

    def __init__(
        self,
        *,
        view: ClusterView,
        router: Router,
        peers: Peers,
        transport: Transport,
        timeout_s: float,
    ) -> None:
        self._view = view
        self._router = router
        self._peers = peers
        self._transport = transport
        self._timeout_s = timeout_s

    async def find_tail(self, request: log_pb2.FindTailRequest) -> log_pb2.FindTailResponse:
        """The tail, linearizable, from the process that orders the log.

        Raises:
            LogNotFound. LogUnavailable: there is no sequencer, and won't be soon. DeadlineExceeded:
            no write quorum answers. NotSequencer: `direct_only`, and another node orders the log.
        """
        check_log_name(request.log)

        async def attempt(route: Route, left_s: float) -> Offset:
            if isinstance(route, There):
                return await self._find_there(route, left_s)
            return await route.sequencer.find_tail(route.record, timeout_s=self._timeout_s)

        tail = await self._router.serve(
            request.log,
            attempt,
            min_version=Version(request.min_chain_version),
            direct_only=request.direct_only,
        )
        return log_pb2.FindTailResponse(tail=tail)

    async def get_known_tail(
        self, request: log_pb2.GetKnownTailRequest
    ) -> log_pb2.GetKnownTailResponse:
        """A tail that some log server knows; never above the real one, maybe below it."""
        return log_pb2.GetKnownTailResponse(tail=await self.known(request.log))

    async def of(self, name: str) -> Offset:
        """`find_tail` for callers within the process."""
        return Offset((await self.find_tail(log_pb2.FindTailRequest(log=name))).tail)

    async def known(self, name: str) -> Offset:
        """`get_known_tail` for callers within the process.

        Raises:
            LogNotFound. LogUnavailable: no log server of the open segment answers.
        """
        check_log_name(name)
        record, _ = await self._view.fetch_log(name)
        segment = record.open_segment
        statuses = await self._peers.loglet_statuses(segment, [record.loglet(segment)])
        answered = [found for found in statuses if found is not None]
        if not answered:
            raise LogUnavailable(
                f"no log server of {name} answers: "
                + ", ".join(replica.node_id for replica in segment.nodeset)
            )
        tails = (status.committed_tail for loglets in answered for status in loglets)
        # A segment begins where the one before it ended, so its base is committed.
        return Offset(max(tails, default=segment.base))

    async def _find_there(self, route: There, left_s: float) -> Offset:
        request = log_pb2.FindTailRequest(
            log=route.record.name, direct_only=True, min_chain_version=route.version
        )
        # A little longer than the peer waits, so that its own, better error arrives.
        timeout_s = self._timeout_s + 0.5
        call = self._transport.call(route.node.address, FIND_TAIL, request, timeout_s=timeout_s)
        return Offset((await self._router.wait_for(route, call, timeout_s=left_s + 0.5)).tail)
