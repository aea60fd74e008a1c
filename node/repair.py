"""Sealing a segment and copying its tail: the hands of `loglet/recovery.py`.

Everything is decided there. Here servers are asked, all at the same time and again and again while
the attempt lasts; what they say is told to the core, and what it wants next is done. The attempt
goes on with whoever has answered as soon as that suffices, so a dead server costs nothing.

Time is bounded by patience, not in total: so long the attempt waits for answers that it can't go on
without. Copying goes on for as long as it makes progress, each call with a limit of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Final, assert_never

from loglet.messages import RepairRequest, SealRequest, SealResponse
from loglet.recovery import SegmentRecovery
from loglet.recovery_steps import (
    AwaitAnswers,
    CopyRange,
    EndSegment,
    SealReplacements,
    StopAttempt,
)
from loglet.wire import REPAIR, SEAL
from metadata.reconfiguration import replica_state
from metadata.records import LogRecord, Replica
from metadata.view import ClusterView
from node.wire import loglet_id
from sharedlog.backoff import Backoff
from sharedlog.batch import Placement, parse_placement
from sharedlog.clock import Clock
from sharedlog.errors import (
    CorruptBatch,
    DeadlineExceeded,
    Overloaded,
    ProtocolError,
    SharedLogError,
    Unreachable,
    WrongStorage,
)
from sharedlog.ids import LogletId, NodeId, Offset
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.read_answer import DAMAGED, TRIMMED, Gap, ReadAnswer
from sharedlog.rpc.transport import ClientStream, Transport
from sharedlog.v1 import log_server_pb2

log = logging.getLogger("node")

GRACE_S: Final = 0.005
"""So long answers are awaited that might spare the copying."""
PATIENCE_S: Final = 2.0
"""So long answers are awaited that an attempt can't do without."""
SEAL_TIMEOUT_S: Final = 0.5
"""For one call to seal; it is tried again while the attempt waits."""
COPY_TIMEOUT_S: Final = 1.0
"""For one message of a tail to be read, and for one to be stored; longer with each further try."""
COPY_TRIES_MAX: Final = 4
"""Tries in a row of a source or a target that nobody could stand in for: its disk may be busy."""
REPLACEMENT_TRIES_MAX: Final = 3
"""Times that a replacement is asked to seal; there may be others."""
_MAY_BE_SLOW: Final = (DeadlineExceeded, Overloaded, Unreachable)
_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 0.5

