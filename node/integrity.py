"""What of a log is where, and whether it is sound: `log digest` and `log check`.

**Digest** shows, segment by segment, which offsets each replica holds, lacks or has damaged, next
to those that give no answer and those whose store is lost. It reads every batch at its log server,
to tell damage from soundness.

**Check** does the same for people who want a verdict: only what is wrong is told, and in addition
the replicas' placements are compared batch by batch. Their checksums cover the batches' own, so
equal checksums mean equal records at equal offsets.

Both only read, at any node, and never hold more in memory than one page of each replica. What lies
at or beyond a segment's end is in no log (field note 7) and is not looked at; of an open segment,
what lies beyond the committed tail that some replica knows. Nor is what some replica has trimmed:
it is elsewhere, or given up, and nobody lacks it. A replica that does not answer is said
not to, and never taken for one that lacks the records (field note 5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from metadata.records import LogRecord, Replica, Segment
from metadata.view import ClusterView
from node.coverage import (
    Holding,
    Range,
    Ranges,
    clip,
    covers,
    cut_where_it_changes,
    intersect,
    merge,
    missing_of,
    nobody_has,
    trimmed_upto,
    untrimmed,
    wanted,
)
from node.peers import in_parallel
from node.replica_door import ReplicaDoor
from node.wire import describe_segment, loglet_id
from sharedlog.errors import InvalidArgument, LogletNotOpen, SharedLogError, WrongStorage
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.transport import ServerStream
from sharedlog.v1 import admin_pb2, log_server_pb2, types_pb2

RANGES_MAX: Final = 2_000
"""Ranges of one segment in one answer; what does not fit is told in a further one."""

FINDINGS_MAX: Final = 1_000
"""Findings in one message."""

DigestStream = ServerStream[admin_pb2.DigestLogResponse, admin_pb2.DigestLogRequest]
CheckStream = ServerStream[admin_pb2.CheckLogResponse, admin_pb2.CheckLogRequest]

_Holding = admin_pb2.DigestRange
_Finding = admin_pb2.CheckFinding


class Integrity:
    """Serves `DigestLog` and `CheckLog`."""

    def __init__(self, *, view: ClusterView, door: ReplicaDoor) -> None:
        self._view = view
        self._door = door

    # ------------------------------------------------------------------ digest

    async def digest_log(self, stream: DigestStream) -> None:
        """Handler of DigestLog. **Cancellation:** ends the stream.

        Raises:
            LogNotFound, InvalidArgument: no such segment. MetadataUnavailable.
        """
        request = await stream.receive()
        if request is None:
            return
        index = request.segment_index if request.HasField("segment_index") else None
        record, _ = await self._view.refresh_log(request.log)
        for segment in _asked(record, index):
            async for answer in self._digest(record, segment):
                await stream.send(answer)

    async def _digest(
        self, record: LogRecord, segment: Segment
    ) -> AsyncIterator[admin_pb2.DigestLogResponse]:
        loglet = record.loglet(segment)
        statuses = await in_parallel(lambda it: self._status(it, loglet), segment.nodeset)
        end = _end_of(segment, statuses)

        async def hold(replica: Replica) -> Holding:
            return await self._door.holding(replica, loglet, segment.base, end, verify=True)

        holdings = await in_parallel(hold, segment.nodeset)
        want = untrimmed(wanted(segment, end), holdings)
        pieces = cut_where_it_changes(want, holdings)
        # Even an empty segment gets one answer.
        for at in range(0, max(len(pieces), 1), RANGES_MAX):
            yield admin_pb2.DigestLogResponse(
                segment=describe_segment(segment),
                end=end,
                replicas=[
                    _replica_digest(loglet, segment.base, replica, status, holding)
                    for replica, status, holding in zip(
                        segment.nodeset, statuses, holdings, strict=True
                    )
                ],
                ranges=[_digest_range(it, holdings) for it in pieces[at : at + RANGES_MAX]],
            )

    async def _status(
        self, replica: Replica, loglet: LogletId
    ) -> log_server_pb2.LogletStatus | SharedLogError | None:
        """What a replica says of the loglet; None: it never heard of it."""
        try:
            return await self._door.status(replica, loglet)
        except SharedLogError as error:
            return error

    # ------------------------------------------------------------------ check

    async def check_log(self, stream: CheckStream) -> None:
        """Handler of CheckLog: a message for each step, the last with all of `bytes`.

        **Cancellation:** ends the stream.

        Raises:
            LogNotFound, InvalidArgument: no such segment. MetadataUnavailable.
        """
        request = await stream.receive()
        if request is None:
            return
        index = request.segment_index if request.HasField("segment_index") else None
        record, _ = await self._view.refresh_log(request.log)
        checks = [await self._begin_check(record, segment) for segment in _asked(record, index)]
        total = sum((it.end - it.segment.base) * len(it.segment.nodeset) for it in checks)
        done = size_read = 0
        for check in checks:
            while check.at < check.end:
                before = check.at
                findings = await self._step(check)
                done += (check.at - before) * len(check.segment.nodeset)
                size_read += check.take_bytes()
                for part in _parts(findings):
                    await stream.send(
                        admin_pb2.CheckLogResponse(done=done, total=total, findings=part)
                    )
        await stream.send(admin_pb2.CheckLogResponse(done=total, total=total, bytes=size_read))

    async def _begin_check(self, record: LogRecord, segment: Segment) -> _Check:
        loglet = record.loglet(segment)
        end = segment.end
        if end is None:
            statuses = await in_parallel(lambda it: self._status(it, loglet), segment.nodeset)
            end = _end_of(segment, statuses)
        return _Check(loglet, segment, end, segment.base)

    async def _step(self, check: _Check) -> list[admin_pb2.CheckFinding]:
        """One page of each replica, compared as far as all of them go."""

        async def ask(replica: Replica) -> log_server_pb2.DigestResponse | SharedLogError:
            try:
                return await self._door.page(
                    replica, check.loglet, check.at, check.end, verify=True
                )
            except SharedLogError as error:
                return error

        pages = [
            _Page.of(answer, lost=self._door.is_lost(replica))
            for replica, answer in zip(
                check.segment.nodeset, await in_parallel(ask, check.segment.nodeset), strict=True
            )
        ]
        upto = min((page.upto for page in pages if page.upto is not None), default=check.end)
        findings = _compare(check, pages, upto)
        check.bytes += sum(page.bytes for page in pages)
        check.at = upto
        return findings


@dataclass(slots=True)
class _Check:
    """One segment while it is checked."""

    loglet: LogletId
    segment: Segment
    end: Offset
    at: Offset  # everything below it was compared
    bytes: int = 0
    trimmed: Offset = Offset(0)  # noqa: RUF009 - a number; nothing is wanted below
    silent: set[int] = field(default_factory=set)  # replicas of which that was told already

    def take_bytes(self) -> int:
        """Bytes that were read since the call before."""
        taken, self.bytes = self.bytes, 0
        return taken


@dataclass(frozen=True, slots=True)
class _Page:
    """One replica's page, or why there is none."""

    holding: Holding
    upto: Offset | None = None  # what it covers; None: nothing, or all as one that has nothing
    checksums: Mapping[int, int] = field(default_factory=dict)  # by first offset
    bytes: int = 0

    @classmethod
    def of(cls, answer: log_server_pb2.DigestResponse | SharedLogError, *, lost: bool) -> _Page:
        """A page of an answer."""
        if isinstance(answer, LogletNotOpen):
            return cls(Holding(answered=True))
        if isinstance(answer, SharedLogError):
            gone = lost or isinstance(answer, WrongStorage)
            return cls(Holding(answered=False, lost=gone, error=str(answer)))
        return cls(
            Holding(
                answered=True,
                held=_ranges(answer.held),
                damaged=_ranges(answer.damaged),
                local_start=Offset(answer.status.local_start),
            ),
            Offset(answer.next),
            dict(zip(answer.batch_firsts, answer.batch_checksums, strict=True)),
            answer.bytes,
        )


