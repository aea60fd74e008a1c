"""Backfill: what a replica of a segment lacks, or has damaged, is copied to it from the others.

A log does not wait for a slow replica, so committed records may lie on a write quorum only (field
note 31), and a disk may damage what it has. Nothing of that is ever answered wrongly, but until it
is made good one more fault costs more than it should.

**Closed segments.** Everything in [base, end) is wanted of every replica, but for what an operator
has given up. The chain's end proves that all of it is committed, which is the evidence that a
repair store carries for the prefix rule. A member that never heard of the loglet is sealed first:
that creates it.

**Open segments.** Wanted is what lies below the committed tail that some replica knows: a tail that
is known is true. The region above it belongs to the sequencer alone and is never touched, and
nothing is sealed (field note 32). A replica that has not opened the loglet yet is left alone.

**What one replica has trimmed** is wanted of nobody (`node/coverage.py`). Whoever is behind with
that is brought to the same local start: a replica that was away, and a new one, which is not to
look as if it lacked what all others have dropped.

Copying is idempotent: equal bytes are an acknowledgement, whoever else stores them. `mend` says
what it found, and never raises for a replica that is away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from metadata.records import LogRecord, Replica, Segment
from node.controller.metrics import ControllerMetrics
from node.controller.pace import Pace
from node.coverage import (
    Copy,
    Holding,
    Range,
    Ranges,
    clip,
    elsewhere,
    intersect,
    merge,
    missing_of,
    nobody_has,
    plan_copies,
    size,
    subtract,
    trimmed_upto,
    untrimmed,
    wanted,
)
from node.peers import in_parallel
from node.replica_door import ReplicaDoor
from sharedlog.batch import parse_placement
from sharedlog.errors import LogletNotOpen, SharedLogError
from sharedlog.ids import LogletId, NodeId, Offset
from sharedlog.v1 import log_server_pb2

log = logging.getLogger("node")

ROUNDS_MAX: Final = 4
"""Looks at one segment in a row: each copy may find out about more damage."""

_DAMAGED = log_server_pb2.ReadGap.REASON_DAMAGED


@dataclass(slots=True)
class Mended:
    """What `mend` found, after what it did."""

    upto: Offset  # [base or the asked start, upto) was looked at
    complete: bool = False  # every replica holds all of it
    lacking: int = 0  # copies of records that are not there, or nobody answers for
    away: tuple[NodeId, ...] = ()  # replicas that did not answer, and may come back
    lost: tuple[NodeId, ...] = ()  # replicas whose stores will not
    nobody: tuple[Range, ...] = ()  # what none of those that answered can give
    sealed: bool = False  # an open segment, which some replica has sealed
    copied_bytes: int = 0
    errors: tuple[str, ...] = ()  # why copies failed


@dataclass(slots=True)
class _Look:
    """One segment that is being mended."""

    loglet: LogletId
    segment: Segment
    committed: Offset  # everything below it is committed
    want: Ranges
    verify: bool
    told: Callable[[str], None]
    copied_bytes: int = 0
    damaged: dict[int, list[Range]] = field(default_factory=dict)  # found while copying, by replica
    failed: set[int] = field(default_factory=set)  # replicas that are left alone from now on
    errors: list[str] = field(default_factory=list)

    @property
    def closed(self) -> bool:
        """The chain says where it ends."""
        return self.segment.end is not None

    @property
    def progress(self) -> tuple[int, int, int]:
        """Changes as long as another round may bring more."""
        damaged = sum(size(ranges) for ranges in self.damaged.values())
        return self.copied_bytes, damaged, size(self.want)


def _silent(_: str) -> None:
    """For whoever does not want to be told how it goes."""


class Backfill:
    """See the module's docstring. Any number of segments may be mended at the same time."""

    def __init__(self, *, door: ReplicaDoor, pace: Pace, metrics: ControllerMetrics) -> None:
        self._door = door
        self._pace = pace
        self._metrics = metrics

    async def mend(
        self,
        record: LogRecord,
        segment: Segment,
        *,
        start: Offset | None = None,
        only: Ranges | None = None,
        verify: bool = False,
        told: Callable[[str], None] = _silent,
    ) -> Mended:
        """Bring every replica of a segment that answers to all that is wanted of it.

        From `start` on, and `only` these ranges, if given. `verify` reads every batch, to find
        damage; without it only what is missing is seen, and what damage the copying meets. `told`
        is called with one line for people when something is copied.

        **Cancellation:** safe: what was copied stays.
        """
        loglet = record.loglet(segment)
        end, sealed = segment.end, False
        if end is None:
            end, sealed = await self._known_tail(segment, loglet)
        want = wanted(segment, end, start=start)
        if only is not None:
            want = intersect(want, only)
        look = _Look(loglet, segment, end, want, verify, told)
        holdings = await self._holdings(look)
        for _ in range(ROUNDS_MAX):
            copies = [it for it in plan_copies(holdings, look.want) if it.target not in look.failed]
            if not copies:
                break
            before = look.progress
            for copy in copies:
                await self._copy(look, copy)
            holdings = await self._holdings(look)
            if look.progress == before:
                break
        # What the archive alone has is lacking nowhere.
        look.want = subtract(look.want, elsewhere(holdings, look.want, record.archived_end))
        await self._tell_ends(look, holdings)
        await self._trim(look, holdings)
        return _judge(look, holdings, sealed=sealed)

    async def copy_to(
        self,
        record: LogRecord,
        segment: Segment,
        target: Replica,
        *,
        told: Callable[[str], None] = _silent,
    ) -> Mended:
        """Fill a new store with all of an ended segment, sealed first, and verify what it holds.

        The store joins the nodeset for this look only; the caller changes the chain, if the result
        is complete, and only then tells the store where the segment ends: an end that is told
        before the chain says it might be another one in the end.

        Raises:
            SharedLogError: the target does not answer, or refuses.
        """
        assert segment.end is not None
        loglet = record.loglet(segment)
        await self._door.seal(target, loglet, segment.base)
        joined = replace(segment, nodeset=(target, *segment.nodeset))
        look = _Look(loglet, joined, segment.end, wanted(segment, segment.end), False, told)
        holdings = await self._holdings(look)
        look.want = subtract(look.want, elsewhere(holdings, look.want, record.archived_end))
        await self._trim(look, holdings)
        rest: Ranges = look.want
        for _ in range(ROUNDS_MAX):
            before = look.progress
            await self._fill(look)
            # Only what reads back with its checksum counts: the chain will rely on it. What was
            # there before, and is damaged, is found here, and copied in another round.
            filled = await self._door.holding(
                target, loglet, segment.base, segment.end, verify=True
            )
            rest = nobody_has([filled], look.want) if filled.answered else look.want
            look.damaged[0] = list(filled.damaged)
            if not rest or 0 in look.failed or look.progress == before:
                break
        return Mended(
            upto=segment.end,
            complete=not rest,
            nobody=tuple(rest),
            copied_bytes=look.copied_bytes,
            errors=tuple(look.errors),
        )

    async def _fill(self, look: _Look) -> None:
        """Copy to the first replica of the look what it lacks or is known to have damaged."""
        for _ in range(ROUNDS_MAX):
            holdings = await self._holdings(look)
            copies = [it for it in plan_copies(holdings, look.want) if it.target == 0]
            before = look.progress
            for copy in copies:
                await self._copy(look, copy)
            if not copies or 0 in look.failed or look.progress == before:
                return

    async def tell_end(
        self, record: LogRecord, segment: Segment, servers: Sequence[Replica]
    ) -> None:
        """Tell these where a segment ends, as the chain says: their readers go on. Best effort."""
        assert segment.end is not None
        for replica in servers:
            try:
                await self._door.tell_end(replica, record.loglet(segment), segment.end)
            except SharedLogError as error:
                fields = {"server": replica.node_id, "error": str(error)}
                log.debug("backfill.end_not_told", extra=fields)

    async def _known_tail(self, segment: Segment, loglet: LogletId) -> tuple[Offset, bool]:
        """The highest committed tail of an open segment that some replica knows; is one sealed?"""

        async def ask(replica: Replica) -> tuple[int, bool]:
            try:
                status = await self._door.status(replica, loglet)
            except SharedLogError:
                return 0, False
            return (0, False) if status is None else (status.committed_tail, status.sealed)

        found = await in_parallel(ask, segment.nodeset)
        tail = max(segment.base, *(committed for committed, _ in found))
        return Offset(tail), any(sealed for _, sealed in found)

    async def _holdings(self, look: _Look) -> list[Holding]:
        """What each replica holds, with the damage that the copying has met.

        What one of them has trimmed is not wanted any more.
        """
        segment = look.segment
        if not look.want:
            return [Holding(answered=True, told_end=True) for _ in segment.nodeset]
        first, end = look.want[0][0], look.want[-1][1]

        async def ask(replica: Replica) -> Holding:
            return await self._door.holding(replica, look.loglet, first, end, verify=look.verify)

        found = await in_parallel(ask, segment.nodeset)
        look.want = untrimmed(look.want, found)
        for index, ranges in look.damaged.items():
            was = found[index]
            damaged = tuple(clip(merge((*was.damaged, *ranges)), first, end))
            found[index] = replace(was, damaged=damaged)
        return found

    async def _copy(self, look: _Look, copy: Copy) -> None:
        """One range to one replica, from whichever source has it; failures are noted."""
        target = look.segment.nodeset[copy.target]
        at = copy.first
        # Not always from the first: the logs of a nodeset share the work of being read.
        turn = (look.loglet.log_id + look.loglet.segment_index) % len(copy.sources)
        sources = (*copy.sources[turn:], *copy.sources[:turn])
        for index in sources:
            if copy.target in look.failed:
                return
            if index in look.failed or at >= copy.end:
                continue
            source = look.segment.nodeset[index]
            look.told(f"copying {at:,} to {copy.end:,} from {source.node_id} to {target.node_id}")
            at = await self._copy_from(look, copy, index, at)

    async def _copy_from(self, look: _Look, copy: Copy, index: int, first: Offset) -> Offset:
        """Copy from one source as far as it goes; returns how far that is."""
        source, target = look.segment.nodeset[index], look.segment.nodeset[copy.target]
        at = first

        async def take(batches: Sequence[bytes]) -> None:
            nonlocal at
            bytes_taken = sum(map(len, batches))
            await self._pace.spend(bytes_taken)
            try:
                await self._store(look, target, batches)
            except SharedLogError as error:
                look.failed.add(copy.target)
                if look.closed or not isinstance(error, LogletNotOpen):
                    look.errors.append(f"{target.node_id}: {error}")
                raise
            at = max(at, parse_placement(batches[-1]).end)
            look.copied_bytes += bytes_taken
            self._metrics.copied_bytes.inc(bytes_taken)
            if copy.target in look.damaged:
                stored = merge((it.first, it.end) for it in map(parse_placement, batches))
                look.damaged[copy.target] = subtract(merge(look.damaged[copy.target]), stored)

        try:
            if not look.closed:  # it serves only what it knows to be committed
                await self._door.raise_tail(source, look.loglet, look.committed)
            gap = await self._door.read(
                source, look.loglet, at, copy.end, segment_end=look.segment.end, take=take
            )
        except SharedLogError as error:
            if copy.target not in look.failed:
                look.failed.add(index)
                look.errors.append(f"{source.node_id}: {error}")
            return at
        if gap is not None:
            at = max(at, Offset(gap.first))
            if gap.reason == _DAMAGED:
                fields = {"loglet": str(look.loglet), "server": source.node_id}
                log.warning("backfill.damaged", extra={**fields, "first": gap.first})
                look.damaged.setdefault(index, []).append((Offset(gap.first), Offset(gap.end)))
        return at

    async def _store(self, look: _Look, target: Replica, batches: Sequence[bytes]) -> None:
        try:
            await self._door.repair(target, look.loglet, look.committed, batches)
        except LogletNotOpen:
            if not look.closed:
                raise
            await self._door.seal(target, look.loglet, look.segment.base)
            await self._door.repair(target, look.loglet, look.committed, batches)

    async def _tell_ends(self, look: _Look, holdings: Sequence[Holding]) -> None:
        """Whoever was away when the segment ended may still have readers who wait for it."""
        end = look.segment.end
        if end is None:
            return
        for replica, holding in zip(look.segment.nodeset, holdings, strict=True):
            if holding.answered and holding.held and not holding.told_end:
                try:
                    await self._door.tell_end(replica, look.loglet, end)
                except SharedLogError as error:
                    look.errors.append(f"{replica.node_id}: {error}")

    async def _trim(self, look: _Look, holdings: Sequence[Holding]) -> None:
        """Whoever keeps less back than another is told that all of that is committed, to drop it.

        Best effort: it is no lack, and whoever trims the log tells them all again.
        """
        upto = trimmed_upto(holdings)
        for replica, holding in zip(look.segment.nodeset, holdings, strict=True):
            if not holding.answered or holding.local_start >= upto:
                continue
            try:
                await self._door.raise_tail(replica, look.loglet, upto)
                await self._door.trim(replica, look.loglet, upto)
            except SharedLogError as error:
                fields = {"server": replica.node_id, "error": str(error)}
                log.debug("backfill.not_trimmed", extra=fields)


def _judge(look: _Look, holdings: Sequence[Holding], *, sealed: bool) -> Mended:
    pairs = list(zip(look.segment.nodeset, holdings, strict=True))
    missing = [
        missing_of(holding, look.want) or _wanted_of(holding.damaged, look.want)
        for _, holding in pairs
        if holding.answered
    ]
    nobody = nobody_has(holdings, look.want)
    silent = sum(not holding.answered for holding in holdings)
    return Mended(
        upto=look.committed,
        lacking=sum(map(size, missing)) + silent * size(look.want),
        complete=all(holding.answered for _, holding in pairs) and not any(missing),
        away=tuple(it.node_id for it, held in pairs if not held.answered and not held.lost),
        lost=tuple(it.node_id for it, held in pairs if not held.answered and held.lost),
        nobody=tuple(nobody),
        sealed=sealed,
        copied_bytes=look.copied_bytes,
        errors=tuple(look.errors),
    )


def _wanted_of(ranges: Ranges, want: Ranges) -> list[Range]:
    """What of `ranges` is wanted."""
    return [part for first, end in want for part in clip(ranges, first, end)]