_ReadStream = ClientStream[log_server_pb2.ReadLogletRequest, ReadAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSegment:
    """A segment that may end now, and how long that took."""

    ending: EndSegment
    seal_ms: float
    repair_ms: float
    sealed: tuple[NodeId, ...]  # whose answers were counted on


class SegmentSealer:
    """See the module's docstring."""

    def __init__(
        self, *, view: ClusterView, transport: Transport, clock: Clock, random: Random
    ) -> None:
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random

    async def seal(self, record: LogRecord, *, candidates: Sequence[Replica] = ()) -> SealedSegment:
        """Seal the open segment, find where it ends, and make all below durable.

        `candidates`: log servers that may take the place of stores that are lost, best first.

        Raises:
            LogUnavailable: it can't be done now, and why; `Unrepairable`: not without a person.

        **Cancellation:** ends it anywhere; what is sealed and copied stays so, and does no harm.
        """
        left_out: frozenset[int] = frozenset()
        while True:
            attempt = _Attempt(
                record,
                view=self._view,
                transport=self._transport,
                clock=self._clock,
                random=self._random,
                left_out=left_out,
                candidates=candidates,
            )
            step = await attempt.run()
            if isinstance(step, EndSegment):
                return attempt.timed(step)
            if not step.leave_out:
                raise step.error
            assert not step.leave_out & left_out, "each further attempt leaves out others"
            left_out |= step.leave_out
            log.warning("log.tail_left_out", extra={"log": record.name, "reason": str(step.error)})


class _Attempt:
    """One `SegmentRecovery` and its calls."""

    def __init__(
        self,
        record: LogRecord,
        *,
        view: ClusterView,
        transport: Transport,
        clock: Clock,
        random: Random,
        left_out: frozenset[int],
        candidates: Sequence[Replica],
    ) -> None:
        self._segment = record.open_segment
        self._loglet = record.loglet(self._segment)
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random
        self._core = SegmentRecovery(
            record.name,
            self._segment,
            lost=[
                member
                for member, replica in enumerate(self._segment.nodeset)
                if replica_state(replica, view.node(replica.node_id)) == "lost"
            ],
            left_out=left_out,
            candidates=candidates,
        )
        self._begun_s = clock.monotonic_s()
        self._sealed_s: float | None = None  # when the tail was found
        self._grace_until_s: float | None = None  # from the first answer that suffices
        self._heard = asyncio.Event()
        self._sealed: set[int] = set()  # servers that have answered
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._silences: Counter[int] = Counter()  # of a source, since it last gave something
        self._pauses = Backoff(random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)

    def timed(self, ending: EndSegment) -> SealedSegment:
        """The result with its times."""
        now_s = self._clock.monotonic_s()
        sealed_s = now_s if self._sealed_s is None else self._sealed_s
        return SealedSegment(
            ending=ending,
            seal_ms=(sealed_s - self._begun_s) * 1_000,
            repair_ms=(now_s - sealed_s) * 1_000,
            sealed=tuple(self._core.servers[it].node_id for it in sorted(self._sealed)),
        )

    async def run(self) -> EndSegment | StopAttempt:
        """Carry out the core's steps up to the last."""
        async with asyncio.TaskGroup() as tasks:
            try:
                self._ask(tasks, self._core.unanswered())
                return await self._follow(tasks)
            finally:
                for task in self._asked.values():
                    task.cancel()

    async def _follow(self, tasks: asyncio.TaskGroup) -> EndSegment | StopAttempt:
        while True:
            step = self._core.advance()
            if self._sealed_s is None and self._core.tail is not None:
                self._sealed_s = self._clock.monotonic_s()
            match step:
                case AwaitAnswers(spare):
                    await self._wait(spare=spare)
                case SealReplacements(servers):
                    self._ask(tasks, servers)
                    # Bounded by the calls' own limit: each of them is heard of, well or ill.
                    await self._heard.wait()
                    self._heard.clear()
                case CopyRange():
                    await self._copy(step)
                case EndSegment() | StopAttempt():
                    return step
                case _:
                    assert_never(step)

    # ------------------------------------------------------------------ seals

    def _ask(self, tasks: asyncio.TaskGroup, servers: Sequence[int]) -> None:
        for server in servers:
            if server not in self._asked:
                name = f"seal {self._loglet} at {self._core.servers[server].node_id}"
                self._asked[server] = tasks.create_task(self._seal(server), name=name)

    async def _seal(self, server: int) -> None:
        """Ask one server until it answers, or never can. A replacement is asked a few times."""
        replica = self._core.servers[server]
        joins = server >= len(self._segment.nodeset)
        # A replacement's claims count for nothing, and an earlier attempt may have filled it.
        request = SealRequest(
            replica.storage_id, self._loglet, self._segment.base, skip_damage=joins
        )
        tries = 0
        pauses = Backoff(self._random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
        while True:
            try:
                answer = await self._transport.call(
                    self._address(replica), SEAL, request, timeout_s=SEAL_TIMEOUT_S
                )
                self._check(replica, answer)
            except SharedLogError as error:
                tries += 1
                over = isinstance(error, WrongStorage) or (joins and tries >= REPLACEMENT_TRIES_MAX)
                if over or not joins:
                    self._core.on_seal_failed(server, error)
                    self._heard.set()
                if over:
                    return
                await self._clock.sleep(pauses.next_s())
                continue
            self._core.on_sealed(server, answer)
            self._sealed.add(server)
            self._heard.set()
            return

    def _check(self, replica: Replica, answer: SealResponse) -> None:
        """Raise `ProtocolError` for an answer that can't be."""
        base, tail = self._segment.base, answer.local_tail
        edges = [edge for run in answer.damaged for edge in run]
        if (
            min(tail, answer.committed_tail) < max(base, answer.local_start)
            or any(first > end for first, end in pairwise([base, *edges, tail]))
            or any(first == end for first, end in answer.damaged)
        ):
            raise ProtocolError(f"{replica.node_id}: an impossible answer to a seal: {answer}")

    async def _wait(self, *, spare: bool) -> None:
        """Until something is heard, or there is no time left for it."""
        now_s = self._clock.monotonic_s()
        until_s = self._begun_s + PATIENCE_S
        if spare:
            if self._grace_until_s is None:
                self._grace_until_s = now_s + GRACE_S
            until_s = min(until_s, self._grace_until_s)
        try:
            async with asyncio.timeout(max(until_s - now_s, 0)):
                await self._heard.wait()
        except TimeoutError:
            if spare:
                self._core.on_grace_over()
            else:
                self._core.on_patience_over()
        self._heard.clear()

    # ------------------------------------------------------------------ copies

    async def _copy(self, step: CopyRange) -> None:
        """Read the range from its best source, message by message, and store each as it comes.

        Ends early when the source can't go on, or nothing more is wanted of it.
        """
        source = step.sources[0]
        replica = self._core.servers[source]
        position = step.first
        try:
            stream = self._transport.stream(self._address(replica), READ_LOGLET)
        except SharedLogError as error:
            self._core.on_source_silent(source, error)
            return
        try:
            await stream.send(self._read_request(replica, step))
            while position < step.end:
                message = await self._receive(stream, source)
                batches = () if message is None else message.batches
                end = _check_run(batches, self._loglet, position)
                if position < end and not await self._store(step, position, end, batches):
                    return
                position = end
                self._silences.pop(source, None)
                if message is None or message.gap is not None:
                    gap = None if message is None else message.gap
                    self._note_gap(source, gap, position, step.end)
                    return
        except SharedLogError as error:
            await self._on_source_failed(step, error)
        finally:
            stream.cancel()

    async def _on_source_failed(self, step: CopyRange, error: SharedLogError) -> None:
        """The only source may be slow, and is tried again; any other is given up."""
        source = step.sources[0]
        self._silences[source] += 1
        only = len(step.sources) == 1 and isinstance(error, _MAY_BE_SLOW)
        if not only or self._silences[source] >= COPY_TRIES_MAX:
            self._core.on_source_silent(source, error)
            return
        await self._clock.sleep(self._pauses.next_s())

    def _read_request(self, replica: Replica, step: CopyRange) -> log_server_pb2.ReadLogletRequest:
        return log_server_pb2.ReadLogletRequest(
            storage_id=replica.storage_id,
            loglet=loglet_id(self._loglet),
            start=step.first,
            end=step.end,
            for_repair=True,
            no_wait=True,
        )

    async def _receive(self, stream: _ReadStream, source: int) -> ReadAnswer | None:
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S * (1 + self._silences[source])):
                return await stream.receive()
        except TimeoutError as error:
            replica = self._core.servers[source]
            raise Unreachable(f"{replica.node_id} went silent while it was read") from error

    def _note_gap(self, source: int, gap: Gap | None, position: Offset, end: Offset) -> None:
        """The source can't go on: what it said, and at least the first offset that it owes."""
        if position >= end:
            return
        last, damaged, trimmed = end, False, False
        if gap is not None:
            last = Offset(min(max(gap.end, position + 1), end))
            damaged = gap.reason == DAMAGED
            trimmed = gap.reason == TRIMMED
        self._core.on_source_lacks(source, position, last, damaged=damaged, trimmed=trimmed)

    async def _store(
        self, step: CopyRange, first: Offset, end: Offset, batches: Sequence[bytes]
    ) -> bool:
        """Store a run of batches at all targets; whether to go on reading as the step says.

        Nobody waits for a slow target once the others suffice.
        """
        async with asyncio.TaskGroup() as tasks:
            pending = {
                tasks.create_task(
                    self._store_at(target, step.committed_tail, first, end, batches),
                    name=f"repair {self._loglet}",
                )
                for target in step.targets
            }
            try:
                while pending and isinstance(self._core.advance(), CopyRange):
                    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    pending = {task for task in pending if not task.done()}
            finally:
                for task in pending:
                    task.cancel()
        following = self._core.advance()
        return isinstance(following, CopyRange) and following == replace(
            step, first=end, end=following.end, sources=following.sources
        )

    async def _store_at(
        self, target: int, committed: Offset, first: Offset, end: Offset, batches: Sequence[bytes]
    ) -> None:
        replica = self._core.servers[target]
        request = RepairRequest(replica.storage_id, self._loglet, committed, list(batches))
        tries = 0
        while True:
            tries += 1
            try:
                await self._transport.call(
                    self._address(replica), REPAIR, request, timeout_s=COPY_TIMEOUT_S * tries
                )
            except SharedLogError as error:
                slow = isinstance(error, _MAY_BE_SLOW) and tries < COPY_TRIES_MAX
                if not slow or not self._core.is_needed(target):
                    self._core.on_target_failed(target, error)
                    return
                await self._clock.sleep(self._pauses.next_s())
                continue
            self._core.on_copied(target, first, end)
            return

    def _address(self, replica: Replica) -> str:
        node = self._view.node(NodeId(replica.node_id))
        if node is None:
            raise Unreachable(f"node {replica.node_id} is not known here")
        return node.address


def _check_run(batches: Sequence[bytes], loglet: LogletId, first: Offset) -> Offset:
    """The end of an unbroken run of the loglet's batches, of which the first holds `first`.

    Raises:
        ProtocolError: it is none.
    """
    position = first
    for placed in batches:
        try:
            placement: Placement = parse_placement(placed)
        except CorruptBatch as error:
            raise ProtocolError(f"a damaged batch was sent as a whole one: {error}") from error
        follows = placement.first == position or (
            position == first and placement.first < first < placement.end
        )
        if placement.loglet != loglet or not follows:
            raise ProtocolError(f"{placement.loglet} {placement.first} was sent for {position}")
        position = placement.end
    return position