def _compare(check: _Check, pages: Sequence[_Page], upto: Offset) -> list[admin_pb2.CheckFinding]:
    """What is wrong in [check.at, upto)."""
    segment = check.segment
    holdings = [page.holding for page in pages]
    check.trimmed = max(check.trimmed, trimmed_upto(holdings))
    want = clip(wanted(segment, upto, start=max(check.at, check.trimmed)), check.at, upto)
    index = segment.index
    findings: list[admin_pb2.CheckFinding] = []
    for place, (replica, holding) in enumerate(zip(segment.nodeset, holdings, strict=True)):
        node_id = replica.node_id
        if not holding.answered:
            if place not in check.silent:
                check.silent.add(place)
                text = f"another store than the segment names: {holding.error}"
                text = text if holding.lost else holding.error
                whole = (check.at, check.end)
                findings.append(_finding(_Finding.KIND_NO_ANSWER, index, whole, node_id, text))
            continue
        for it in missing_of(holding, want):
            text = f"{node_id} lacks it"
            findings.append(_finding(_Finding.KIND_MISSING, index, it, node_id, text))
        for it in intersect(list(holding.damaged), want):
            text = f"{node_id}'s bytes don't match their checksums"
            findings.append(_finding(_Finding.KIND_DAMAGED, index, it, node_id, text))
    for place, at in _disagreements(pages, want):
        node_id = segment.nodeset[place].node_id
        text = f"{node_id} has another batch at {at:,} than the other replicas"
        it = (Offset(at), Offset(at + 1))
        findings.append(_finding(_Finding.KIND_DISAGREE, index, it, node_id, text))
    if all(it.answered or it.lost for it in holdings):
        findings += [
            _finding(_Finding.KIND_LOST, index, it, "", "no replica can give it back")
            for it in nobody_has(holdings, want)
        ]
    return findings


