"""Where a log ends: linearizable from its sequencer, or as some log server knows."""

from __future__ import annotations

from metadata.core import check_log_name
from metadata.view import ClusterView
from node.peers import Peers
from node.routing import Route, Router, There, sequencer_silent
from sharedlog.errors import LogUnavailable, NotSequencer, Unreachable
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
            LogNotFound. LogUnavailable: the sequencer is gone. DeadlineExceeded: no write quorum
            answers. NotSequencer: `direct_only`, and another node orders the log.
        """
        check_log_name(request.log)
        route = await self._router.find(request.log)
        try:
            tail = await self._find_at(route, direct_only=request.direct_only)
        except NotSequencer:
            if request.direct_only:
                raise
            again = await self._router.find_again(route.record)
            tail = await self._find_at(again, direct_only=False)
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

    async def _find_at(self, route: Route, *, direct_only: bool) -> Offset:
        if not isinstance(route, There):
            return await route.sequencer.find_tail(route.record, timeout_s=self._timeout_s)
        node_id, name = route.node.node_id, route.record.name
        if direct_only:
            raise NotSequencer(
                f"{name} is ordered by {node_id}, not by this node", sequencer_node_id=node_id
            )
        request = log_pb2.FindTailRequest(log=name, direct_only=True)
        # A little longer than the peer waits, so that its own, better error arrives.
        try:
            answer = await self._transport.call(
                route.node.address, FIND_TAIL, request, timeout_s=self._timeout_s + 0.5
            )
        except Unreachable as error:
            raise sequencer_silent(route, error) from error
        return Offset(answer.tail)
