"""Tells the log servers what they may drop of a log, until each has.

All members of all nodesets are told, segment by segment; what one server is to hear goes in one
message. A server that is away, or does not know yet that all below is committed, is told again by
whoever comes by next: a trim can be repeated for ever.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from loglet.wire import loglet_from_proto, loglet_to_proto
from metadata.records import LogRecord, Replica
from metadata.view import ClusterView
from node.peers import in_parallel
from node.replica_door import ReplicaDoor
from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.ids import LogletId, NodeId, Offset
from sharedlog.rpc.methods import TRIM
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_server_pb2

log = logging.getLogger("node")

LOGLETS_PER_MESSAGE_MAX: Final = 1_000
TRIM_TIMEOUT_S: Final = 5.0


class Trimmer:
    """See the module's docstring."""

    def __init__(self, *, view: ClusterView, transport: Transport, door: ReplicaDoor) -> None:
        self._view = view
        self._transport = transport
        self._door = door

    async def trim(self, record: LogRecord, below: Offset, *, since: Offset) -> list[NodeId]:
        """Have the servers drop what lies below `below`; those that have not, by name.

        All below is committed, and is in the archive or purged. Below `since` all of them have
        dropped it already. A store that is lost for good has nothing to drop.

        **Cancellation:** safe; some servers were told.
        """
        starts: dict[Replica, list[tuple[LogletId, Offset]]] = defaultdict(list)
        for segment in record.chain:
            end = below if segment.end is None else min(segment.end, below)
            if segment.base < end and (segment.end is None or segment.end > since):
                for replica in segment.nodeset:
                    starts[replica].append((record.loglet(segment), end))

        async def tell(replica: Replica) -> bool:
            return self._door.is_lost(replica) or await self._tell(replica, starts[replica])

        replicas = list(starts)
        done = await in_parallel(tell, replicas)
        return sorted(
            {it.node_id for it, is_done in zip(replicas, done, strict=True) if not is_done}
        )

    async def _tell(self, replica: Replica, starts: Sequence[tuple[LogletId, Offset]]) -> bool:
        """Whether the server has dropped all of that, or has nothing of it."""
        is_done = True
        try:
            for at in range(0, len(starts), LOGLETS_PER_MESSAGE_MAX):
                wanted = dict(starts[at : at + LOGLETS_PER_MESSAGE_MAX])
                behind = await self._ask(replica, wanted)
                for loglet in behind:
                    await self._door.raise_tail(replica, loglet, wanted[loglet])
                if behind:
                    again = {loglet: wanted[loglet] for loglet in behind}
                    is_done &= not await self._ask(replica, again)
        except SharedLogError as error:
            fields = {"replica": replica.node_id, "error": str(error)}
            log.debug("trim.not_told", extra=fields)
            return False
        return is_done

    async def _ask(self, replica: Replica, starts: dict[LogletId, Offset]) -> list[LogletId]:
        """Tell it; the loglets that it did not trim so far, since it does not know enough."""
        node = self._view.node(replica.node_id)
        if node is None:
            raise Unreachable(f"node {replica.node_id} is not known here")
        request = log_server_pb2.TrimRequest(
            storage_id=replica.storage_id,
            loglets=[
                log_server_pb2.TrimLoglet(loglet=loglet_to_proto(loglet), local_start=start)
                for loglet, start in starts.items()
            ],
        )
        answer = await self._transport.call(node.address, TRIM, request, timeout_s=TRIM_TIMEOUT_S)
        found = ((loglet_from_proto(it.loglet), it.local_start) for it in answer.loglets)
        return [loglet for loglet, local_start in found if local_start < starts[loglet]]