def _disagreements(pages: Sequence[_Page], want: Ranges) -> list[tuple[int, int]]:
    """(replica, first offset) where a replica has another batch than most others have.

    A batch that is whole at two replicas begins at the same offset and has the same checksum.
    """
    found = []
    firsts = sorted({first for page in pages for first in page.checksums if covers(want, first)})
    wholes = [page.holding.whole for page in pages]
    for first in firsts:
        said = {
            place: page.checksums.get(first)
            for place, page in enumerate(pages)
            if covers(wholes[place], first)
        }
        if len(set(said.values())) > 1:
            ((usual, _),) = Counter(said.values()).most_common(1)
            found += [(place, first) for place, checksum in said.items() if checksum != usual]
    return found


def _finding(
    kind: admin_pb2.CheckFinding.Kind.ValueType,
    segment_index: int,
    where: Range,
    node_id: str,
    message: str,
) -> admin_pb2.CheckFinding:
    first, end = where
    return admin_pb2.CheckFinding(
        kind=kind,
        segment_index=segment_index,
        first=first,
        end=end,
        node_id=node_id,
        message=message,
    )


def _parts(
    findings: Sequence[admin_pb2.CheckFinding],
) -> Iterable[Sequence[admin_pb2.CheckFinding]]:
    """At least one part, though it may be empty: a step is progress."""
    return (
        findings[at : at + FINDINGS_MAX] for at in range(0, max(len(findings), 1), FINDINGS_MAX)
    )


def _asked(record: LogRecord, index: int | None) -> Sequence[Segment]:
    if index is None:
        return record.chain
    found = [segment for segment in record.chain if segment.index == index]
    if not found:
        raise InvalidArgument(f"log {record.name} has no segment {index}")
    return found


def _end_of(
    segment: Segment, statuses: Iterable[log_server_pb2.LogletStatus | SharedLogError | None]
) -> Offset:
    """The segment's end, or the highest committed tail that a replica of an open one knows."""
    if segment.end is not None:
        return segment.end
    known = [it.committed_tail for it in statuses if isinstance(it, log_server_pb2.LogletStatus)]
    return Offset(max(segment.base, *known) if known else segment.base)


def _replica_digest(
    loglet: LogletId,
    base: Offset,
    replica: Replica,
    status: log_server_pb2.LogletStatus | SharedLogError | None,
    holding: Holding,
) -> admin_pb2.ReplicaDigest:
    digest = admin_pb2.ReplicaDigest(
        replica=types_pb2.Replica(
            node_id=replica.node_id, storage_id=replica.storage_id, location=replica.location
        )
    )
    if isinstance(status, log_server_pb2.LogletStatus):
        digest.status.CopyFrom(status)
    elif isinstance(status, SharedLogError):
        digest.error = str(status)
    elif not holding.answered:
        digest.error = holding.error
    else:  # it never heard of the loglet, and so holds nothing of it
        empty = log_server_pb2.LogletStatus(
            loglet=loglet_id(loglet), base=base, local_start=base, local_tail=base
        )
        digest.status.CopyFrom(empty)
        digest.status.committed_tail = base
    return digest


def _digest_range(piece: Range, holdings: Sequence[Holding]) -> admin_pb2.DigestRange:
    first, end = piece
    kinds = [_kind_at(holding, first) for holding in holdings]
    return admin_pb2.DigestRange(
        first=first,
        end=end,
        holdings=kinds,
        under_replicated=any(kind != _Holding.HOLDING_HOLDS for kind in kinds),
    )


def _kind_at(holding: Holding, offset: Offset) -> admin_pb2.DigestRange.Holding.ValueType:
    if not holding.answered:
        return _Holding.HOLDING_LOST if holding.lost else _Holding.HOLDING_NO_ANSWER
    if covers(holding.damaged, offset):
        return _Holding.HOLDING_DAMAGED
    return _Holding.HOLDING_HOLDS if covers(holding.held, offset) else _Holding.HOLDING_HOLE


def _ranges(wire: Iterable[log_server_pb2.OffsetRange]) -> tuple[Range, ...]:
    return tuple(merge((Offset(it.first), Offset(it.end)) for it in wire))
