"""`ReportSuspect`: clients say that a log's sequencer does not answer them.

Clients see it first, and see it best: the stream that broke is theirs. What they say is a reason to
look, not to act: `failover.py` asks the suspect, and leaves a process alone that is well. The
answer then names it again, and a client that still can't reach it goes through another node.
Meanwhile its segment is looked at: should that be sealed and left so, the log gets another one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from metadata.core import check_log_name
from metadata.records import LogRecord
from metadata.store import Version
from metadata.view import ClusterView
from node.failover import Failover
from node.wire import sequencer_id
from sharedlog.errors import LogUnavailable
from sharedlog.rpc.methods import REPORT_SUSPECT
from sharedlog.rpc.transport import Server
from sharedlog.v1 import cluster_pb2

log = logging.getLogger("node")

ANSWER_WITHIN_S: Final = 2.0
REASON_LENGTH_MAX: Final = 200


class Suspects:
    """Serves `ClusterService.ReportSuspect`."""

    def __init__(self, *, view: ClusterView, failover: Failover) -> None:
        self._view = view
        self._failover = failover

    def register(self, server: Server) -> None:
        """Serve it on `server`."""
        server.add_call(REPORT_SUSPECT, self.report)

    async def report(
        self, request: cluster_pb2.ReportSuspectRequest
    ) -> cluster_pb2.ReportSuspectResponse:
        """Look into it; the answer says who orders the log once somebody does who answers.

        Raises:
            LogUnavailable: nobody can be made to now, and why, or it takes longer than
            `ANSWER_WITHIN_S`; `Unrepairable`. MetadataUnavailable, LogNotFound, InvalidLogName.
        """
        check_log_name(request.log)
        record, version = await self._view.fetch_log(request.log)
        if record.open_segment.index < request.segment_index:
            record, version = await self._view.refresh_log(request.log)
        if record.open_segment.index <= request.segment_index:
            fields = {
                "log": request.log,
                "sequencer": str(record.open_segment.sequencer),
                "reason": request.reason[:REASON_LENGTH_MAX],
            }
            log.info("suspect.reported", extra=fields)
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    record, version = await self._failover.ensure(record)
            except TimeoutError as error:
                raise LogUnavailable(
                    f"log {request.log} is still looking for a new sequencer"
                ) from error
            if record.open_segment.index <= request.segment_index:
                self._failover.look_into(record)
        return self._answer(record, version)

    def _answer(self, record: LogRecord, version: Version) -> cluster_pb2.ReportSuspectResponse:
        named = record.open_segment.sequencer
        node = self._view.node(named.node_id)
        return cluster_pb2.ReportSuspectResponse(
            chain_version=version,
            sequencer=sequencer_id(named),
            address="" if node is None else node.address,
        )
