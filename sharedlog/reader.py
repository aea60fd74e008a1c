"""Reads one log from its log servers: walks the chain, picks replicas, goes round gaps and damage.

Used by clients in smart mode, and by a node's front door to serve everyone else.

Rules of this file. A segment's end comes from the chain alone. What a replica sends is checked
against its checksums and must continue exactly where the reader stands. Nothing is skipped: a
range that no replica can serve is an error.

Theory of operation. The reader stands at `position`. It opens one stream at a time, to a replica of
the segment that holds `position`, and hands out what comes. When the stream can't go on, it says
why:

    gap         the replica lacks or has damaged [first, end): another one must serve it
    corrupt     a checksum did not match on arrival: the same
    behind      the replica does not know that `position` is committed: another may
    silent      no message for `silence_s`, not even a heartbeat
    error       unreachable, another store, not opened here, ...

The first two are remembered for their range and replica, so that the reader does not ask again; the
others put the replica aside for a while. The description is fetched anew after each failure, for a
reader that lives long outlives the nodes that it began with.

`floor` is the highest offset known to be committed. Below it a record exists: not to get it is a
fault, and after `timeout_s` without progress an error: `DataLoss` if every replica said for itself
that it can't serve it, `Unreachable` otherwise. At or above it, waiting is what a follower does.

A follower whose replica is cut off from the sequencer would wait for ever beside a growing log, so
an idle one asks another replica now and then how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal, NamedTuple

from sharedlog.backoff import Backoff
from sharedlog.batch import Placement, check_placed
from sharedlog.clock import Clock
from sharedlog.config import ReaderConfig
from sharedlog.errors import (
    CorruptBatch,
    DataLoss,
    LogletNotOpen,
    OffsetOutOfRange,
    SharedLogError,
    Unreachable,
    WrongStorage,
)
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.rpc.methods import LIST_LOGLETS, READ_LOGLET
from sharedlog.rpc.transport import ClientStream, Transport
from sharedlog.v1 import log_server_pb2, types_pb2

log = logging.getLogger(__name__)

_RETRY_MIN_S: Final = 0.01
_RETRY_MAX_S: Final = 1.0
# So often each replica is asked again before data counts as lost: bytes can be damaged on their
# way, and a hole may have been filled since it was seen.
_MISSING_ROUNDS: Final = 2
_PEEK_TIMEOUT_S: Final = 1.0
START: Final = Offset(0)

Describe = Callable[[bool], Awaitable[types_pb2.LogDescription]]
Verify = Callable[[bytes], Placement]
_Stream = ClientStream[log_server_pb2.ReadLogletRequest, log_server_pb2.ReadLogletResponse]
_BadKind = Literal["hole", "damaged", "trimmed", "corrupt"]

_GAP_KINDS: Final[dict[int, _BadKind]] = {
    log_server_pb2.ReadGap.REASON_HOLE: "hole",
    log_server_pb2.ReadGap.REASON_DAMAGED: "damaged",
    log_server_pb2.ReadGap.REASON_TRIMMED: "trimmed",
}


class ReadChunk(NamedTuple):
    """What one message brought. No batches: a heartbeat."""

    batches: Sequence[bytes]  # placed batches, each continuing the one before; not clipped
    placements: Sequence[Placement]  # of the batches, one each
    committed_tail: Offset  # the highest known to the reader, exclusive


class _Bad(NamedTuple):
    """A range [first, end) that one replica can't serve."""

    storage_id: str
    first: int
    end: int
    kind: _BadKind


@dataclass(slots=True)
class _Aside:
    """A replica that is not to be asked before `until_s`."""

    until_s: float
    why: str
    backoff: Backoff


@dataclass(slots=True)
class _Progress:
    """Where one read stands."""

    position: Offset
    end: Offset | None
    floor: Offset
    since_s: float  # of the last progress, or sign that there is nothing to be had yet
    missing_rounds: int = 0
    refresh: bool = False  # the description failed us: fetch a new one
    bad: list[_Bad] = field(default_factory=list)
    aside: dict[str, _Aside] = field(default_factory=dict)
    preferred: str = ""  # storage_id of the replica that served last


