"""Where a log is: its description, kept and fetched again when it turned out to be old.

Everything here is a hint. A node that is not what the description says answers so, and the client
fetches a new one; nothing is ever decided by its age. But a client never goes back: whoever tells
the version of a chain raises `version`, and what is asked from then on is to be as new as that. A
node that can't tell anything so new is passed over, unless all are like that; and who asks anew
asks another node.

A chain may have thousands of segments. Appenders and tails need the open one, readers a slice from
where they stand; the whole chain is fetched only for a user who asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, NamedTuple

from sharedlog.connection import Connection
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset
from sharedlog.pending import copy_error
from sharedlog.rpc.methods import DESCRIBE_LOG, REPORT_SUSPECT
from sharedlog.v1 import cluster_pb2, log_pb2, types_pb2

log = logging.getLogger(__name__)

SLICE_SEGMENTS: Final = 64
"""Segments that a reader fetches at a time."""

_ATTEMPT_S: Final = 1.0  # a description comes from a node's memory, or it does not come
_REPORT_TIMEOUT_S: Final = 3.0  # the node that looks into it takes up to 2 s
_REASON_CHARS_MAX: Final = 200


class Verdict(NamedTuple):
    """What a node found out about a suspect."""

    address: str  # of the node that orders the log by now; "" if the node does not know it
    innocent: bool  # it is the one that was suspected


class Route:
    """The route to one log, shared by its appenders and readers."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.name = name
        self.version = 0  # of the newest chain that anybody told of
        self._connection = connection
        self._open: types_pb2.LogDescription | None = None
        self._slice: types_pb2.LogDescription | None = None
        self._fetching = asyncio.Lock()
        self._reporting = asyncio.Lock()
        self._reports = 0
        self._verdict: Verdict | SharedLogError | None = None

    # Descriptions.

    async def describe(self) -> types_pb2.LogDescription:
        """The log with its whole chain, fetched anew.

        Raises:
            LogNotFound: there is no such log.
            SharedLogError: no node could tell.
        """
        return await self._fetch(log_pb2.DescribeLogRequest(name=self.name))

    async def open_segment(self, *, refresh: bool = False) -> types_pb2.LogDescription:
        """The log with its open segment alone; `refresh` fetches it anew, from another node.

        All who ask meanwhile share what comes. Raises what `describe` raises.
        """
        seen = self._open
        if seen is not None and not refresh and seen.chain_version >= self.version:
            return seen
        async with self._fetching:
            if self._open is None or self._open is seen:
                request = log_pb2.DescribeLogRequest(name=self.name, open_only=True)
                self._open = await self._fetch(request, another=refresh)
            return self._open

    async def slice_at(
        self, position: Offset, *, refresh: bool = False, min_version: int = 0
    ) -> types_pb2.LogDescription:
        """The log with the segment of `position` and some that follow it.

        `refresh`: a new one, from another node. `min_version`: the caller has a sign that the chain
        has come so far. Raises what `describe` raises.
        """
        self.learn_version(min_version)
        seen = self._slice
        if not refresh:
            for known in (seen, self._open):
                if known is not None and self._serves(known, position):
                    return known
        async with self._fetching:
            found = self._slice
            if found is None or found is seen or not self._serves(found, position):
                found = await self._fetch(
                    log_pb2.DescribeLogRequest(
                        name=self.name, chain_from=position, chain_limit=SLICE_SEGMENTS
                    ),
                    another=refresh,
                )
                self._slice = found
            return found

    def _serves(self, known: types_pb2.LogDescription, position: Offset) -> bool:
        new_enough = known.chain_version >= self.version
        return new_enough and find_segment(known, position) is not None

    async def _fetch(
        self, request: log_pb2.DescribeLogRequest, *, another: bool = False
    ) -> types_pb2.LogDescription:
        """The newest that can be had; `another`: not from the node that told the last one.

        A node that is cut off from the metadata store tells what it knows, which may be an old
        chain, for as long as it is: it must not be the only one that is asked.
        """
        least = request.min_chain_version = self.version
        newest: types_pb2.LogDescription | None = None

        def good_enough(answer: log_pb2.DescribeLogResponse) -> bool:
            nonlocal newest
            if newest is None or answer.log.chain_version > newest.chain_version:
                newest = answer.log
            return answer.log.chain_version >= least

        if another:
            self._connection.ask_another()
        await self._connection.call(
            DESCRIBE_LOG, request, attempt_timeout_s=_ATTEMPT_S, good_enough=good_enough
        )
        assert newest is not None
        self._learn(newest)
        return newest

    def learn(self, description: types_pb2.LogDescription) -> None:
        """Take a description that came with another answer."""
        self._learn(description)
        self._open = description

    def learn_version(self, version: int) -> None:
        """Somebody told the version of a chain: older descriptions are out of date."""
        self.version = max(self.version, version)

    def _learn(self, description: types_pb2.LogDescription) -> None:
        before = self._open
        if before is not None and before.log_id != description.log_id:
            self.version = 0  # another log has the name now
            self._open = self._slice = None
        self.learn_version(description.chain_version)
        self._connection.learn(node.address for node in description.nodes if node.address)

    # The sequencer.

    async def sequencer_address(self, *, refresh: bool = False, named: str | None = None) -> str:
        """Address of the node that orders the log, or of `named` if a node said that it does.

        Empty if nobody knows the address.
        """
        description = await self.open_segment(refresh=refresh)
        node_id = named or description.chain[-1].sequencer.node_id
        found = (node.address for node in description.nodes if node.node_id == node_id)
        return next(found, "")

    async def report_suspect(self, address: str, reason: str) -> Verdict:
        """Have another node look into why `address` does not answer for this log.

        One report at a time: who has the same suspicion meanwhile gets the same verdict.

        Raises:
            SharedLogError: nobody could look into it, or nothing can be done now.
        """
        reports = self._reports
        self._connection.avoid(address)
        async with self._reporting:
            verdict = self._verdict
            if verdict is None or self._reports == reports:
                try:
                    verdict = await self._report(address, reason)
                except SharedLogError as error:
                    verdict = error
                self._verdict = verdict
                self._reports += 1
        if isinstance(verdict, SharedLogError):
            raise copy_error(verdict)
        return verdict

    async def _report(self, address: str, reason: str) -> Verdict:
        suspected = (await self.open_segment()).chain[-1]
        request = cluster_pb2.ReportSuspectRequest(
            log=self.name, segment_index=suspected.index, reason=reason[:_REASON_CHARS_MAX]
        )
        answer = await self._connection.call(REPORT_SUSPECT, request, timeout_s=_REPORT_TIMEOUT_S)
        self.learn_version(answer.chain_version)
        verdict = Verdict(answer.address, answer.sequencer == suspected.sequencer)
        fields = {
            "log": self.name,
            "suspect": address,
            "reason": reason,
            "innocent": verdict.innocent,
            "sequencer": answer.sequencer.node_id,
        }
        log.info("route.suspect_reported", extra=fields)
        return verdict


def find_segment(
    description: types_pb2.LogDescription, position: Offset
) -> types_pb2.Segment | None:
    """The segment that holds `position`, if the description has it."""
    for segment in description.chain:
        if position < segment.base:
            return None
        if not segment.HasField("end") or position < segment.end:
            return segment
    return None
