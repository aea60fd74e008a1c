"""Reads one log from its log servers: walks the chain, picks replicas, goes round gaps and damage.

Used by clients in smart mode, and by a node's front door to serve everyone else.

Rules of this file. A segment's end comes from the chain alone. What a replica sends is checked
against its checksums, must continue exactly where the reader stands, and never reaches beyond the
end of its segment. Nothing is skipped: a range that no replica can serve is an error.

Theory of operation. The reader stands at `position`, with a slice of the chain that holds it. It
opens one stream at a time, to a replica of the segment there, and hands out what comes. When the
stream can't go on, it says why:

    gap         the replica lacks or has damaged [first, end): another one must serve it
    corrupt     a checksum did not match on arrival, or the batch does not belong here: likewise
    told end    the replica was told that the segment ends; the reader asks for the chain until that
                says so too, and goes on in the next segment
    behind      the replica does not know that `position` is committed: another may
    silent      no message for `silence_s`, not even a heartbeat; no first one for a second
    error       unreachable, another store, not opened here, ...

Gaps and corrupt batches are remembered for their range and replica, so that the reader does not ask
again, until no replica is left: a hole may have been filled since it was seen. The others put the
replica aside for a while. The description is fetched anew after each failure, for a reader that
lives long outlives the nodes that it began with.

`floor` is the highest offset known to be committed; the chain's ends are. Below it a record exists:
not to get it is a fault, and after `timeout_s` without progress an error: `DataLoss` if every
replica said for itself that it can't serve it, `Unreachable` otherwise. At or above it, waiting is
what a follower does.

For one key the log servers leave out batches that can't have it, and say which ranges those take.
The reader goes on behind them as behind a batch: every offset is in the one or in the other.

What was trimmed from the log servers is read from the archive, which every node serves as if it
were one more replica of each segment; and what is archived may be read there when no log server
can serve it. Where the archive ends, the log servers go on.

A range whose loss an operator has accepted is a `DataLoss` at once, whatever some replica still has
of it: all readers see the same gap, and can go on at its end.

A follower whose replica is cut off from the sequencer would wait for ever beside a growing log, so
an idle one asks another replica now and then how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from random import Random
from typing import Final, Protocol

from sharedlog.backoff import Backoff
from sharedlog.batch import check_placed
from sharedlog.clock import Clock
from sharedlog.config import ReaderConfig
from sharedlog.errors import (
    CorruptBatch,
    LogletNotOpen,
    OffsetOutOfRange,
    Purged,
    SharedLogError,
    Unreachable,
    WrongStorage,
)
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.key_digest import hash_key
from sharedlog.read_progress import (
    START,
    Aside,
    Bad,
    BadKind,
    Filter,
    Progress,
    ReadChunk,
    Replica,
    Verify,
    accepted_loss,
    archive_stop,
    check_batches,
    data_loss,
    every_source,
    live_replicas,
    lost_at,
    reached,
    read_request,
    sources,
)
from sharedlog.route import find_segment
from sharedlog.rpc.methods import LIST_LOGLETS, READ_LOGLET
from sharedlog.rpc.read_answer import DAMAGED, HOLE, TRIMMED, Gap, ReadAnswer
from sharedlog.rpc.transport import ClientStream, Transport
from sharedlog.v1 import log_server_pb2, types_pb2

log = logging.getLogger(__name__)

_RETRY_MIN_S: Final = 0.01
_RETRY_MAX_S: Final = 1.0
# So often each replica is asked again before data counts as lost: bytes can be damaged on their
# way, and a hole may have been filled since it was seen.
_MISSING_ROUNDS: Final = 2
_PEEK_TIMEOUT_S: Final = 1.0
_FIRST_ANSWER_S: Final = 1.0  # of a stream: its state, or what it has, comes at once
_END_WAIT_MIN_S: Final = 0.005  # until the chain says what a replica was told
_END_WAIT_MAX_S: Final = 0.25


class Describe(Protocol):
    """Tells the log's description: at least the segment of `position`, if the chain has it."""

    def __call__(
        self, position: Offset, /, *, refresh: bool = False, min_version: int = 0
    ) -> Awaitable[types_pb2.LogDescription]:
        """`refresh`: a new one. `min_version`: there is a sign that the chain has come so far.

        Each `refresh` is to ask another node, for one that is cut off from the metadata store tells
        an old chain for as long as it is.
        """
        ...


_Stream = ClientStream[log_server_pb2.ReadLogletRequest, ReadAnswer]

