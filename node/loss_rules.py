"""What an operator may give up of a segment, and what is lost with it. Pure functions.

**When.** Only what nothing else can mend. A replica that is merely silent may hold the records, so
while there is one, nothing is given up: it must come back, or its store be declared lost. An open
segment that could be ended in the normal way is refused too. What the normal way can do is not
judged here a second time: `loglet/recovery.py` is run dry, over what the replicas hold and with as
many replacement servers as it may want.

**What.** Of a closed segment: the ranges that no replica can give back. An open one ends at the
highest offset that any replica holds or knows to be committed; what nobody can give back below that
is lost, and if the replicas that have a vote are no seal quorum, records above it may be lost as
well, which nobody can count: a range without length at the end says so. What a replica has trimmed
is not lost, nor is what is archived: a segment never ends below that, for offsets must not be given
a second time; where no replica has it, it counts as trimmed from then on (`Verdict.in_archive`).

**A store that was declared lost and answers** all the same has no vote, for it may be an older
state of itself; what it holds is true, and taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loglet.messages import SealResponse
from loglet.recovery import SegmentRecovery
from loglet.recovery_steps import (
    AwaitAnswers,
    CopyRange,
    EndSegment,
    SealReplacements,
    StopAttempt,
)
from metadata.quorum import QuorumRule
from metadata.records import Replica, Segment
from node.coverage import (
    Holding,
    Range,
    clip,
    covers,
    elsewhere,
    nobody_has,
    subtract,
    untrimmed,
    wanted,
)
from sharedlog.errors import InvalidArgument
from sharedlog.ids import NodeId, Offset, StorageId

_NONE: Final = Offset(0)
_NO_NODE: Final = "/"  # no node's id begins so


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of an open segment, as it answered; tails only count if it did."""

    node_id: str
    holding: Holding
    local_tail: Offset = _NONE
    committed_tail: Offset = _NONE
    last_timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would be given up; a range without length: an unknown number of records."""

    end: Offset
    lost: tuple[Range, ...]
    in_archive: tuple[Range, ...] = ()  # what no replica has, and the archive does


def judge_closed(
    name: str, segment: Segment, holdings: Sequence[Holding], *, archived_end: Offset = _NONE
) -> Verdict:
    """What of a closed segment is lost. All below `archived_end` is archived or purged.

    Raises:
        InvalidArgument: nothing is, or a replica is silent.
    """
    assert segment.end is not None
    members = [
        Member(replica.node_id, holding)
        for replica, holding in zip(segment.nodeset, holdings, strict=True)
    ]
    _check_nobody_silent(name, segment, members)
    want = untrimmed(wanted(segment, segment.end), holdings)
    archived = elsewhere(holdings, want, archived_end)
    lost = subtract(nobody_has(holdings, want), archived)
    if not lost:
        whole = (
            "its replicas and the archive" if archived or segment.is_archived else "its replicas"
        )
        raise InvalidArgument(
            f"log {name}, segment {segment.index}: {whole} have all of it; nothing is lost"
        )
    return Verdict(segment.end, tuple(lost), tuple(archived))


def judge_open(
    name: str, segment: Segment, members: Sequence[Member], *, archived_end: Offset = _NONE
) -> Verdict:
    """Where an open segment that can't be repaired would end, and what of it is lost.

    All below `archived_end` is archived or purged.

    Raises:
        InvalidArgument: it can be repaired, or a replica is silent.
    """
    _check_nobody_silent(name, segment, members)
    outcome = _normal_outcome(name, segment, members)
    # An end below what is archived no chain takes.
    if isinstance(outcome, EndSegment) and outcome.end >= archived_end:
        raise InvalidArgument(
            f"log {name}, segment {segment.index}: enough of its replicas answer to end it without "
            "a loss; the log mends itself as soon as there are enough log servers, or "
            "`sharedlog log seal` does it now"
        )
    answered = [it for it in members if it.holding.answered]
    end = max(segment.base, archived_end)
    for member in answered:
        end = max(end, member.local_tail, member.committed_tail)
    holdings = [it.holding for it in members]
    want = untrimmed(wanted(segment, end), holdings)
    archived = elsewhere(holdings, want, archived_end)
    lost = subtract(nobody_has(holdings, want), archived)
    voters = {at for at, it in enumerate(members) if it.holding.answered and not it.holding.lost}
    if not QuorumRule.of(segment).is_seal_quorum(voters):
        lost.append((end, end))
    return Verdict(end, tuple(lost), tuple(archived))


def _normal_outcome(
    name: str, segment: Segment, members: Sequence[Member]
) -> EndSegment | StopAttempt:
    """How a reconfiguration of the segment would end, with nothing but these replicas' data."""
    left_out: frozenset[int] = frozenset()
    while True:
        recovery = SegmentRecovery(
            name,
            segment,
            lost=[at for at, member in enumerate(members) if member.holding.lost],
            left_out=left_out,
            candidates=[
                Replica(
                    node_id=NodeId(f"{_NO_NODE}{at}"),
                    storage_id=StorageId(f"{_NO_NODE}{at}"),
                    location=replica.location,
                )
                for at, replica in enumerate(segment.nodeset)
            ],
        )
        for server, member in enumerate(members):
            recovery.on_sealed(server, _answer_of(member))
        recovery.on_patience_over()
        outcome = _follow(recovery, members)
        if isinstance(outcome, EndSegment) or not outcome.leave_out:
            return outcome
        left_out |= outcome.leave_out


def _follow(recovery: SegmentRecovery, members: Sequence[Member]) -> EndSegment | StopAttempt:
    """Its steps, carried out on what the replicas hold."""
    base = recovery.segment.base
    while True:
        step = recovery.advance()
        match step:
            case SealReplacements(servers):
                for server in servers:
                    recovery.on_sealed(server, SealResponse(base, base))
            case CopyRange(first, end, sources, targets):
                source = sources[0]
                holding = members[source].holding if source < len(members) else None
                lacking = subtract([(first, end)], holding.whole) if holding is not None else []
                at = lacking[0][0] if lacking else end
                for target in targets if first < at else ():
                    recovery.on_copied(target, first, at)
                for lacking_first, lacking_end in lacking:
                    damaged = holding is not None and covers(holding.damaged, lacking_first)
                    recovery.on_source_lacks(source, lacking_first, lacking_end, damaged=damaged)
            case EndSegment() | StopAttempt():
                return step
            case AwaitAnswers():
                raise AssertionError("nothing is awaited once patience is over")


def _answer_of(member: Member) -> SealResponse:
    """What the replica's seal would say."""
    committed, local = member.committed_tail, member.local_tail
    damaged = clip(member.holding.damaged, committed, local)
    return SealResponse(
        *(local, committed, member.last_timestamp_ms, damaged), member.holding.local_start
    )


def _check_nobody_silent(name: str, segment: Segment, members: Sequence[Member]) -> None:
    silent = [it.node_id for it in members if not it.holding.answered and not it.holding.lost]
    if silent:
        raise InvalidArgument(
            f"log {name}, segment {segment.index}: {', '.join(silent)} may hold what the others "
            "lack, and does not answer; bring it back, or, if its disk is gone for good, say so: "
            f"`sharedlog node drain {silent[0]} --data-loss`"
        )
