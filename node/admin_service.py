"""AdminService: what operators and other nodes ask of a node about the shape of logs and cluster.

`Reconfigure` goes to the process that orders the log, which drains it before it is sealed; an asked
node forwards it there once (`direct_only`), and does it itself, unplanned, if that process can't be
reached. The rest is answered by whoever is asked.

This file only translates; what is behind each method is given to the constructor.
"""

from __future__ import annotations

from typing import Final, Protocol

from metadata.core import check_log_name
from metadata.quorum import make_spread
from metadata.reconfiguration import Change
from metadata.records import Segment
from metadata.view import ClusterView
from node.causes import Cause
from node.move import DRAIN_TIMEOUT_S, Movable, Reconfigured
from node.wire import describe_segment
from sharedlog.errors import DeadlineExceeded, InvalidArgument, NotSequencer, Unreachable
from sharedlog.ids import NodeId, SequencerId
from sharedlog.limits import REPLICAS_MAX
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server, ServerStream, Transport
from sharedlog.v1 import admin_pb2, cluster_pb2

REASON_CHARS_MAX: Final = 1_000
PING_TIMEOUT_S: Final = 0.5
FORWARD_TIMEOUT_S: Final = 15.0
"""For a reconfiguration at another node; the longest one waits for silent log servers twice over
and copies a tail meanwhile."""

DigestStream = ServerStream[admin_pb2.DigestLogResponse, admin_pb2.DigestLogRequest]
CheckStream = ServerStream[admin_pb2.CheckLogResponse, admin_pb2.CheckLogRequest]


class Reconfigures(Protocol):
    """What is needed of `node/reconfigure.py:Reconfigurer`."""

    async def reconfigure(
        self,
        name: str,
        change: Change = ...,
        *,
        reason: str,
        cause: Cause = ...,
        segment_index: int | None = None,
        planned: bool = True,
    ) -> Reconfigured:
        """End the open segment and begin another."""
        ...

    async def preview(self, name: str, change: Change = ...) -> Segment:
        """The segment that would follow."""
        ...


class Helps(Protocol):
    """What is needed of `node/failover.py:Failover`."""

    async def help(
        self, name: str, change: Change, *, segment_index: int, reason: str
    ) -> Reconfigured:
        """End a segment in place of its sequencer, which can't."""
        ...


class Inspects(Protocol):
    """What is needed of `node/integrity.py:Integrity`."""

    async def digest_log(self, stream: DigestStream) -> None:
        """Who holds what."""
        ...

    async def check_log(self, stream: CheckStream) -> None:
        """Whether all of it is there and sound."""
        ...


class AcceptsLoss(Protocol):
    """What is needed of `node/accept_loss.py:LossAcceptance`."""

    async def accept_loss(
        self, request: admin_pb2.AcceptLossRequest
    ) -> admin_pb2.AcceptLossResponse:
        """Give up what can't be had back."""
        ...


class SetsStates(Protocol):
    """What is needed of `node/controller/states.py:NodeStates`."""

    async def set_node_state(
        self, request: admin_pb2.SetNodeStateRequest
    ) -> admin_pb2.SetNodeStateResponse:
        """Set the state of a node's store."""
        ...

    async def remove_node(
        self, request: admin_pb2.RemoveNodeRequest
    ) -> admin_pb2.RemoveNodeResponse:
        """Declare a node gone, or say what stands in the way."""
        ...


