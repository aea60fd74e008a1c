"""Tails that died with their sequencer: found out again, and told to the log servers.

Log servers serve reads below the committed tail that they know, and they know it from the
sequencer. A sequencer that dies may have acknowledged records whose tail it had not told yet.
Nobody resumes its loglet, so without this those records would stay unreadable until the log is
reconfigured.

What is proved: a log server that answers with local tail t holds, fsynced, every offset below t, or
knows it to be committed (the prefix rule). So the `write_quorum`-th largest local tail among a
segment's replicas is a committed tail: below it every offset is committed already or on a write
quorum, and every recovery keeps it. It takes no seal, and it need not be the highest.

After a start, a node does this for the logs that an earlier life of it ordered. The tail that a
server is told lives in its memory, so one that has started again is told again. A log that has been
reconfigured is nobody's orphan.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from metadata.records import LogRecord, Replica
from metadata.view import ClusterView
from node.peers import ASK_TIMEOUT_S, LogletStatuses, Peers, in_parallel
from node.wire import loglet_id
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.rpc.methods import RAISE_COMMITTED_TAIL
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_server_pb2

log = logging.getLogger("node")

LOGLETS_PER_CALL_MAX: Final = 1_000
_RETRY_MIN_S: Final = 0.25
_RETRY_MAX_S: Final = 30.0

_Life = tuple[NodeId, Generation]
Item = TypeVar("Item")


class OrphanTails:
    """Watches over the logs that earlier lives of this node ordered."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        peers: Peers,
        transport: Transport,
        clock: Clock,
    ) -> None:
        self._me = me
        self._view = view
        self._peers = peers
        self._transport = transport
        self._clock = clock
        # Which log servers, in which life, know all that can be known of an orphan.
        self._told: dict[LogletId, set[_Life]] = defaultdict(set)

    async def run(self) -> None:
        """Look after them until cancelled."""
        retry_s = _RETRY_MIN_S
        while True:
            orphans = self._orphans()
            done = await self._round(orphans) if orphans else True
            retry_s = _RETRY_MAX_S if done else min(2 * retry_s, _RETRY_MAX_S)
            try:
                async with asyncio.timeout(retry_s):
                    await self._view.wait_changed()
            except TimeoutError:
                continue
            # A node came back, or a log moved. Many changes in a row are one reason to look.
            retry_s = _RETRY_MIN_S
            await self._clock.sleep(_RETRY_MIN_S)

    def _orphans(self) -> list[LogRecord]:
        """Logs that an earlier life of this node ordered and some log server has not heard of."""
        found = []
        for record, _ in self._view.logs():
            segment = record.open_segment
            named = segment.sequencer
            if named.node_id != self._me.node_id or named.generation >= self._me.generation:
                continue
            told = self._told[record.loglet(segment)]
            if any(self._life(replica) not in told for replica in segment.nodeset):
                found.append(record)
        return found

    def _life(self, replica: Replica) -> _Life | None:
        node = self._view.node(replica.node_id)
        return None if node is None else (node.node_id, node.generation)

    async def _round(self, orphans: Sequence[LogRecord]) -> bool:
        """Ask everyone, tell everyone; whether nothing is left to be told to anyone."""
        lives = {server: self._life(server) for record in orphans for server in _servers(record)}
        answers = await self._ask(orphans)
        findings = [_judge(record, answers) for record in orphans]
        news: dict[Replica, list[_Finding]] = defaultdict(list)
        for finding in findings:
            for server in finding.behind:
                news[server].append(finding)
        deaf = await self._tell(news)
        for finding in findings:
            told = [server for server in finding.behind if server not in deaf]
            if told:
                names = [server.node_id for server in told]
                fields = {"log": finding.record.name, "tail": finding.tail, "servers": names}
                log.info("orphan.tail_published", extra=fields)
            if finding.complete:
                for server in _servers(finding.record):
                    life = lives[server]
                    if life is not None and server not in deaf:
                        self._told[finding.loglet].add(life)
        return not deaf and all(finding.complete for finding in findings)

    async def _ask(self, orphans: Sequence[LogRecord]) -> _Answers:
        """What each replica that answers holds of the orphans."""
        wanted: dict[Replica, list[LogletId]] = defaultdict(list)
        for record in orphans:
            for server in _servers(record):
                wanted[server].append(record.loglet(record.open_segment))

        async def ask(replica: Replica) -> list[log_server_pb2.LogletStatus] | None:
            found: list[log_server_pb2.LogletStatus] = []
            for some in _chunks(wanted[replica]):
                answer: LogletStatuses | None = await self._peers.ask_loglets(replica, some)
                if answer is None:
                    return None
                found.extend(answer)
            return found

        answers = await in_parallel(ask, wanted)
        return {
            replica: {
                LogletId(LogId(status.loglet.log_id), status.loglet.segment_index): status
                for status in found
            }
            for replica, found in zip(wanted, answers, strict=True)
            if found is not None
        }

    async def _tell(self, news: Mapping[Replica, Sequence[_Finding]]) -> set[Replica]:
        """Tell each server its tails; returns those that could not be told."""

        async def tell(server: Replica) -> bool:
            node = self._view.node(server.node_id)
            if node is None:
                return False
            for some in _chunks(news[server]):
                request = log_server_pb2.RaiseCommittedTailRequest(
                    storage_id=server.storage_id,
                    committed=[
                        log_server_pb2.CommittedTail(loglet=loglet_id(it.loglet), tail=it.tail)
                        for it in some
                    ],
                )
                try:
                    await self._transport.call(
                        node.address, RAISE_COMMITTED_TAIL, request, timeout_s=ASK_TIMEOUT_S
                    )
                except SharedLogError as error:
                    fields = {"server": server.node_id, "error": str(error)}
                    log.debug("orphan.tell_failed", extra=fields)
                    return False
            return True

        told = await in_parallel(tell, news)
        return {server for server, good in zip(news, told, strict=True) if not good}


