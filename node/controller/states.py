"""The state of a node, set by an operator, with a verdict over all history (field note 33).

Draining a node that the present open segments can spare may still strand a segment of last year. So
every segment of every log is looked at before anything is set, and `--dry-run` shows the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from metadata.core import check_node_id
from metadata.reconfiguration import NodeUse, check_drain
from metadata.records import (
    STATE_DATA_LOSS,
    STATE_DRAINING,
    STATE_READ_WRITE,
    NodeRecord,
)
from metadata.registry import set_node_state
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.liveness import Liveness
from sharedlog.errors import InvalidArgument
from sharedlog.ids import NodeId
from sharedlog.v1 import admin_pb2

log = logging.getLogger("node")

USES_MAX: Final = 1_000
"""Logs that one answer lists, those with an obstacle first."""

SETTABLE: Final = (STATE_DRAINING, STATE_READ_WRITE, STATE_DATA_LOSS)
"""What an operator may ask for; the controller alone says that a node is gone."""


class NodeStates:
    """Serves `SetNodeState`."""

    def __init__(
        self,
        *,
        store: MetadataStore,
        view: ClusterView,
        liveness: Liveness,
    ) -> None:
        self._store = store
        self._view = view
        self._liveness = liveness

    async def set_node_state(
        self, request: admin_pb2.SetNodeStateRequest
    ) -> admin_pb2.SetNodeStateResponse:
        """Set a node's state, or with `dry_run` only say what would become of each log.

        A drain with obstacles is begun all the same: it does what it can, and goes on when the
        obstacle is gone. Setting the state that the node has does nothing.

        Raises:
            InvalidArgument: no such node or state, or not from the present one.
            MetadataUnavailable: it may or may not be set.
        """
        if request.state not in SETTABLE:
            raise InvalidArgument(
                f"{request.state!r} is no state to set; there are {', '.join(SETTABLE)}"
            )
        check_node_id(request.node_id)
        node = await self._view.fetch_node(NodeId(request.node_id))
        if node is None:
            raise InvalidArgument(f"there is no node {request.node_id!r}")
        uses = await self._uses(node, request.state)
        if not request.dry_run:
            node = await set_node_state(
                self._store, node.node_id, request.state, storage_id=node.storage_id
            )
            log.info("node.state_set", extra={"node": node.node_id, "state": node.state})
        return _answer(node, uses)

    async def _uses(self, node: NodeRecord, state: str) -> list[NodeUse]:
        nodes = await self._view.refresh_nodes()
        alive = {it.node_id for it in await self._liveness.survey(nodes)}
        records = [record for record, _ in self._view.logs()]
        lost = state == STATE_DATA_LOSS
        return check_drain(records, node, nodes, alive=alive, store_lost=lost)


def _answer(node: NodeRecord, uses: Sequence[NodeUse]) -> admin_pb2.SetNodeStateResponse:
    listed = sorted(uses, key=lambda use: (not use.obstacle, use.log))[:USES_MAX]
    return admin_pb2.SetNodeStateResponse(
        state=node.state,
        uses=[
            admin_pb2.NodeUse(
                log=use.log,
                segments=use.segments,
                sequencer=use.is_sequencer,
                obstacle=use.obstacle,
            )
            for use in listed
        ],
        safe=not any(use.obstacle for use in uses),
        segments=sum(use.segments for use in uses),
        sequenced_logs=sum(use.is_sequencer for use in uses),
    )
