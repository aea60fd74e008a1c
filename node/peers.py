"""Asking other nodes, many at once, with a short time-out: who is up, and what log servers hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

from metadata.records import STATE_GONE, NodeRecord, Replica, Segment
from metadata.view import ClusterView
from node.wire import loglet_id
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogletId
from sharedlog.rpc.methods import GET_STATUS, LIST_LOGLETS
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import cluster_pb2, log_server_pb2

ASK_TIMEOUT_S: Final = 1.0
"""A node that does not answer a question about itself within this time counts as away."""

ASK_GONE_TIMEOUT_S: Final = 0.3
"""The same for one that is gone, and most likely switched off."""

ASKED_AT_ONCE_MAX: Final = 64
"""Nodes that are asked at the same time."""

LogletStatuses = Sequence[log_server_pb2.LogletStatus]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Peers:
    """Asks the nodes of the view, this one included."""

    def __init__(self, *, view: ClusterView, transport: Transport) -> None:
        self._view = view
        self._transport = transport

    async def statuses(
        self, nodes: Sequence[NodeRecord]
    ) -> list[cluster_pb2.GetStatusResponse | SharedLogError]:
        """What each node says of itself, or why it does not."""
        return await in_parallel(self._status, nodes)

    async def loglet_statuses(
        self, segment: Segment, loglets: Iterable[LogletId]
    ) -> list[LogletStatuses | None]:
        """What each replica of the segment holds of the loglets; None where it does not answer."""
        wanted = list(loglets)

        async def ask(replica: Replica) -> LogletStatuses | None:
            return await self.ask_loglets(replica, wanted)

        return await in_parallel(ask, segment.nodeset)

    async def ask_loglets(
        self, replica: Replica, wanted: Sequence[LogletId]
    ) -> LogletStatuses | None:
        """What one replica holds; None if it is away, or now has another store."""
        node = self._view.node(replica.node_id)
        if node is None:
            return None
        request = log_server_pb2.ListLogletsRequest(
            storage_id=replica.storage_id, loglets=[loglet_id(loglet) for loglet in wanted]
        )
        try:
            answer = await self._transport.call(
                node.address, LIST_LOGLETS, request, timeout_s=ASK_TIMEOUT_S
            )
        except SharedLogError:
            return None
        return answer.loglets

    async def _status(self, node: NodeRecord) -> cluster_pb2.GetStatusResponse | SharedLogError:
        request = cluster_pb2.GetStatusRequest(local_only=True)
        timeout_s = ASK_GONE_TIMEOUT_S if node.state == STATE_GONE else ASK_TIMEOUT_S
        try:
            answer = await self._transport.call(
                node.address, GET_STATUS, request, timeout_s=timeout_s
            )
        except SharedLogError as error:
            return error
        return answer


def own_status(answer: cluster_pb2.GetStatusResponse) -> cluster_pb2.NodeStatus:
    """What the answering node says of itself; an empty one if it says nothing."""
    return answer.nodes[0] if answer.nodes else cluster_pb2.NodeStatus()


async def in_parallel(
    ask: Callable[[Item], Coroutine[Any, Any, Result]], items: Iterable[Item]
) -> list[Result]:
    """`ask` for each item, many at once; results in the items' order. `ask` must not raise."""
    places = asyncio.Semaphore(ASKED_AT_ONCE_MAX)

    async def one(item: Item) -> Result:
        async with places:
            return await ask(item)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item), name="ask-peer") for item in items]
    return [task.result() for task in tasks]
