"""What can be set of a log at any time (LogService): any node answers, from the metadata store.

Its sequencer, servers and quorum are changed by a reconfiguration instead (`reconfigure.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from metadata.archive_registry import set_retention
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.wire import describe_log
from sharedlog.errors import InvalidArgument
from sharedlog.limits import NONCE_CHARS_MAX
from sharedlog.retention_proto import retention_from_proto
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server
from sharedlog.v1 import log_pb2


class LogSettings:
    """Serves what LogService has for settings."""

    def __init__(
        self, *, store: MetadataStore, view: ClusterView, new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._view = view
        self._new_id = new_id

    def register(self, server: Server) -> None:
        """Serve it on `server`."""
        server.add_call(methods.SET_RETENTION, self.set_retention)

    async def set_retention(
        self, request: log_pb2.SetRetentionRequest
    ) -> log_pb2.SetRetentionResponse:
        """Set how long a log keeps its records.

        Raises:
            InvalidLogName, LogNotFound.
            InvalidArgument: an amount, or the ages together, can't be.
            MetadataUnavailable: it may or may not be done. MetadataCorrupt.
        """
        if len(request.nonce) > NONCE_CHARS_MAX:
            raise InvalidArgument(f"the nonce has more than {NONCE_CHARS_MAX} characters")
        record, version = await set_retention(
            self._store,
            request.name,
            retention_from_proto(request.retention),
            nonce=request.nonce or self._new_id(),
        )
        self._view.learn(record, version)
        described = describe_log(record, version, self._view.node, open_only=True)
        return log_pb2.SetRetentionResponse(log=described)