@dataclass(slots=True)
class _Finding:
    """What the servers' answers say of one orphan."""

    record: LogRecord
    loglet: LogletId
    tail: Offset  # proved to be committed
    behind: Sequence[Replica]  # servers that hold the loglet and don't know that tail
    complete: bool  # every server answered, so the tail is final


_Answers = Mapping[Replica, Mapping[LogletId, log_server_pb2.LogletStatus]]


def _judge(record: LogRecord, answers: _Answers) -> _Finding:
    segment = record.open_segment
    loglet = record.loglet(segment)
    servers = _servers(record)
    # A server that answers and does not know the loglet has nothing of it to serve.
    held = {s: answers[s][loglet] for s in servers if s in answers and loglet in answers[s]}
    tail = proven_tail(
        [(status.local_tail, status.committed_tail) for status in held.values()],
        base=segment.base,
        write_quorum=segment.write_quorum,
    )
    behind = [server for server, status in held.items() if status.committed_tail < tail]
    return _Finding(record, loglet, tail, behind, all(server in answers for server in servers))


def proven_tail(answers: Iterable[tuple[int, int]], *, base: Offset, write_quorum: int) -> Offset:
    """The highest tail that (local tail, committed tail) of some replicas prove to be committed.

    See the module's docstring. Without a write quorum of answers only what a server knows counts.
    """
    found = list(answers)
    tail = max((committed for _, committed in found), default=base)
    if len(found) >= write_quorum:
        local = sorted((local for local, _ in found), reverse=True)
        tail = max(tail, local[write_quorum - 1])
    return Offset(max(tail, base))


def _servers(record: LogRecord) -> list[Replica]:
    """The log servers of the open segment, one value for each whatever the log."""
    return [
        Replica(node_id=replica.node_id, storage_id=replica.storage_id)
        for replica in record.open_segment.nodeset
    ]


def _chunks(items: Sequence[Item]) -> Iterable[Sequence[Item]]:
    return (
        items[start : start + LOGLETS_PER_CALL_MAX]
        for start in range(0, len(items), LOGLETS_PER_CALL_MAX)
    )
