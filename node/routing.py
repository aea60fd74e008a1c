"""Which process must do what a caller asked of a log: this one, another, or none now.

A log's open segment names the one process, in one life, that may order it. If that process is this
one, the call is served here; if it lives elsewhere, the call is forwarded there; if its life is
over (its node has started again, as its generation shows), nobody can serve it until the log is
reconfigured, and the caller is told so.

The cached view may be behind. Being behind is harmless, for the asked process checks its own part
again, but a caller should not be turned away for it: before an answer that says "gone" the chain is
read again, once, and so is a node that the view lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from metadata.records import LogRecord, NodeRecord
from metadata.view import ClusterView
from sequencer.service import Sequencer
from sharedlog.errors import LogUnavailable, MetadataUnavailable, NotSequencer
from sharedlog.ids import NodeId, SequencerId


@dataclass(frozen=True, slots=True)
class Here:
    """This process orders the log."""

    record: LogRecord
    sequencer: Sequencer


@dataclass(frozen=True, slots=True)
class There:
    """The process `node` orders the log, as far as the view knows."""

    record: LogRecord
    node: NodeRecord


Route = Here | There


class Router:
    """Finds the process that orders a log."""

    def __init__(self, me: SequencerId, view: ClusterView, sequencer: Sequencer | None) -> None:
        self._me = me
        self._view = view
        self._sequencer = sequencer

    async def find(self, name: str) -> Route:
        """The process that orders the log `name`.

        Raises:
            LogNotFound: there is no such log.
            LogUnavailable: its sequencer process is gone for good, or unknown.
            MetadataUnavailable: the log is not in the view, and the metadata store is away.
        """
        record, _ = await self._view.fetch_log(name)
        try:
            return self._resolve(record, self._view.node(record.open_segment.sequencer.node_id))
        except (LogUnavailable, NotSequencer):
            return await self.find_again(record)

    async def find_again(self, record: LogRecord) -> Route:
        """As `find`, after the process that an older `record` named said that it is not the one."""
        fresh = await self._fresh(record)
        return self._resolve(fresh, await self._node(fresh.open_segment.sequencer.node_id))

    def sequencer_alive(self, record: LogRecord) -> bool:
        """The process that the chain names has not been followed by another life of its node."""
        named = record.open_segment.sequencer
        if named.node_id == self._me.node_id:
            return named == self._me
        node = self._view.node(named.node_id)
        return node is not None and node.generation <= named.generation

    def _resolve(self, record: LogRecord, node: NodeRecord | None) -> Route:
        """The route, given what is known of the node that the chain names."""
        named = record.open_segment.sequencer
        if named == self._me and self._sequencer is not None:
            self._sequencer.check_owner(record)
            return Here(record, self._sequencer)
        if node is None:
            raise LogUnavailable(
                f"the sequencer of {record.name}, {named.node_id}, is unknown here"
            )
        if named.node_id == self._me.node_id or node.generation > named.generation:
            raise LogUnavailable(gone(record.name, named.node_id, named.generation))
        return There(record, node)

    async def _fresh(self, record: LogRecord) -> LogRecord:
        """The chain as the metadata store has it; the given one if the store is away."""
        try:
            found, _ = await self._view.refresh_log(record.name)
        except MetadataUnavailable:
            return record
        return found

    async def _node(self, node_id: NodeId) -> NodeRecord | None:
        """A node that the view lacks may be new: the store knows. None too if that is away."""
        try:
            return await self._view.fetch_node(node_id)
        except MetadataUnavailable:
            return None


def gone(name: str, node_id: NodeId, generation: int) -> str:
    """Why a log has no sequencer, and what it can still do."""
    return (
        f"the sequencer of {name}, {node_id} in its life {generation}, is gone; the log serves "
        "reads and takes appends again once it is reconfigured"
    )


def sequencer_silent(route: There, error: Exception) -> LogUnavailable:
    """The process that orders the log does not answer.

    Not `Unreachable`: to the caller that would mean the node that it asked.
    """
    node = route.node
    reason = str(error) or "no answer in time"
    return LogUnavailable(
        f"the sequencer of {route.record.name}, {node.node_id} at {node.address}, "
        f"does not answer: {reason}"
    )
