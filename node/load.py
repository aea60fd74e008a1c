"""How much each node holds and orders, kept up with the chains, and what its disk has left.

The next segment of a log goes to nodes that have little to do. When a node dies, thousands of logs
ask for that at once, so nobody counts anew for each of them; and what is planned and not yet
written counts too, or they would all go to the same node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from metadata.core import Load
from metadata.reconfiguration import Plan
from metadata.records import LogRecord, Replica, Segment
from metadata.view import ClusterView
from sharedlog.ids import NodeId, SequencerId


class LoadIndex:
    """See the module's docstring. `load` is to be read, not to be kept."""

    def __init__(
        self, view: ClusterView, free_bytes: Callable[[NodeId], int | None] | None = None
    ) -> None:
        self.load = Load() if free_bytes is None else Load(free_bytes=free_bytes)
        self._open: dict[str, Segment] = {}  # of each log; what `load` counts
        for record, _ in view.logs():
            self.learn(record)
        view.on_log(lambda record, _: self.learn(record))

    @contextmanager
    def planned(self, plan: Plan) -> Iterator[None]:
        """Count what is about to be written."""
        self._add(plan.sequencer, plan.nodeset, 1)
        try:
            yield
        finally:
            self._add(plan.sequencer, plan.nodeset, -1)

    def learn(self, record: LogRecord) -> None:
        """A log as it is now; what this process writes may be told before the view knows it."""
        segment = record.open_segment
        was = self._open.get(record.name)
        if was is segment:
            return
        if was is not None:
            self._add(was.sequencer, was.nodeset, -1)
        self._open[record.name] = segment
        self._add(segment.sequencer, segment.nodeset, 1)

    def _add(self, sequencer: SequencerId, nodeset: tuple[Replica, ...], count: int) -> None:
        self.load.sequencers[sequencer.node_id] += count
        for replica in nodeset:
            self.load.replicas[replica.node_id] += count
