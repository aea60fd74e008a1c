"""The public API (LogService), as every node serves it.

Calls about a log's order (append, find-tail) go to the process that orders it, here or elsewhere;
reads and the rest are served by whoever is asked. Appends are in `appends.py`, reads in `reads.py`,
tails in `tails.py`, moments in `offsets.py`, settings in `log_settings.py`; where a call must go is
decided in `routing.py`.
"""

from __future__ import annotations

from metadata.core import check_log_name
from metadata.namespaces import Asked
from metadata.quorum import make_spread
from metadata.view import ClusterView
from node.appends import Appends
from node.freshness import fresh_log
from node.log_maker import LogMaker
from node.offsets import Offsets
from node.reads import Reads
from node.tails import Tails
from node.wire import describe_log, summarize_log
from sharedlog.limits import LIST_PAGE_MAX
from sharedlog.retention_proto import retention_from_proto
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server
from sharedlog.v1 import log_pb2


class FrontDoor:
    """Serves LogService."""

    def __init__(
        self,
        *,
        view: ClusterView,
        maker: LogMaker,
        appends: Appends,
        reads: Reads,
        offsets: Offsets,
        tails: Tails,
    ) -> None:
        self._view = view
        self._maker = maker
        self._appends = appends
        self._reads = reads
        self._offsets = offsets
        self._tails = tails

    def register(self, server: Server) -> None:
        """Serve every method of LogService on `server`."""
        server.add_call(methods.CREATE_LOG, self.create_log)
        server.add_call(methods.DESCRIBE_LOG, self.describe_log)
        server.add_call(methods.LIST_LOGS, self.list_logs)
        server.add_call(methods.APPEND, self._appends.append)
        server.add_call(methods.FENCE, self._appends.fence)
        server.add_stream(methods.APPEND_SESSION, self._appends.session)
        server.add_stream(methods.READ, self._reads.read)
        server.add_stream(methods.READ_RECORDS, self._reads.read_records)
        server.add_call(methods.FIND_TAIL, self._tails.find_tail)
        server.add_call(methods.GET_KNOWN_TAIL, self._tails.get_known_tail)
        server.add_call(methods.FIND_OFFSET, self._offsets.find_offset)

    async def create_log(self, request: log_pb2.CreateLogRequest) -> log_pb2.CreateLogResponse:
        """Make a log on nodes that answer now.

        Raises:
            InvalidLogName, InvalidArgument, LogExists.
            LogUnavailable: too few log servers are up. MetadataUnavailable: it may have been made.
        """
        asked = Asked(
            replicas=request.replicas or None,
            write_quorum=request.write_quorum or None,
            spread=make_spread(request.spread.items()) if request.set_spread else None,
            near=request.near if request.HasField("near") else None,
            retention=retention_from_proto(request.retention),
        )
        record, version, nodes = await self._maker.create(request.name, asked, nonce=request.nonce)
        by_id = {node.node_id: node for node in nodes}
        return log_pb2.CreateLogResponse(log=describe_log(record, version, by_id.get))

    async def describe_log(
        self, request: log_pb2.DescribeLogRequest
    ) -> log_pb2.DescribeLogResponse:
        """One log and as much of its chain as is asked for, as this node knows it."""
        check_log_name(request.name)
        least = request.min_chain_version
        record, version = await fresh_log(self._view, request.name, min_version=least)
        described = describe_log(
            record,
            version,
            self._view.node,
            chain_from=request.chain_from,
            chain_limit=request.chain_limit,
            open_only=request.open_only,
        )
        return log_pb2.DescribeLogResponse(log=described)

    async def list_logs(self, request: log_pb2.ListLogsRequest) -> log_pb2.ListLogsResponse:
        """A page of the logs that this node knows, in order of their names.

        Of each chain only the open segment: a thousand long ones would be too much for a message.
        """
        limit = min(request.limit or LIST_PAGE_MAX, LIST_PAGE_MAX)
        found, more = self._view.page(request.prefix, after=request.after, limit=limit)
        if request.summaries:
            summaries = [summarize_log(record, version) for record, version in found]
            return log_pb2.ListLogsResponse(summaries=summaries, more=more)
        page = [
            describe_log(record, version, self._view.node, open_only=True)
            for record, version in found
        ]
        return log_pb2.ListLogsResponse(logs=page, more=more)
