"""`sharedlog log accept-loss`: a person gives up what no log server can give back.

The last resort for a segment that is `Unrepairable` (field note 18). What may be given up is
decided in `loss_rules.py`; here it is carried out, and written down: the chain keeps for ever which
offsets are lost, when that was accepted and why, and readers get a typed gap there instead of a
wait (field note 19).

What is archived is not lost. Whoever archived it may have died before the chain said so; so the
archive is asked first.

An open segment is sealed on all replicas that answer before anything is counted, so that what is
seen then is all that there will ever be. It ends by compare-and-swap like any other; somebody whose
normal reconfiguration is faster wins, and nothing is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from metadata.reconfiguration import Change, choose_replacements, end_segment, plan_next
from metadata.records import LogRecord, LostRange, NodeRecord, Replica, Segment
from metadata.registry import check_room, commit_change
from metadata.store import MetadataStore, Version
from metadata.view import ClusterView
from node.controller.backfill import Backfill
from node.coverage import Holding, with_lost
from node.liveness import Liveness
from node.load import LoadIndex
from node.loss_rules import Member, Verdict, judge_closed, judge_open
from node.peers import in_parallel
from node.replica_door import ReplicaDoor
from node.wire import describe_segment
from sharedlog.clock import Clock
from sharedlog.errors import InvalidArgument, LogUnavailable, SharedLogError, WrongStorage
from sharedlog.ids import LogletId, Offset
from sharedlog.v1 import admin_pb2, types_pb2

log = logging.getLogger("node")


CatchUp = Callable[[LogRecord], Awaitable[None]]
"""Has the chain tell of all that is archived of a log."""


async def _nothing_archived(_: LogRecord) -> None:
    pass


class LossAcceptance:
    """Serves `AcceptLoss`."""

    def __init__(
        self,
        *,
        view: ClusterView,
        load: LoadIndex,
        store: MetadataStore,
        door: ReplicaDoor,
        backfill: Backfill,
        liveness: Liveness,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._view = view
        self._load = load
        self._store = store
        self._door = door
        self._backfill = backfill
        self._liveness = liveness
        self._clock = clock
        self._new_id = new_id
        self._catch_up: CatchUp = _nothing_archived

    def ask_first(self, catch_up: CatchUp) -> None:
        """Before anything is judged the chain must tell of all that is archived."""
        self._catch_up = catch_up

    async def accept_loss(
        self, request: admin_pb2.AcceptLossRequest
    ) -> admin_pb2.AcceptLossResponse:
        """Give up what is lost of one segment, or with `dry_run` say what that would be.

        Raises:
            InvalidArgument: nothing is lost, or it may yet be mended; the message says how.
            LogNotFound. LogUnavailable: the log has moved meanwhile, or there are too few nodes for
            its next segment. ArchiveUnavailable, ManifestCorrupt: the archive may have what the log
            servers have not. MetadataUnavailable: it may or may not be done.

        **Cancellation:** it may or may not be done; the chain says.
        """
        # Who is lost is decided by what the store says now, not by what was heard of it.
        await self._view.refresh_nodes()
        record, version = await self._view.refresh_log(request.log)
        await self._catch_up(record)
        record, version = await self._view.refresh_log(request.log)
        segment = next((it for it in record.chain if it.index == request.segment_index), None)
        if segment is None:
            raise InvalidArgument(f"log {record.name} has no segment {request.segment_index}")
        if not (request.reason or request.dry_run):
            raise InvalidArgument("say why: the reason is kept in the chain")
        if segment.end is None:
            return await self._accept_open(request, record, version)
        return await self._accept_closed(request, record, version, segment)

    # ------------------------------------------------------------------ closed segments

    async def _accept_closed(
        self,
        request: admin_pb2.AcceptLossRequest,
        record: LogRecord,
        version: Version,
        segment: Segment,
    ) -> admin_pb2.AcceptLossResponse:
        assert segment.end is not None
        loglet, end = record.loglet(segment), segment.end

        async def ask(replica: Replica) -> Holding:
            return await self._door.holding(replica, loglet, segment.base, end, verify=True)

        holdings = await in_parallel(ask, segment.nodeset)
        verdict = judge_closed(record.name, segment, holdings, archived_end=_archived_end(record))
        lost = self._written(verdict, request)
        changed = replace(segment, lost=with_lost(segment.lost, lost))
        if request.dry_run:
            return _answer(lost, changed, 0)

        def build(found: LogRecord) -> LogRecord | None:
            chain = list(found.chain)
            for place, present in enumerate(chain):
                if present == segment:
                    chain[place] = changed
                    return replace(found, chain=tuple(chain))
            return None

        start = (record, version)
        _, version, made = await commit_change(
            self._store, record.name, build, self._new_id(), start=start
        )
        return self._done(record, lost, changed, version, made=made)

    # ------------------------------------------------------------------ the open segment

    async def _accept_open(
        self, request: admin_pb2.AcceptLossRequest, record: LogRecord, version: Version
    ) -> admin_pb2.AcceptLossResponse:
        segment = record.open_segment
        loglet = record.loglet(segment)
        members = await self._members(loglet, segment, seal=False)
        archived_end = _archived_end(record)
        verdict = judge_open(record.name, segment, members, archived_end=archived_end)
        if request.dry_run:
            lost = self._written(verdict, request)
            ended = replace(segment, end=verdict.end, lost=with_lost(segment.lost, lost))
            return _answer(lost, ended, 0)
        known = await self._view.refresh_nodes()
        alive = await self._liveness.survey(known)
        plan = plan_next(record, Change(), alive, self._load.load, known=known)
        check_room(record, plan, optional=False)
        # From here on with answers given after the seal: nothing can be added any more.
        members = await self._members(loglet, segment, seal=True)
        verdict = judge_open(record.name, segment, members, archived_end=archived_end)
        lost = self._written(verdict, request)
        ended = replace(segment, end=verdict.end, lost=with_lost(segment.lost, lost))
        alive = await self._liveness.survey()
        nodeset = await self._filled(record, ended, members, alive)
        ended = replace(ended, nodeset=nodeset)
        trimmed = archived_end if verdict.in_archive else Offset(0)
        return await self._end(record, version, ended, members, lost, trimmed=trimmed)

    async def _end(
        self,
        record: LogRecord,
        version: Version,
        ended: Segment,
        members: Sequence[Member],
        lost: Sequence[LostRange],
        *,
        trimmed: Offset,
    ) -> admin_pb2.AcceptLossResponse:
        """End the segment and begin the next, unless somebody else has.

        Below `trimmed` nobody is to look for it on log servers any more.
        """
        assert ended.end is not None
        nonce = self._new_id()
        end = ended.end
        timestamp_ms = max(member.last_timestamp_ms for member in members)
        known = await self._view.refresh_nodes()
        alive = await self._liveness.survey(known)

        def build(found: LogRecord) -> LogRecord | None:
            if found.log_id != record.log_id or found.open_segment != record.open_segment:
                return None
            if _archived_end(found) > end:
                return None  # archived or purged meanwhile: what is lost was judged without that
            ended_log = end_segment(
                found,
                end=end,
                timestamp_ms=timestamp_ms,
                plan=plan_next(found, Change(), alive, self._load.load, known=known),
                nonce=nonce,
                nodeset_of_ended=ended.nodeset,
                lost=lost,
            )
            return replace(ended_log, trimmed=max(ended_log.trimmed, trimmed))

        start = (record, version)
        changed, version, made = await commit_change(
            self._store, record.name, build, nonce, start=start
        )
        if made:
            self._view.learn(changed, version)
            if ended.end != ended.base:
                await self._backfill.tell_end(record, ended, ended.nodeset)
        return self._done(record, lost, ended, version, made=made)

    async def _members(self, loglet: LogletId, segment: Segment, *, seal: bool) -> list[Member]:
        """What each replica has; with `seal` as of after its seal."""

        async def ask(replica: Replica) -> Member:
            try:
                local, committed, timestamp_ms = await self._tails(
                    replica, loglet, segment.base, seal=seal
                )
            except SharedLogError as error:
                gone = isinstance(error, WrongStorage) or self._door.is_lost(replica)
                return Member(replica.node_id, Holding(answered=False, lost=gone, error=str(error)))
            holding = await self._door.holding(replica, loglet, segment.base, local, verify=True)
            if self._door.is_lost(replica):  # declared, and there all the same: without a vote
                holding = replace(holding, lost=True)
            return Member(replica.node_id, holding, local, committed, timestamp_ms)

        return await in_parallel(ask, segment.nodeset)

    async def _tails(
        self, replica: Replica, loglet: LogletId, base: Offset, *, seal: bool
    ) -> tuple[Offset, Offset, int]:
        """Local tail, committed tail and last timestamp of a replica."""
        if seal:
            sealed = await self._door.seal(replica, loglet, base)
            return sealed.local_tail, sealed.committed_tail, sealed.last_timestamp_ms
        status = await self._door.status(replica, loglet)
        if status is None:
            return base, base, 0
        return Offset(status.local_tail), Offset(status.committed_tail), 0

    async def _filled(
        self,
        record: LogRecord,
        ended: Segment,
        members: Sequence[Member],
        alive: Sequence[NodeRecord],
    ) -> tuple[Replica, ...]:
        """The nodeset with others, filled from the survivors, for those that are lost.

        As far as that can be had now: what remains is re-replicated later, as of any closed
        segment.
        """
        lost = [
            index
            for index, member in enumerate(members)
            if member.holding.lost or not member.holding.answered
        ]
        if ended.end == ended.base or not any(it.holding.answered for it in members):
            return ended.nodeset
        try:
            chosen = choose_replacements(ended, lost, alive, self._load.load)
        except LogUnavailable as error:
            fields = {"log": record.name, "error": str(error)}
            log.info("loss.no_replacements", extra=fields)
            return ended.nodeset
        nodeset = list(ended.nodeset)
        for index in lost:
            try:
                copied = await self._backfill.copy_to(record, ended, chosen[index])
            except SharedLogError as error:
                fields = {"log": record.name, "target": chosen[index].node_id, "error": str(error)}
                log.warning("loss.not_copied", extra=fields)
                continue
            if copied.complete:
                nodeset[index] = chosen[index]
        return tuple(nodeset)

    # ------------------------------------------------------------------ writing it down

    def _written(self, verdict: Verdict, request: admin_pb2.AcceptLossRequest) -> list[LostRange]:
        now_ms = 0 if request.dry_run else self._clock.now_ms()
        return [
            LostRange(first=first, end=end, accepted_ms=now_ms, reason=request.reason)
            for first, end in verdict.lost
        ]

    def _done(
        self,
        record: LogRecord,
        lost: Sequence[LostRange],
        segment: Segment,
        version: Version,
        *,
        made: bool,
    ) -> admin_pb2.AcceptLossResponse:
        if not made:
            raise LogUnavailable(
                f"log {record.name}, segment {segment.index} was changed meanwhile; nothing was "
                "given up: look again"
            )
        for it in lost:
            log.warning(
                "loss.accepted",
                extra={
                    "log": record.name,
                    "segment": segment.index,
                    "first": it.first,
                    "end": it.end,
                    "reason": it.reason,
                },
            )
        return _answer(lost, segment, version)


def _archived_end(record: LogRecord) -> Offset:
    """Nothing below it is lost: it is in the archive, or was purged."""
    return max(record.archived_end, record.start)


def _answer(
    lost: Sequence[LostRange], segment: Segment, version: int
) -> admin_pb2.AcceptLossResponse:
    return admin_pb2.AcceptLossResponse(
        lost=[
            types_pb2.LostRange(
                first=it.first, end=it.end, accepted_ms=it.accepted_ms, reason=it.reason
            )
            for it in lost
        ],
        segment=describe_segment(segment),
        chain_version=version,
    )
