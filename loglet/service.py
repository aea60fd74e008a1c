"""The log server's tasks and streams around `LogServerCore`.

One task owns the store. It takes everything that queued while the last commit ran, lets the core
decide it, commits, and releases the answers: group commit over all loglets, and no waiting when
idle. The queue is bounded in bytes; beyond the bound no replication stream is read, and flow
control holds the sequencers.

A replication stream has two tasks: its handler receives into the queue, and one sends what became
ready. Between them a message costs the event loop three switches: received, committed, sent.

Readers are woken before the commit: what is below the committed tail, or a told end, is committed
on a write quorum, whatever this server's disk does next, and the batches are in the tail cache
(`cache.py`, `reads.py`). Repaired batches are not kept there: they are old.

Seals, repairs, told ends and trims are calls that pass through the same queue. A seal's answer also
says what is damaged of what it counts as held. That is looked up after the commit, outside of the
queue (`seal_looks.py`): nothing but a repair changes it any more. What a trim leaves behind is
deleted with later commits (`sweep.py`).

**When the disk fails**, or a sequencer gave one offset to two batches, `run` raises and the process
must stop: nothing was answered of what was not known to be durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from loglet.answers import Answers
from loglet.cache import TailCache
from loglet.config import LogServerConfig
from loglet.core import LogServerCore
from loglet.digest import PAGE_BATCHES_MAX, DigestService
from loglet.group import Answer, CallAnswer, Decision, Held, LookUp, Plan, Request
from loglet.messages import (
    RepairRequest,
    RepairResponse,
    SealRequest,
    SealResponse,
    StoreRequest,
    StoreResponse,
    TellEndsRequest,
    TellEndsResponse,
    TrimLoglets,
    TrimmedLoglets,
)
from loglet.metrics import LogServerMetrics
from loglet.queued import Queued, release
from loglet.reads import ReadService, Watchers
from loglet.seal_looks import SealLooks
from loglet.store import (
    HeldBatch,
    LogletState,
    LogStore,
    PutBatch,
    PutLoglet,
    StoreSpace,
)
from loglet.sweep import Sweep
from loglet.wire import (
    REPAIR,
    SEAL,
    STORE,
    TELL_ENDS,
    loglet_from_proto,
    loglet_status,
    loglets_answer,
)
from sharedlog.clock import Clock
from sharedlog.errors import (
    LogletNotOpen,
    Overloaded,
    SharedLogError,
    StoreFailed,
    StoreReadOnly,
    Unreachable,
)
from sharedlog.ids import LogletId, NodeId, Offset, StorageId
from sharedlog.limits import MIB
from sharedlog.rpc.methods import (
    DIGEST,
    LIST_LOGLETS,
    RAISE_COMMITTED_TAIL,
    TRIM,
)
from sharedlog.rpc.transport import Server, ServerStream
from sharedlog.tasks import first_error
from sharedlog.v1.log_server_pb2 import (
    DigestRequest,
    DigestResponse,
    ListLogletsRequest,
    ListLogletsResponse,
    RaiseCommittedTailRequest,
    RaiseCommittedTailResponse,
    TrimRequest,
    TrimResponse,
)

log = logging.getLogger(__name__)

# What a request without batches counts for in the queue, and each of its entries.
_REQUEST_BYTES = 256
_LOOK_UP_BYTES_MAX = 4 * MIB

StoreStream = ServerStream[StoreResponse, StoreRequest]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogServerStatus:
    """What an operator wants to know at a glance."""

    node_id: NodeId
    storage_id: StorageId
    loglets: int
    sealed: int
    queue_bytes: int
    open_reads: int
    space: StoreSpace
    read_only: bool  # batches are refused for want of room; seals are not


class LogServer:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        store: LogStore,
        clock: Clock,
        config: LogServerConfig,
        metrics: LogServerMetrics,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._clock = clock
        self._config = config
        self._metrics = metrics
        self._core = LogServerCore(store.storage_id, store.loglets())
        self._cache = TailCache(config.tail_cache_bytes)
        self._watchers = Watchers()
        self._reads = ReadService(
            core=self._core,
            store=store,
            cache=self._cache,
            watchers=self._watchers,
            config=config,
            metrics=metrics,
        )
        self._digests = DigestService(store=store, metrics=metrics)
        self._seal_looks = SealLooks(self._digests)
        self._sweep = Sweep(store=store, clock=clock, config=config, metrics=metrics)
        self._sweep_now = False  # the sweep wants a commit, if there is none anyway
        for state in self._core.loglets():
            if state.local_start > state.base:
                self._sweep.add(state.loglet, state.local_start)
        self._queue: deque[Queued] = deque()
        self._queue_bytes = 0
        self._pending_records = 0  # seals, told ends and trims in the queue
        self._repair_bytes = 0  # of repairs in the queue
        self._streams: set[Answers] = set()
        self._work = asyncio.Event()
        self._room = asyncio.Event()  # set while the queue is within its bound
        self._room.set()
        # Set while a commit runs; its result is why it failed, or None.
        self._committing: asyncio.Future[BaseException | None] | None = None
        self._stopped: SharedLogError | None = None
        self._stopping = False
        metrics.loglets.set(len(self._core.loglets()))
        self._space = store.space()
        metrics.watch_space(self._room_now)

    @property
    def storage_id(self) -> StorageId:
        """Identity of the store."""
        return self._core.storage_id

    @property
    def reads(self) -> ReadService:
        """Serves what is held here; whoever registers it may serve more under the same methods."""
        return self._reads

    def register(self, server: Server, *, with_reads: bool = True) -> None:
        """Add the methods of LogServerService; not `with_reads`: but for those of `reads`."""
        if with_reads:
            self._reads.register(server)
        server.add_stream(STORE, self._serve_stores)
        server.add_call(SEAL, self._serve_seal)
        server.add_call(REPAIR, self._serve_repair)
        server.add_call(TELL_ENDS, self._serve_tell_ends)
        server.add_call(TRIM, self._serve_trim)
        server.add_call(DIGEST, self._digest)
        server.add_call(LIST_LOGLETS, self._list_loglets)
        server.add_call(RAISE_COMMITTED_TAIL, self._raise_committed_tail)

    def on_damage(self, listener: Callable[[LogletId, Offset, Offset], None]) -> None:
        """Call `listener` with each damaged range [first, end) that a reader has met here."""
        self._reads.on_damage = listener

    @property
    def read_only(self) -> bool:
        """Batches are refused for want of room; cheaper than `status`."""
        return self.free_bytes == 0

    @property
    def free_bytes(self) -> int:
        """That batches may still take."""
        return self._store.space().free_bytes

    def status(self) -> LogServerStatus:
        """How things stand now."""
        states = list(self._core.loglets())
        return LogServerStatus(
            node_id=self._node_id,
            storage_id=self.storage_id,
            loglets=len(states),
            sealed=sum(state.sealed for state in states),
            queue_bytes=self._queue_bytes,
            open_reads=self._reads.open_reads,
            space=self._store.space(),
            read_only=self.read_only,
        )

    def _room_now(self) -> StoreSpace:
        """For metrics, which may be asked for when the store is closed already."""
        if self._stopped is None and not self._stopping:
            self._space = self._store.space()
        return self._space

    async def run(self) -> None:
        """Own the store and write, until cancelled.

        Raises:
            StoreFailed: the disk failed, or an offset was given to two batches. The process must
            stop.

        **Cancellation:** the running commit is finished and its answers are released first; what is
        still queued is not written, and its streams and calls end as `Unreachable`.
        """
        writer = asyncio.create_task(self._write_groups(), name="log-server-writer")
        sweep = asyncio.create_task(self._sweep.run(self._ask_for_sweep), name="log-server-sweep")
        reason: SharedLogError = Unreachable(f"log server {self._node_id} stops")
        try:
            await asyncio.shield(writer)
        except asyncio.CancelledError:
            self._stopping = True
            self._work.set()
            await writer
            raise
        except StoreFailed as error:
            log.critical("store.failed", extra={"reason": str(error)})
            reason = error
            raise
        finally:
            sweep.cancel()
            self._stop(reason)

    def _stop(self, reason: SharedLogError) -> None:
        self._stopped = reason
        for queued in self._queue:
            release(queued, reason)
        self._queue.clear()
        for answers in self._streams:
            answers.fail(reason)

    # Streams and calls.

    async def _serve_stores(self, stream: StoreStream) -> None:
        """Handler of Store. **Cancellation:** ends the stream; what was queued is written."""
        if self._stopped is not None:
            raise self._stopped
        answers = Answers()
        self._streams.add(answers)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_send_answers(answers, stream), name="log-server-answers")
                await self._receive_stores(answers, stream)
        except ExceptionGroup as group:
            raise first_error(group) from group
        finally:
            self._streams.discard(answers)

    async def _receive_stores(self, answers: Answers, stream: StoreStream) -> None:
        while (request := await stream.receive()) is not None:
            entries = len(request.opens) + len(request.committed) + len(request.confirms)
            size = sum(map(len, request.batches)) + _REQUEST_BYTES * (1 + entries)
            answers.outstanding += 1
            self._put(Queued(request, size, answers))
            if not self._room.is_set():
                await self._room.wait()
            await answers.wait_for_room()
        answers.end()

    async def _serve_seal(self, request: SealRequest) -> SealResponse:
        """Handler of Seal. **Cancellation:** stops the wait; the seal may be written."""
        answer = await self._write_record(request, 1)
        assert isinstance(answer, SealResponse)
        if not request.skip_damage:
            answer.damaged = await self._seal_looks.damaged(
                request.loglet, answer.committed_tail, answer.local_tail
            )
        return answer

    async def _serve_tell_ends(self, request: TellEndsRequest) -> TellEndsResponse:
        """Handler of TellEnds. **Cancellation:** stops the wait; the ends may be kept."""
        answer = await self._write_record(request, 1 + len(request.ends))
        assert isinstance(answer, TellEndsResponse)
        self._watchers.tell_ends(request.ends)
        return answer

    async def _serve_repair(self, request: RepairRequest) -> RepairResponse:
        """Handler of Repair. **Cancellation:** stops the wait; the batches may be written."""
        size = sum(map(len, request.batches)) + _REQUEST_BYTES
        waiting = self._repair_bytes
        if waiting and waiting + size > self._config.queue_bytes_max:
            raise self._overloaded(f"{waiting} bytes of repairs")
        self._repair_bytes += size
        try:
            answer = await self._ask_writer(request, size)
        finally:
            self._repair_bytes -= size
        assert isinstance(answer, RepairResponse)
        self._seal_looks.on_repaired(request.loglet, request.batches)
        self._metrics.repaired_batches.inc(len(request.batches))
        return answer

    async def _serve_trim(self, request: TrimRequest) -> TrimResponse:
        """Handler of Trim. **Cancellation:** stops the wait; the loglets may be trimmed."""
        starts = [(loglet_from_proto(it.loglet), Offset(it.local_start)) for it in request.loglets]
        trim = TrimLoglets(StorageId(request.storage_id), starts)
        answer = await self._write_record(trim, 1 + len(starts))
        assert isinstance(answer, TrimmedLoglets)
        return TrimResponse(loglets=map(loglet_status, answer.loglets))

    async def _write_record(
        self, request: SealRequest | TellEndsRequest | TrimLoglets, entries: int
    ) -> CallAnswer:
        if self._pending_records >= self._config.pending_seals_max:
            raise self._overloaded(f"{self._pending_records} seals, ends and trims")
        self._pending_records += 1
        try:
            return await self._ask_writer(request, _REQUEST_BYTES * entries)
        finally:
            self._pending_records -= 1

    async def _ask_writer(self, request: Request, size: int) -> CallAnswer:
        """Put a call into the queue and wait for its answer."""
        done: asyncio.Future[CallAnswer] = asyncio.get_running_loop().create_future()
        self._put(Queued(request, size, done))
        return await done

    def _overloaded(self, what: str) -> Overloaded:
        return Overloaded(
            f"{what} wait at log server {self._node_id}",
            retry_after_s=self._config.overloaded_retry_s,
        )

    async def _digest(self, request: DigestRequest) -> DigestResponse:
        """Handler of Digest: what is on disk when it answers.

        Raises:
            WrongStorage. LogletNotOpen: nobody has ever opened or sealed it here.
        """
        self._core.check_storage(StorageId(request.storage_id))
        loglet = loglet_from_proto(request.loglet)
        state = await self._once_durable(lambda: self._copy_of(loglet))
        if state is None:
            raise LogletNotOpen(f"loglet {loglet} is not known here")
        core = self._core
        return await self._digests.page(state, request, now=lambda: core.loglet(loglet) or state)

    def _copy_of(self, loglet: LogletId) -> LogletState | None:
        state = self._core.loglet(loglet)
        return None if state is None else replace(state)

    async def _list_loglets(self, request: ListLogletsRequest) -> ListLogletsResponse:
        """Handler of ListLoglets: what is on disk when it answers."""
        self._core.check_storage(StorageId(request.storage_id))
        return await self._once_durable(lambda: loglets_answer(self._asked_loglets(request)))

    async def _once_durable(self, look: Callable[[], _T]) -> _T:
        """What `look` sees of the core, once all of that is on disk.

        The core is ahead of the disk while a commit runs, but who counts answers to find what is
        committed must count nothing that a crash could take back.
        """
        while True:
            seen = look()
            running = self._committing
            if running is None:
                return seen
            failure = await asyncio.shield(running)
            if failure is None:
                return seen
            if not isinstance(failure, StoreReadOnly):
                raise StoreFailed("the log server failed")

    def _asked_loglets(self, request: ListLogletsRequest) -> list[LogletState]:
        if not request.loglets:
            return list(self._core.loglets())
        found = (self._core.loglet(loglet_from_proto(asked)) for asked in request.loglets)
        return [state for state in found if state is not None]

    async def _raise_committed_tail(
        self, request: RaiseCommittedTailRequest
    ) -> RaiseCommittedTailResponse:
        """Handler of RaiseCommittedTail: readers that wait for the tail to rise go on."""
        self._core.check_storage(StorageId(request.storage_id))
        told = [(loglet_from_proto(it.loglet), Offset(it.tail)) for it in request.committed]
        raised = [loglet for loglet, tail in told if self._core.raise_committed_tail(loglet, tail)]
        self._watchers.wake(raised)
        return RaiseCommittedTailResponse()

    # The writer.

    def _put(self, queued: Queued) -> None:
        if self._stopped is not None:
            release(queued, self._stopped)
            return
        self._queue.append(queued)
        self._queue_bytes += queued.size
        if self._queue_bytes >= self._config.queue_bytes_max:
            self._room.clear()
        self._work.set()

    async def _write_groups(self) -> None:
        while not self._stopping:
            if self._sweep_now:
                await self._write_sweep()
                if not self._queue:
                    continue
            if not self._queue:
                self._work.clear()
                await self._work.wait()
                continue
            group = self._take()
            self._metrics.queue_bytes.set(self._queue_bytes)
            try:
                answers = await self._write(group)
            except BaseException as error:
                reason = error if isinstance(error, SharedLogError) else None
                for queued in group:
                    release(queued, reason or StoreFailed("the log server failed"))
                raise
            for queued, answer in zip(group, answers, strict=True):
                if isinstance(answer, StoreResponse):
                    self._watchers.mark_watched(answer)
                release(queued, answer)

    def _ask_for_sweep(self) -> None:
        self._sweep_now = True
        self._work.set()

    async def _write_sweep(self) -> None:
        """A commit for what the sweep wants deleted, unless one took it along meanwhile."""
        self._sweep_now = False
        if self._sweep.is_ready:
            with contextlib.suppress(StoreReadOnly):  # the sweep knows, and tries again
                await self._commit(Decision([], [], set()))

    def _take(self) -> list[Queued]:
        """All that waits, as far as one commit takes it."""
        queue = self._queue
        group = [queue.popleft()]
        size = group[0].size
        while queue and size + queue[0].size <= self._config.commit_bytes_max:
            size += queue[0].size
            group.append(queue.popleft())
        self._queue_bytes -= size
        if self._queue_bytes < self._config.queue_bytes_max:
            self._room.set()
        return group

    async def _write(self, group: Sequence[Queued]) -> Sequence[Answer]:
        """Decide a group and make it durable; the answers may leave once this returns."""
        plan = self._core.plan([queued.request for queued in group])
        held = await self._look_up(plan.look_ups) if plan.look_ups else {}
        space = self._store.space()
        decision = self._core.decide(
            plan, held, room_bytes=space.free_bytes, repair_room_bytes=space.repair_bytes
        )
        for write in decision.writes:
            if type(write) is PutBatch:  # no repair's
                self._cache.add(write)
        self._watchers.wake(decision.advanced)
        if not decision.writes:
            return self._count_refusals(decision.answers)
        try:
            await self._commit(decision)
        except StoreReadOnly as error:
            log.warning("store.full", extra={"reason": str(error)})
            return self._count_refusals(await self._write_records(plan, held))
        self._cache.landed()
        for loglet, local_start in decision.trimmed.items():
            self._cache.drop(loglet, local_start)
        return self._count_refusals(decision.answers)

    async def _write_records(self, plan: Plan, held: Held) -> Sequence[Answer]:
        """Nothing was written for want of room: the same group again, without its batches."""
        self._cache.clear()
        self._core.reload(self._store.loglets())
        decision = self._core.decide(plan, held, room_bytes=0)
        if not decision.writes:
            return decision.answers
        try:
            await self._commit(decision)
        except StoreReadOnly as error:
            self._core.reload(self._store.loglets())
            return self._core.refuse(plan, error)
        return decision.answers

    async def _commit(self, decision: Decision) -> None:
        begun_s = self._clock.monotonic_s()
        done: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._committing = done
        failure: BaseException | None = None
        chunk = self._sweep.take()
        writes = decision.writes if chunk is None else [*decision.writes, chunk]
        try:
            await self._store.commit(writes)
        except BaseException as error:
            failure = error
            raise
        finally:
            self._committing = None
            done.set_result(failure)
            if chunk is not None:
                well, alone = failure is None, not decision.writes
                self._sweep_now |= self._sweep.done(chunk, well=well, alone=alone)
        for trimmed in decision.trimmed.items():
            self._sweep.add(*trimmed)
        metrics = self._metrics
        metrics.commit_seconds.observe(self._clock.monotonic_s() - begun_s)
        sizes = [len(it.placed) for it in decision.writes if isinstance(it, PutBatch)]
        metrics.commit_batches.observe(len(sizes))
        metrics.stored_batches.inc(len(sizes))
        metrics.stored_bytes.inc(sum(sizes))
        self._sweep.on_stored(len(sizes), sum(sizes))
        if len(sizes) < len(decision.writes):
            self._report_records(decision)

    def _report_records(self, decision: Decision) -> None:
        self._metrics.loglets.set(len(self._core.loglets()))
        for write in decision.writes:
            if isinstance(write, PutLoglet):
                event = "loglet.sealed" if write.sealed else "loglet.opened"
                ended, trimmed = write.told_end is not None, write.loglet in decision.trimmed
                if write.sealed and not (ended or trimmed):
                    self._metrics.seals.inc()
                fields = {"loglet": str(write.loglet), "opened_by": str(write.opened_by)}
                if write.told_end is not None:
                    event = "loglet.ended"
                    fields["end"] = str(write.told_end)
                if write.loglet in decision.trimmed:
                    event = "loglet.trimmed"
                    fields["local_start"] = str(write.local_start)
                log.info(event, extra=fields)

    async def _look_up(self, look_ups: Sequence[LookUp]) -> Held:
        """Read the held batches that some of a group may repeat. Rare: a stream was made anew."""
        held: dict[LogletId, dict[Offset, HeldBatch]] = {}
        for look_up in look_ups:
            found = held.setdefault(look_up.loglet, {})
            start = look_up.start
            while start < look_up.end:
                batches = await self._store.scan(
                    look_up.loglet,
                    start,
                    look_up.end,
                    verify=True,
                    max_batches=PAGE_BATCHES_MAX,
                    max_bytes=_LOOK_UP_BYTES_MAX,
                )
                if not batches:
                    break
                found.update((batch.first, batch) for batch in batches)
                start = batches[-1].end
        return {loglet: list(found.values()) for loglet, found in held.items()}

    def _count_refusals(self, answers: Sequence[Answer]) -> Sequence[Answer]:
        for answer in answers:
            if isinstance(answer, StoreResponse) and answer.refused:
                for refused in answer.refused:
                    self._metrics.refused.labels(type(refused.error).__name__).inc()
            elif isinstance(answer, SharedLogError):
                self._metrics.refused.labels(type(answer).__name__).inc()
        return answers


async def _send_answers(answers: Answers, stream: StoreStream) -> None:
    while (response := await answers.take()) is not None:
        await stream.send(response)
