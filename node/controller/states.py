"""The state of a node, set by an operator, with a verdict over all history (field note 33).

Draining a node that the present open segments can spare may still strand a segment of last year. So
every segment of every log is looked at before anything is set, and `--dry-run` shows the same. The
same holds for removing it, which besides is refused while its process runs: one that nobody needs
any more has nothing to hand over, and can be stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from metadata.core import ROLE_METADATA, check_node_id
from metadata.reconfiguration import NodeUse, check_drain
from metadata.records import (
    STATE_DATA_LOSS,
    STATE_DRAINING,
    STATE_GONE,
    STATE_READ_WRITE,
    LogRecord,
    NodeRecord,
)
from metadata.registry import list_logs, set_node_state
from metadata.removal import Naming, declare_gone, namings
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
"""What may be set. That a node is gone is said by its drain's end, or by `remove_node`."""


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

    async def remove_node(
        self, request: admin_pb2.RemoveNodeRequest
    ) -> admin_pb2.RemoveNodeResponse:
        """Declare a node gone, or with `dry_run` only say what stands in the way.

        That nothing names it is read from the metadata store in the end, not from this node's view
        alone. What the node had registered stays: should it start again, that is a further life.

        Raises:
            InvalidArgument: no such node.
            MetadataUnavailable: it may or may not be done; doing it again is safe.
        """
        check_node_id(request.node_id)
        nodes = await self._view.refresh_nodes()
        node = next((it for it in nodes if it.node_id == request.node_id), None)
        if node is None:
            raise InvalidArgument(f"there is no node {request.node_id!r}")
        uses, named = await self._still_named(node, nodes)
        reasons = [*_told(named, uses), *await self._still_runs(node)]
        removed = False
        if not reasons and not request.dry_run:
            named = await declare_gone(self._store, node, any_store=True)
            reasons = _told(named, ())
            removed = not named
            log.info(
                "node.removed" if removed else "node.not_removed", extra={"node": node.node_id}
            )
        return admin_pb2.RemoveNodeResponse(
            state=STATE_GONE if removed else node.state,
            removed=removed,
            reasons=reasons[:USES_MAX],
            uses=_listed(uses),
            segments=sum(it.segments + it.past_segments for it in named),
            sequenced_logs=sum(it.is_sequencer for it in named),
        )

    async def _still_named(
        self, node: NodeRecord, nodes: Sequence[NodeRecord]
    ) -> tuple[list[NodeUse], list[Naming]]:
        """What names the node; the store is asked only if the view knows of nothing.

        To read thousands of chains takes a while, and somebody who waits asks again and again.
        """
        records = [record for record, _ in self._view.logs()]
        if not namings(records, node):
            records = [record for record, _ in await list_logs(self._store)]
        lost = node.state == STATE_DATA_LOSS
        return await self._check(records, node, nodes, store_lost=lost), namings(records, node)

    async def _still_runs(self, node: NodeRecord) -> list[str]:
        """Why the node's process is in the way, if it is. One that is merely silent is not."""
        if ROLE_METADATA in node.roles:
            return ["it hosts the cluster's metadata store"]
        life = await self._liveness.probe(node)
        if not life.answers:
            return []
        return [f"its process runs, at {node.address} in life {life.generation}: stop it first"]

    async def _uses(self, node: NodeRecord, state: str) -> list[NodeUse]:
        nodes = await self._view.refresh_nodes()
        records = [record for record, _ in self._view.logs()]
        return await self._check(records, node, nodes, store_lost=state == STATE_DATA_LOSS)

    async def _check(
        self,
        records: Sequence[LogRecord],
        node: NodeRecord,
        nodes: Sequence[NodeRecord],
        *,
        store_lost: bool,
    ) -> list[NodeUse]:
        alive = {it.node_id for it in await self._liveness.survey(nodes)}
        return check_drain(records, node, nodes, alive=alive, store_lost=store_lost)


def _answer(node: NodeRecord, uses: Sequence[NodeUse]) -> admin_pb2.SetNodeStateResponse:
    return admin_pb2.SetNodeStateResponse(
        state=node.state,
        uses=_listed(uses),
        safe=not any(use.obstacle for use in uses),
        segments=sum(use.segments for use in uses),
        sequenced_logs=sum(use.is_sequencer for use in uses),
    )


def _listed(uses: Sequence[NodeUse]) -> list[admin_pb2.NodeUse]:
    listed = sorted(uses, key=lambda use: (not use.obstacle, use.log))[:USES_MAX]
    return [
        admin_pb2.NodeUse(
            log=use.log,
            segments=use.segments,
            sequencer=use.is_sequencer,
            obstacle=use.obstacle,
        )
        for use in listed
    ]


def _told(named: Sequence[Naming], uses: Sequence[NodeUse]) -> list[str]:
    """One line for each log, with what keeps a drain from moving it, if anything does."""
    obstacles = {use.log: use.obstacle for use in uses if use.obstacle}
    return [
        f"{it.reason}; a drain can't move it: {obstacles[it.log]}"
        if it.log in obstacles
        else it.reason
        for it in named
    ]