class LogReader:
    """Reads batches of one log. One object serves any number of reads, also at the same time.

    `describe(refresh)` gives the log's description, a new one if `refresh`. `verify` checks a
    placed batch and returns its placement; a front door whose clients check again may pass
    `parse_placement`.
    """

    def __init__(
        self,
        transport: Transport,
        describe: Describe,
        clock: Clock,
        rng: Random,
        *,
        config: ReaderConfig | None = None,
        verify: Verify = check_placed,
    ) -> None:
        self._transport = transport
        self._describe = describe
        self._clock = clock
        self._rng = rng
        self._config = config or ReaderConfig()
        self._verify = verify

    async def read(
        self, start: Offset, end: Offset | None = None, *, committed: Offset = START
    ) -> AsyncGenerator[ReadChunk, None]:
        """Batches that cover [start, end), in order; without `end` it follows the log for ever.

        The first batch may begin below `start`, the last may reach beyond `end`. `committed` is a
        tail that the caller knows to be committed; below it, what can't be read is an error rather
        than something to wait for. Use `contextlib.aclosing`, so that leaving the loop ends the
        stream.

        Raises:
            DataLoss: no replica has a committed batch any more, by each one's own word.
            Unreachable: for `timeout_s` no replica served what is known to be committed.
            OffsetOutOfRange: `start` lies below what is kept of the log.
            LogNotFound: the log is gone.
        """
        at = _Progress(start, end, Offset(max(committed, 0)), self._clock.monotonic_s())
        while at.end is None or at.position < at.end:
            description = await self._fetch_description(at)
            if description is None:
                continue
            segment = _find_segment(description, at.position)
            if segment is None:
                at.refresh = True  # the chain is about to go on from here
                await self._clock.sleep(_RETRY_MIN_S * (0.5 + self._rng.random()))
                continue
            replica = self._choose(at, description, segment)
            if replica is None:
                await self._wait_or_fail(at, segment)
                continue
            stream = self._transport.stream(replica.address, READ_LOGLET)
            try:
                chunks = self._read_stream(at, stream, description, segment, replica)
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        yield chunk
            except (SharedLogError, TimeoutError) as error:
                self._put_aside(at, replica, segment, error)
            finally:
                stream.cancel()

    async def _fetch_description(self, at: _Progress) -> types_pb2.LogDescription | None:
        """The description, or None after a wait if nobody told it; an error after `timeout_s`."""
        try:
            description = await self._describe(at.refresh)
        except SharedLogError as error:
            overdue = self._clock.monotonic_s() - at.since_s > self._config.timeout_s
            if not error.retryable or overdue:
                raise
            await self._clock.sleep(_RETRY_MAX_S * (0.5 + self._rng.random()))
            return None
        at.refresh = False
        return description

    # Which replica.

    def _choose(
        self,
        at: _Progress,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
    ) -> _Replica | None:
        """A replica that may have `position`: the one that served last, or else any."""
        now_s = self._clock.monotonic_s()
        at.bad = [bad for bad in at.bad if bad.end > at.position]
        found = []
        for replica in _live_replicas(description, segment):
            aside = at.aside.get(replica.storage_id)
            bad = any(
                bad.storage_id == replica.storage_id and bad.first <= at.position for bad in at.bad
            )
            if not bad and (aside is None or aside.until_s <= now_s):
                found.append(replica)
        for replica in found:
            if replica.storage_id == at.preferred:
                return replica
        return self._rng.choice(found) if found else None

    def _put_aside(
        self,
        at: _Progress,
        replica: _Replica,
        segment: types_pb2.Segment,
        error: SharedLogError | TimeoutError,
    ) -> None:
        """The stream failed: remember it against this replica."""
        why = (
            f"silent for {self._config.silence_s:g} s" if isinstance(error, TimeoutError) else error
        )
        if isinstance(error, LogletNotOpen):
            if at.position < at.floor:
                # It never stored anything of this loglet: a hole from here on.
                end = segment.end if segment.HasField("end") else at.floor
                at.bad.append(_Bad(replica.storage_id, at.position, end, "hole"))
            else:
                at.since_s = self._clock.monotonic_s()  # nothing is there yet, and it said so
        elif isinstance(error, WrongStorage):
            why = f"{replica.node_id} has another store now"
        aside = at.aside.get(replica.storage_id)
        if aside is None:
            backoff = Backoff(self._rng, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
            aside = at.aside[replica.storage_id] = _Aside(0.0, "", backoff)
        aside.until_s = self._clock.monotonic_s() + aside.backoff.next_s()
        aside.why = f"{replica.node_id}: {why}"
        at.preferred = ""
        at.refresh = at.refresh or not isinstance(error, _Behind)
        fields = {"replica": replica.node_id, "position": at.position, "error": str(why)}
        log.debug("reader.replica_failed", extra=fields)

    async def _wait_or_fail(self, at: _Progress, segment: types_pb2.Segment) -> None:
        """No replica can be asked now: wait for one, unless none will ever do or the time is up."""
        missing = [bad for bad in at.bad if bad.first <= at.position]
        if len({bad.storage_id for bad in missing}) == len(segment.nodeset):
            at.missing_rounds += 1
            if at.missing_rounds > _MISSING_ROUNDS:
                raise _data_loss(at, missing)
            at.bad.clear()
        if self._clock.monotonic_s() - at.since_s > self._config.timeout_s:
            reasons = [aside.why for aside in at.aside.values()]
            reasons += [f"{bad.kind} on store {bad.storage_id[:8]}" for bad in missing]
            told = "; ".join(sorted(reasons)) or "no replica's node is known to be up"
            raise Unreachable(f"no replica serves offset {at.position}: {told}")
        at.refresh = True
        times = [aside.until_s for aside in at.aside.values()]
        wait_s = min(times, default=0.0) - self._clock.monotonic_s()
        await self._clock.sleep(min(_RETRY_MAX_S, max(_RETRY_MIN_S, wait_s)))

    # One stream.

    async def _read_stream(
        self,
        at: _Progress,
        stream: _Stream,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
        replica: _Replica,
    ) -> AsyncGenerator[ReadChunk, None]:
        """What one replica sends, until its end, a gap, or another replica would serve better.

        Raises what the replica raised, TimeoutError if it was silent, `_Behind` if it is behind.
        """
        request = _request(at, description, segment, replica)
        wanted = LogletId(LogId(description.log_id), segment.index)
        silence_s = self._config.silence_s
        async with asyncio.timeout(silence_s):
            await stream.send(request)
            await stream.end()
        idle_since_s = self._clock.monotonic_s()
        while True:
            async with asyncio.timeout(silence_s):
                message = await stream.receive()
            if message is None:
                break
            had = at.position
            good, placements, corrupt = check_batches(
                self._verify, message.batches, at.position, wanted
            )
            self._advance(at, replica, placements, Offset(message.committed_tail))
            yield ReadChunk(good, placements, at.floor)
            if corrupt is not None:
                end = Offset(at.position + 1)
                at.bad.append(_Bad(replica.storage_id, at.position, end, "corrupt"))
                fields = {"replica": replica.node_id, "offset": at.position, "error": str(corrupt)}
                log.warning("reader.corrupt_batch", extra=fields)
                return
            if message.HasField("gap"):
                self._on_gap(at, replica, message.gap)
                return
            if _reached(at, segment):
                return
            now_s = self._clock.monotonic_s()
            if at.position > had:
                idle_since_s = now_s
            elif at.position < at.floor and message.committed_tail <= at.position:
                raise _Behind(f"knows only offsets below {message.committed_tail}")
            elif now_s - idle_since_s >= self._config.idle_check_s:
                idle_since_s = now_s
                if await self._should_move(at, description, segment, replica):
                    return
        if not _reached(at, segment):
            at.refresh = at.refresh or not request.no_wait
            raise _Behind(f"ended its stream at {at.position}")

    def _advance(
        self, at: _Progress, replica: _Replica, placements: list[Placement], tail: Offset
    ) -> None:
        if placements:
            assert placements[-1].end > at.position
            at.position = placements[-1].end
            at.missing_rounds = 0
            at.preferred = replica.storage_id
            at.aside.pop(replica.storage_id, None)
        if placements or at.position >= at.floor:
            at.since_s = self._clock.monotonic_s()
        at.floor = max(at.floor, tail, at.position)

    def _on_gap(self, at: _Progress, replica: _Replica, gap: log_server_pb2.ReadGap) -> None:
        """The replica can't serve [first, end): it is not asked for that again."""
        kind = _GAP_KINDS.get(gap.reason, "hole")
        end = max(gap.end, at.position + 1)
        at.bad.append(_Bad(replica.storage_id, min(gap.first, at.position), end, kind))
        at.refresh = True
        at.preferred = ""
        fields = {"replica": replica.node_id, "first": gap.first, "end": gap.end, "reason": kind}
        log.log(logging.DEBUG if kind == "hole" else logging.WARNING, "reader.gap", extra=fields)

    async def _should_move(
        self,
        at: _Progress,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
        present: _Replica,
    ) -> bool:
        """Nothing came for a while: has the segment ended, or does another replica have more?"""
        try:
            newer = await self._describe(True)
            if _find_segment(newer, at.position) != segment:
                return True
            others = _live_replicas(newer, segment)
            others = [other for other in others if other.storage_id != present.storage_id]
            if not others:
                return False
            other = self._rng.choice(others)
            loglet = types_pb2.LogletId(log_id=description.log_id, segment_index=segment.index)
            answer = await self._transport.call(
                other.address,
                LIST_LOGLETS,
                log_server_pb2.ListLogletsRequest(storage_id=other.storage_id, loglets=[loglet]),
                timeout_s=_PEEK_TIMEOUT_S,
            )
        except SharedLogError:
            return False  # the stream that there is may still be the best one
        tails = [found.committed_tail for found in answer.loglets if found.loglet == loglet]
        if max(tails, default=0) <= at.position:
            return False
        at.floor = Offset(max(at.floor, *tails))
        at.preferred = other.storage_id
        return True


def check_batches(
    verify: Verify, batches: Sequence[bytes], position: Offset, wanted: LogletId | None
) -> tuple[list[bytes], list[Placement], CorruptBatch | None]:
    """The batches up to the first that is wrong, their placements, and what is wrong with it.

    They must be whole, of the `wanted` loglet if that is known, and go on at `position` without a
    gap; the first may begin below it.
    """
    good: list[bytes] = []
    placements: list[Placement] = []
    for placed in batches:
        try:
            placement = verify(placed)
        except CorruptBatch as error:
            return good, placements, error
        first, end = placement.first, placement.end
        if wanted is not None and placement.loglet != wanted:
            wrong = CorruptBatch(f"a batch of {placement.loglet} came for {wanted}")
            return good, placements, wrong
        if not (first == position if placements else first <= position < end):
            wrong = CorruptBatch(f"[{first}, {end}) does not go on at {position}")
            return good, placements, wrong
        good.append(placed)
        placements.append(placement)
        position = end
    return good, placements, None


class _Behind(SharedLogError):
    """The replica can't go on although it did nothing wrong. Never leaves this module."""

    retryable = True


class _Replica(NamedTuple):
    node_id: str
    storage_id: str
    address: str


def _live_replicas(
    description: types_pb2.LogDescription, segment: types_pb2.Segment
) -> list[_Replica]:
    """Members of the nodeset whose node serves the very store that the chain names."""
    nodes = {node.node_id: node for node in description.nodes}
    found = []
    for member in segment.nodeset:
        node = nodes.get(member.node_id)
        if node is not None and node.address and node.storage_id == member.storage_id:
            found.append(_Replica(member.node_id, member.storage_id, node.address))
    return found


def _find_segment(
    description: types_pb2.LogDescription, position: Offset
) -> types_pb2.Segment | None:
    """The segment that holds `position`; None if the chain does not reach it yet."""
    for segment in description.chain:
        if position < segment.base:
            break
        if not segment.HasField("end") or position < segment.end:
            return segment
    else:
        return None
    raise OffsetOutOfRange(offset=position, tail=None)


def _request(
    at: _Progress,
    description: types_pb2.LogDescription,
    segment: types_pb2.Segment,
    replica: _Replica,
) -> log_server_pb2.ReadLogletRequest:
    closed = segment.HasField("end")
    ends = [end for end in (at.end, segment.end if closed else None) if end is not None]
    request = log_server_pb2.ReadLogletRequest(
        storage_id=replica.storage_id,
        loglet=types_pb2.LogletId(log_id=description.log_id, segment_index=segment.index),
        start=at.position,
        # Below the floor nothing is worth waiting for: who is behind says so, and another is asked.
        no_wait=at.end is not None and at.end <= at.floor,
    )
    if ends:
        request.end = min(ends)
    if closed:
        request.segment_end = segment.end
    return request


def _reached(at: _Progress, segment: types_pb2.Segment) -> bool:
    """The read, or the segment, is done."""
    return (at.end is not None and at.position >= at.end) or (
        segment.HasField("end") and at.position >= segment.end
    )


def _data_loss(at: _Progress, missing: Sequence[_Bad]) -> DataLoss:
    end = min(bad.end for bad in missing)
    if at.end is not None:
        end = min(end, at.end)
    kinds = ", ".join(sorted({bad.kind for bad in missing}))
    message = f"offsets [{at.position}, {end}) can't be read from any replica ({kinds})"
    return DataLoss(message, first=at.position, end=max(end, at.position + 1))
