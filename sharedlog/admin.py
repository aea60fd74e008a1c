"""What those who run a cluster ask of it: reconfigure, inspect, drain, give up what is lost.

Any node answers. What changes something may be repeated: a reconfiguration names the segment that
it ends, so a second try of one whose answer was lost finds it done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from google.protobuf.message import Message

from sharedlog.connection import Connection
from sharedlog.rpc.methods import (
    ACCEPT_LOSS,
    CHECK_LOG,
    DESCRIBE_LOG,
    DIGEST_LOG,
    RECONFIGURE,
    SET_NODE_STATE,
)
from sharedlog.rpc.transport import Method
from sharedlog.v1 import admin_pb2, log_pb2, types_pb2

_CHANGE_TIMEOUT_S: Final = 30.0
"""A change waits for servers that are slow, and copies what must be copied first."""

Answer = TypeVar("Answer", bound=Message)
Request = TypeVar("Request", bound=Message)


class Admin:
    """The cluster from its operator's side. Made by `Cluster.admin`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def reconfigure(
        self,
        name: str,
        *,
        sequencer: str = "",
        nodeset: Sequence[str] = (),
        replicas: int = 0,
        write_quorum: int = 0,
        spread: Mapping[str, int] | None = None,
        dry_run: bool = False,
        reason: str = "",
        timeout_s: float = _CHANGE_TIMEOUT_S,
    ) -> admin_pb2.ReconfigureResponse:
        """End the log's open segment and begin another; what is not given stays or is chosen.

        `spread` maps "zone", "region" or "node" to how many of them a write quorum must span; an
        empty one ends an earlier spread.

        Raises:
            LogNotFound. InvalidArgument: what is asked for can't be. LogUnavailable: too few nodes
            answer. Unrepairable: too much of the open segment is lost.

        **Cancellation:** the change may or may not be made.
        """
        request = admin_pb2.ReconfigureRequest(
            log=name,
            sequencer=sequencer,
            nodeset=nodeset,
            replicas=replicas,
            write_quorum=write_quorum,
            spread=spread,
            set_spread=spread is not None,
            dry_run=dry_run,
            reason=reason,
            segment_index=(await self._open_segment(name)).index,
        )
        return await self._connection.call(RECONFIGURE, request, timeout_s=timeout_s)

    async def accept_loss(
        self,
        name: str,
        segment_index: int,
        *,
        reason: str,
        dry_run: bool = False,
        timeout_s: float = _CHANGE_TIMEOUT_S,
    ) -> admin_pb2.AcceptLossResponse:
        """Give up what no log server can give back, so that the log goes on; kept in its chain.

        Raises:
            LogNotFound. InvalidArgument: nothing is lost there, or servers that are only away may
            still have it.

        **Cancellation:** it may or may not be done.
        """
        request = admin_pb2.AcceptLossRequest(
            log=name, segment_index=segment_index, reason=reason, dry_run=dry_run
        )
        return await self._connection.call(ACCEPT_LOSS, request, timeout_s=timeout_s)

    async def set_node_state(
        self, node_id: str, state: str, *, dry_run: bool = False
    ) -> admin_pb2.SetNodeStateResponse:
        """Begin ("draining") or end ("read-write") a drain, or declare a store lost ("data-loss").

        Raises:
            InvalidArgument: there is no such node, or it can't be in that state.
        """
        request = admin_pb2.SetNodeStateRequest(node_id=node_id, state=state, dry_run=dry_run)
        return await self._connection.call(SET_NODE_STATE, request)

    async def digest(
        self, name: str, segment_index: int | None = None
    ) -> AsyncGenerator[admin_pb2.DigestLogResponse, None]:
        """Which log server holds what, a message for each segment, in order.

        Raises:
            LogNotFound. InvalidArgument: there is no such segment.
        """
        request = admin_pb2.DigestLogRequest(log=name, segment_index=segment_index)
        async with aclosing(self._stream(DIGEST_LOG, request)) as answers:
            async for answer in answers:
                yield answer

    async def check(
        self, name: str, segment_index: int | None = None
    ) -> AsyncGenerator[admin_pb2.CheckLogResponse, None]:
        """Read every replica and compare: progress and findings as they come.

        Raises:
            LogNotFound. InvalidArgument: there is no such segment.
        """
        request = admin_pb2.CheckLogRequest(log=name, segment_index=segment_index)
        async with aclosing(self._stream(CHECK_LOG, request)) as answers:
            async for answer in answers:
                yield answer

    async def _open_segment(self, name: str) -> types_pb2.Segment:
        request = log_pb2.DescribeLogRequest(name=name, open_only=True)
        return (await self._connection.call(DESCRIBE_LOG, request)).log.chain[-1]

    async def _stream(
        self, method: Method[Request, Answer], request: Request
    ) -> AsyncGenerator[Answer, None]:
        stream = self._connection.transport.stream(self._connection.address(), method)
        try:
            await stream.send(request)
            await stream.end()
            while (answer := await stream.receive()) is not None:
                yield answer
        finally:
            stream.cancel()