class AdminService:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        transport: Transport,
        reconfigurer: Reconfigures,
        sequencer: Movable | None,
        helper: Helps,
        integrity: Inspects,
        losses: AcceptsLoss,
        states: SetsStates,
    ) -> None:
        self._me = me
        self._view = view
        self._transport = transport
        self._reconfigurer = reconfigurer
        self._sequencer = sequencer
        self._helper = helper
        self._integrity = integrity
        self._losses = losses
        self._states = states

    def register(self, server: Server) -> None:
        """Serve every method of AdminService on `server`."""
        server.add_call(methods.RECONFIGURE, self.reconfigure)
        server.add_call(methods.PREPARE_MOVE, self.prepare_move)
        server.add_stream(methods.DIGEST_LOG, self._integrity.digest_log)
        server.add_stream(methods.CHECK_LOG, self._integrity.check_log)
        server.add_call(methods.ACCEPT_LOSS, self._losses.accept_loss)
        server.add_call(methods.SET_NODE_STATE, self._states.set_node_state)
        server.add_call(methods.REMOVE_NODE, self._states.remove_node)

    async def reconfigure(
        self, request: admin_pb2.ReconfigureRequest
    ) -> admin_pb2.ReconfigureResponse:
        """End a log's open segment and begin another, or say what that would be.

        Raises:
            InvalidArgument: the change itself is wrong. LogNotFound, InvalidLogName.
            LogUnavailable: not now, and why; `Unrepairable`: not without a person.
            MetadataUnavailable: it may have been done.
        """
        check_log_name(request.log)
        change = read_change(request)
        if request.dry_run:
            return await self._preview(request, change)
        record, _ = await self._view.fetch_log(request.log)
        named = record.open_segment.sequencer
        here = named == self._me
        if not here and not request.direct_only:
            forwarded = await self._forward(request, named)
            if forwarded is not None:
                return forwarded
        reason = request.reason[:REASON_CHARS_MAX] or "an operator asked for it"
        index = _segment_index(request)
        if not here and index is not None and named.node_id in change.not_sequencer:
            done = await self._helper.help(request.log, change, segment_index=index, reason=reason)
        else:
            done = await self._reconfigurer.reconfigure(
                request.log,
                change,
                reason=reason,
                cause=Cause.OPERATOR,
                segment_index=index,
                planned=here,
            )
        return admin_pb2.ReconfigureResponse(
            ended=describe_segment(done.ended),
            opened=describe_segment(done.opened),
            chain_version=done.version,
            adopted=done.adopted,
            repaired_records=done.repaired_records,
            pause_ms=done.pause_ms,
        )

    async def prepare_move(
        self, request: admin_pb2.PrepareMoveRequest
    ) -> admin_pb2.PrepareMoveResponse:
        """Stop admitting for a log that this process orders, and drain it.

        Admission begins again when the move is given up (`resume`), or by itself if the log's chain
        does not move soon.

        Raises:
            NotSequencer: this process does not order the log, or not by that segment.
            LogNotFound, LogUnavailable.
        """
        check_log_name(request.log)
        record, _ = await self._view.fetch_log(request.log)
        segment = record.open_segment
        mine = segment.sequencer == self._me and segment.index == request.segment_index
        if self._sequencer is None or not mine:
            raise NotSequencer(
                f"segment {request.segment_index} of log {request.log} is not ordered here"
            )
        if request.resume:
            self._sequencer.resume(record.loglet(segment))
            return admin_pb2.PrepareMoveResponse()
        drained, tail = await self._sequencer.prepare_move(record, timeout_s=DRAIN_TIMEOUT_S)
        return admin_pb2.PrepareMoveResponse(drained=drained, committed_tail=tail)

    async def _preview(
        self, request: admin_pb2.ReconfigureRequest, change: Change
    ) -> admin_pb2.ReconfigureResponse:
        opened = await self._reconfigurer.preview(request.log, change)
        record, _ = await self._view.fetch_log(request.log)
        return admin_pb2.ReconfigureResponse(
            ended=describe_segment(record.open_segment), opened=describe_segment(opened)
        )

    async def _forward(
        self, request: admin_pb2.ReconfigureRequest, named: SequencerId
    ) -> admin_pb2.ReconfigureResponse | None:
        """The answer of the process that orders the log; None if there is no such process now."""
        node = await self._view.fetch_node(named.node_id)
        if node is None or node.generation != named.generation:
            return None
        forwarded = admin_pb2.ReconfigureRequest()
        forwarded.CopyFrom(request)
        forwarded.direct_only = True
        try:
            # Silence shows sooner so than in the wait for the whole.
            await self._transport.call(
                node.address, methods.PING, cluster_pb2.PingRequest(), timeout_s=PING_TIMEOUT_S
            )
            return await self._transport.call(
                node.address, methods.RECONFIGURE, forwarded, timeout_s=FORWARD_TIMEOUT_S
            )
        except (Unreachable, DeadlineExceeded):
            return None


def read_change(request: admin_pb2.ReconfigureRequest) -> Change:
    """What a request asks for.

    Raises:
        InvalidArgument: numbers or levels that can't be.
    """
    if max(request.replicas, request.write_quorum, len(request.nodeset)) > REPLICAS_MAX:
        raise InvalidArgument(f"a log has at most {REPLICAS_MAX} replicas")
    return Change(
        sequencer=NodeId(request.sequencer) if request.sequencer else None,
        nodeset=tuple(NodeId(it) for it in request.nodeset) or None,
        replicas=request.replicas or None,
        write_quorum=request.write_quorum or None,
        spread=make_spread(request.spread.items()) if request.set_spread else None,
        near=request.near if request.HasField("near") else None,
        not_sequencer=frozenset(NodeId(it) for it in request.not_sequencer),
    )


def _segment_index(request: admin_pb2.ReconfigureRequest) -> int | None:
    return request.segment_index if request.HasField("segment_index") else None