_GAP_KINDS: Final[dict[int, BadKind]] = {
    HOLE: "hole",
    DAMAGED: "damaged",
    TRIMMED: "trimmed",
}


class LogReader:
    """Reads batches of one log. One object serves any number of reads, also at the same time.

    `describe` tells the chain. `verify` checks a placed batch and returns its placement; a front
    door whose clients check again may pass `parse_placement`. With `headers_only` batches come
    without their payloads, which only `parse_placement` can check. `prefer` is the storage_id of a
    replica that is asked first.
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
        headers_only: bool = False,
        prefer: str = "",
    ) -> None:
        self._transport = transport
        self._describe = describe
        self._clock = clock
        self._rng = rng
        self._config = config or ReaderConfig()
        self._verify = verify
        self._headers_only = headers_only
        self._prefer = prefer

    async def read(
        self,
        start: Offset,
        end: Offset | None = None,
        *,
        committed: Offset = START,
        key: bytes | None = None,
        include_control: bool = False,
    ) -> AsyncGenerator[ReadChunk, None]:
        """Batches that cover [start, end), in order; without `end` it follows the log for ever.

        The first batch may begin below `start`, the last may reach beyond `end`. `committed` is a
        tail that the caller knows to be committed; below it, what can't be read is an error rather
        than something to wait for.

        With a `key` batches that can't have it may be missing; their offsets are in the `skipped`
        of the chunks. Batches that come may lack it, too. `include_control`: those that are no
        batches of records come all the same.

        Use `contextlib.aclosing`, so that leaving the loop ends the stream.

        Raises:
            Purged: `start` lies below the log's start, and is gone for good; reading can begin at
            its `start`.
            DataLoss: no replica has a committed batch any more, by each one's own word, or the loss
            was accepted; then reading can begin again at its `end`.
            Unreachable: for `timeout_s` no replica served what is known to be committed.
            OffsetOutOfRange: `start` lies below what is kept of the log.
            LogNotFound: the log is gone.
            InvalidArgument: the key is not bytes.
        """
        only = None if key is None else Filter(hash_key(key), include_control)
        at = Progress(
            start,
            end,
            Offset(max(committed, 0)),
            self._clock.monotonic_s(),
            preferred=self._prefer,
        )
        while at.end is None or at.position < at.end:
            segment = await self._find(at)
            if segment is None:
                continue
            assert at.description is not None
            if at.position < at.description.start:
                raise Purged(offset=at.position, start=Offset(at.description.start))
            lost = lost_at(segment, at.position)
            if lost is not None:
                raise accepted_loss(lost, at.position)
            replica = self._choose(at, at.description, segment)
            if replica is None:
                await self._wait_or_fail(at, segment)
                continue
            stream = self._transport.stream(replica.address, READ_LOGLET)
            try:
                chunks = self._read_stream(at, stream, at.description, segment, replica, only=only)
                async with contextlib.aclosing(chunks):
                    async for chunk in chunks:
                        yield chunk
            except (SharedLogError, TimeoutError) as error:
                self._put_aside(at, replica, segment, error)
            finally:
                stream.cancel()

    # The chain.

    async def _find(self, at: Progress) -> types_pb2.Segment | None:
        """The segment that holds `position`; None after a wait if the chain could not be had."""
        known = at.description
        if known is not None and not at.refresh and not at.told_end:
            segment = find_segment(known, at.position)
            if segment is not None:
                return self._enter(at, segment)
        try:
            if at.told_end and known is not None:
                await self._await_end(at, known)
            at.description = await self._describe(at.position, refresh=at.refresh)
        except SharedLogError as error:
            overdue = self._clock.monotonic_s() - at.since_s > self._config.timeout_s
            if not error.retryable or overdue:
                raise
            await self._clock.sleep(_RETRY_MAX_S * (0.5 + self._rng.random()))
            return None
        at.refresh = at.told_end = False
        segment = find_segment(at.description, at.position)
        if segment is not None:
            return self._enter(at, segment)
        if at.description.chain and at.position < at.description.chain[0].base:
            raise OffsetOutOfRange(offset=at.position, tail=None)
        at.refresh = True  # the chain is about to go on from here
        await self._clock.sleep(_RETRY_MIN_S * (0.5 + self._rng.random()))
        return None

    def _enter(self, at: Progress, segment: types_pb2.Segment) -> types_pb2.Segment:
        """The chain says that all below the segment's base is committed, and its end if closed."""
        proved = segment.end if segment.HasField("end") else segment.base
        at.floor = max(at.floor, Offset(proved))
        return segment

    async def _await_end(self, at: Progress, known: types_pb2.LogDescription) -> None:
        """Wait until the chain says that the segment has ended which `known` shows as open.

        It has: who told the replica had changed the chain before. A node's view may be behind.
        """
        backoff = Backoff(self._rng, min_s=_END_WAIT_MIN_S, max_s=_END_WAIT_MAX_S)
        before = find_segment(known, at.position)
        give_up_s = self._clock.monotonic_s() + self._config.timeout_s
        version = known.chain_version
        while self._clock.monotonic_s() < give_up_s:
            found = await self._describe(at.position, refresh=True, min_version=version + 1)
            now = find_segment(found, at.position)
            if now is not None and (before is None or now.index != before.index):
                break
            if now is not None and now.HasField("end"):
                break
            version = max(version, found.chain_version)
            await self._clock.sleep(backoff.next_s())
        at.refresh = False  # what `describe` has now is new

    # Which replica.

    def _choose(
        self,
        at: Progress,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
    ) -> Replica | None:
        """A replica that may have `position`: the one that served last, or else any.

        Those that have failed and not served since come last: a dead one in many nodesets would
        otherwise be asked again at every boundary.
        """
        at.bad = [bad for bad in at.bad if bad.end > at.position]
        first, second = sources(description, segment, at.position)
        found = self._usable(at, first) or self._usable(at, second)
        for replica in found:
            if replica.storage_id == at.preferred:
                return replica
        well = [replica for replica in found if replica.storage_id not in at.aside]
        return self._rng.choice(well or found) if found else None

    def _usable(self, at: Progress, replicas: Sequence[Replica]) -> list[Replica]:
        """Those that may have `position`, and are not to be left alone for now."""
        now_s = self._clock.monotonic_s()
        bad = {it.storage_id for it in at.bad if it.first <= at.position}
        return [
            replica
            for replica in replicas
            if replica.storage_id not in bad
            and ((aside := at.aside.get(replica.storage_id)) is None or aside.until_s <= now_s)
        ]

    def _put_aside(
        self,
        at: Progress,
        replica: Replica,
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
                at.bad.append(Bad(replica.storage_id, at.position, end, "hole"))
            else:
                at.since_s = self._clock.monotonic_s()  # nothing is there yet, and it said so
        elif isinstance(error, WrongStorage):
            why = f"{replica.node_id} has another store now"
        aside = at.aside.get(replica.storage_id)
        if aside is None:
            backoff = Backoff(self._rng, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
            aside = at.aside[replica.storage_id] = Aside(0.0, "", backoff)
        aside.until_s = self._clock.monotonic_s() + aside.backoff.next_s()
        aside.why = f"{replica.node_id}: {why}"
        at.preferred = ""
        at.refresh = True
        fields = {"replica": replica.node_id, "position": at.position, "error": str(why)}
        log.debug("reader.replica_failed", extra=fields)

    async def _wait_or_fail(self, at: Progress, segment: types_pb2.Segment) -> None:
        """No replica can be asked now: wait for one, unless none will ever do or the time is up."""
        missing = [bad for bad in at.bad if bad.first <= at.position]
        lacking = {bad.storage_id for bad in missing}
        assert at.description is not None
        wanted = every_source(at.description, segment, at.position)
        # Where one has trimmed, the description is behind: a new one tells of the archive.
        is_trimmed = any(bad.kind == "trimmed" for bad in missing)
        if lacking.issuperset(wanted) and not is_trimmed:
            at.missing_rounds += 1
            if at.missing_rounds > _MISSING_ROUNDS:
                raise data_loss(at, missing)
        now_s = self._clock.monotonic_s()
        if now_s - at.since_s > self._config.timeout_s:
            reasons = [aside.why for aside in at.aside.values()]
            reasons += [f"{bad.kind} on store {bad.storage_id[:8]}" for bad in missing]
            told = "; ".join(sorted(reasons)) or "no replica's node is known to be up"
            raise Unreachable(f"no replica serves offset {at.position}: {told}")
        at.refresh = True
        if missing:
            if at.rounds is None:
                at.rounds = Backoff(self._rng, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
            wait_s = at.rounds.next_s()
            at.bad.clear()  # what was a hole may be filled by then
        else:
            wait_s = min((aside.until_s for aside in at.aside.values()), default=0.0) - now_s
        await self._clock.sleep(min(_RETRY_MAX_S, max(_RETRY_MIN_S, wait_s)))

    # One stream.

    async def _read_stream(
        self,
        at: Progress,
        stream: _Stream,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
        replica: Replica,
        *,
        only: Filter | None,
    ) -> AsyncGenerator[ReadChunk, None]:
        """What one replica sends, until its end, a gap, or another replica would serve better.

        Raises what the replica raised, TimeoutError if it was silent, `_Behind` if it is behind.
        """
        request = read_request(at, description, segment, replica, only)
        request.headers_only = self._headers_only
        leave_at = archive_stop(at, description)
        # What is archived may have been written to a log that this one was forked from.
        in_loglet = LogletId(LogId(description.log_id), segment.index)
        wanted = None if replica.is_archive else in_loglet
        segment_end = segment.end if segment.HasField("end") else None
        limit_s = min(self._config.silence_s, _FIRST_ANSWER_S * (1 << min(at.slow_starts, 8)))
        at.slow_starts += 1
        async with asyncio.timeout(limit_s):
            await stream.send(request)
            await stream.end()
        idle_since_s = self._clock.monotonic_s()
        while True:
            async with asyncio.timeout(limit_s):
                message = await stream.receive()
            if message is None:
                break
            limit_s = self._config.silence_s
            at.slow_starts = 0
            had = at.position
            found = check_batches(
                self._verify,
                message.batches,
                at.position,
                wanted,
                segment_end,
                skipped=() if only is None else message.skipped,
            )
            self._advance(at, replica, found.end, message.committed_tail)
            yield ReadChunk(found.batches, found.placements, at.floor, found.skipped)
            if self._ends(at, replica, segment, message, found.wrong):
                return
            if replica.is_archive and at.position >= leave_at:
                return
            now_s = self._clock.monotonic_s()
            if at.position > had:
                idle_since_s = now_s
            elif segment_end is None and message.committed_tail <= at.position < at.floor:
                raise _Behind(f"knows only offsets below {message.committed_tail}")
            elif now_s - idle_since_s >= self._config.idle_check_s:
                idle_since_s = now_s
                if await self._should_move(at, description, segment, replica):
                    return
        raise _Behind(f"ended its stream at {at.position}")

    def _ends(
        self,
        at: Progress,
        replica: Replica,
        segment: types_pb2.Segment,
        message: ReadAnswer,
        corrupt: CorruptBatch | None,
    ) -> bool:
        """Whether this message is the last that the stream is good for; why is remembered."""
        if corrupt is not None:
            self._on_corrupt(at, replica, corrupt)
        elif message.gap is not None:
            self._on_gap(at, replica, message.gap)
        elif reached(at, segment):
            return True
        elif message.told_end is not None and not segment.HasField("end"):
            at.told_end = True
        else:
            return False
        return True

    def _advance(self, at: Progress, replica: Replica, end: Offset, tail: Offset) -> None:
        assert end >= at.position
        moved = end > at.position
        if moved:
            at.position = end
            at.missing_rounds = 0
            at.rounds = None
            at.preferred = replica.storage_id
            at.aside.pop(replica.storage_id, None)
        if moved or at.position >= at.floor:
            at.since_s = self._clock.monotonic_s()
        at.floor = max(at.floor, tail, at.position)

    def _on_corrupt(self, at: Progress, replica: Replica, error: CorruptBatch) -> None:
        """What it sent is no batch that can follow: it is not asked for that again."""
        end = Offset(at.position + 1)
        at.bad.append(Bad(replica.storage_id, at.position, end, "corrupt"))
        fields = {"replica": replica.node_id, "offset": at.position, "error": str(error)}
        log.warning("reader.corrupt_batch", extra=fields)

    def _on_gap(self, at: Progress, replica: Replica, gap: Gap) -> None:
        """The replica can't serve [first, end): it is not asked for that again."""
        kind = _GAP_KINDS.get(gap.reason, "hole")
        end = max(gap.end, at.position + 1)
        at.bad.append(Bad(replica.storage_id, min(gap.first, at.position), end, kind))
        at.refresh = True
        at.preferred = ""
        fields = {"replica": replica.node_id, "first": gap.first, "end": gap.end, "reason": kind}
        log.log(logging.DEBUG if kind == "hole" else logging.WARNING, "reader.gap", extra=fields)

    async def _should_move(
        self,
        at: Progress,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
        present: Replica,
    ) -> bool:
        """Nothing came for a while: has the segment ended, or does another replica have more?"""
        try:
            newer = await self._describe(at.position, refresh=True)
            if find_segment(newer, at.position) != segment:
                at.description = newer
                return True
            others = live_replicas(newer, segment)
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


class _Behind(SharedLogError):
    """The replica can't go on although it did nothing wrong. Never leaves this module."""

    retryable = True
