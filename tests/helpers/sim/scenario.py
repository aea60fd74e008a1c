"""One run: a cluster, clients that append and read, faults, then quiet, then judgement.

The seed draws the cluster's shape and the mix of faults. For `duration_s` of simulated time clients
work and the nemesis breaks things; then everything is mended, and the run waits until clients have
their answers, followers are at the tail and every replica has every record. What does not come
to rest is a violation too (`stuck`). Then a new client reads the log, and the checkers of
`history_check.py` and `history_disks.py` decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final
from unittest.mock import patch

from helpers.history import CursorEnd, FinalRecord, History, Read
from helpers.history import Final as FinalLog
from helpers.history_check import check_history
from helpers.history_disks import (
    Journal,
    check_disks,
    check_durable,
    check_strength,
)
from helpers.history_log import Violation
from helpers.history_read import read_records
from helpers.sim import ambushes, archive_faults  # noqa: F401  their faults make themselves known
from helpers.sim.appends import PipelinedClient, SingleClient
from helpers.sim.archive_actors import ArchiveOperator
from helpers.sim.archive_watch import ArchiveWatch
from helpers.sim.cluster import ClusterConfig, SimCluster, open_cluster
from helpers.sim.final_disks import purged, segments_of
from helpers.sim.log_store import SimDisk
from helpers.sim.loop import Deadlock, Livelock, VirtualTimeExceeded, run_virtual
from helpers.sim.nemesis import Budget, Nemesis, Profile, swarm
from helpers.sim.network import NetworkConfig
from helpers.sim.readers import CursorOwner, MergedReader
from helpers.sim.workload import KEYS, SimClient, Workload, open_client, patiently
from helpers.sim.world import Trace, World

from loglet.archive import manifest, object_format
from metadata.records import LogRecord
from node.archive import part
from node.archive.config import OffloadConfig
from node.controller.config import ControllerConfig
from sequencer import state
from sharedlog.errors import Purged, SharedLogError
from sharedlog.ids import LogletId, Offset
from sharedlog.log import Log

LOG: Final = "orders"
SECOND_LOG: Final = "ledger"
"""Which three seeds of ten have."""
DURATION_S: Final = 60.0
REST_S: Final = 150.0
"""Longest time after the faults until everything is well again."""
RESTS_BROKEN_PROBABILITY: Final = 0.5
"""Of a seed: clients have ended before anything is mended; nodes come back to logs that rest."""
RESTS_BROKEN_S: Final = 10.0
"""Longest time that is waited for them; then all is mended with appends under way."""

CHECKPOINT_BATCHES: Final = 16
"""Batches that a takeover reads to know the log's state; the fewer, the more checkpoints."""

ARCHIVE_SHARE: Final = 0.4
"""Of the seeds that have an archive; of these half have records purged."""

MOMENTS: Final = 10
"""That are looked for at the end."""

REPEATED_CALLS: Final = (
    *("Seal", "Repair", "TellEnds", "RaiseCommittedTail"),
    *("Reconfigure", "PrepareMove", "ReportSuspect", "Ping", "OpenCursor", "CommitCursor"),
)
"""Calls of which the network may deliver a second copy, late."""


TEMPOS: Final = ((0.000_5, 0.002), (0.005, 0.02), (0.015, 0.1))
"""Longest delay of a message, and longest sync of a disk, when nothing is broken. Simulated time
costs nothing: the slower, the more is under way when something breaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The cluster and the log."""

    nodes: int = 3
    replicas: int = 3
    write_quorum: int = 2
    zones: int = 1
    spread: dict[str, int] = field(default_factory=dict)
    tempo: tuple[float, float] = TEMPOS[0]

    @classmethod
    def drawn(cls, world: World) -> Shape:
        """The seed's."""
        draw = world.random("shape")
        return replace(draw.choices(SHAPES, WEIGHTS)[0], tempo=draw.choice(TEMPOS))


SHAPES: Final = (
    Shape(),
    Shape(nodes=5),
    Shape(nodes=5, replicas=5, write_quorum=3),
    Shape(nodes=4, replicas=4, write_quorum=3),
    Shape(nodes=5, zones=3, spread={"zone": 2}),
    Shape(nodes=4, replicas=3, write_quorum=3),
    Shape(nodes=3, replicas=2, write_quorum=2),
)
WEIGHTS: Final = (50, 20, 10, 5, 8, 4, 3)


@dataclass(slots=True)
class Result:
    """What came of a run."""

    seed: int
    violations: list[Violation]
    trace: Trace
    history: History  # of the first log
    second: History | None = None
    tail: int = 0
    segments: int = 0
    simulated_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def histories(self) -> list[History]:
        """Of all logs."""
        return [self.history] if self.second is None else [self.history, self.second]

    def line(self) -> str:
        """One line about it."""
        counts = self.history.counts()
        told = " ".join(f"{name} {count}" for name, count in counts.items() if count)
        return (
            f"seed {self.seed}: {self.simulated_s:.0f} s simulated, tail {self.tail} in "
            f"{self.segments} segments, {told}, {sum(self.faults.values())} faults, "
            f"trace {self.trace.digest()[:8]}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is told; what it is not told the seed draws."""

    profile: Profile | None = None
    shape: Shape | None = None
    duration_s: float = DURATION_S
    archive: bool | None = None


def run(seed: int, plan: Plan | None = None, *, keep_lines: bool = False) -> Result:
    """One run under virtual time. Does not raise: what goes wrong is among the violations."""
    world = World(seed, keep_lines=keep_lines)
    result = Result(seed, [], world.trace, History())
    scenario = _Scenario(world, plan or Plan(), result)
    limit_s = 2 * (plan or Plan()).duration_s + RESTS_BROKEN_S + 10 * REST_S
    try:
        with ExitStack() as smaller:
            for where, name, value in SMALLER:
                smaller.enter_context(patch.object(where, name, value))
            run_virtual(scenario.run, limit_s=limit_s)
    except (Deadlock, Livelock, VirtualTimeExceeded) as error:
        result.violations.append(Violation("stuck", str(error)))
    except Exception as error:  # noqa: BLE001  whatever it is, this seed found it
        result.violations.append(Violation("crash", _innermost(error)))
    return result


def _innermost(error: BaseException, known: frozenset[int] = frozenset()) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if id(error) in known:  # raised from the group that it came in
        return type(error).__name__
    known |= {id(error)}
    cause = f" (from {_innermost(error.__cause__, known)})" if error.__cause__ is not None else ""
    trace = error.__traceback__
    where = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} at {where}{cause}"


@dataclass(slots=True, eq=False)
class _Watched:
    """A log, what clients do to it, and what the disks store of it."""

    name: str
    history: History
    log_id: int
    journal: Journal = field(default_factory=Journal)
    end: int = 0  # all below is to be on all replicas, and read by all followers, at rest
    start: int = 0  # what lies below is purged


class _Scenario:
    def __init__(self, world: World, plan: Plan, result: Result) -> None:
        self.world = world
        self.shape = plan.shape or Shape.drawn(world)
        draw = world.random("archive of the run")
        drawn = draw.random() < ARCHIVE_SHARE
        self.archive = drawn if plan.archive is None else plan.archive
        self.purges = draw.random() < 0.5
        self.profile = plan.profile or swarm(world, archive=self.archive)
        self.duration_s = plan.duration_s
        self.result = result
        self.logs: list[_Watched] = []
        self.watch: ArchiveWatch | None = None

    async def run(self) -> None:
        async with open_cluster(
            self.world, config=self._cluster_config(), on_stored=self._on_stored
        ) as cluster:
            if self.archive:
                self.watch = ArchiveWatch(cluster, self.result.violations, self._on_record)
                self.watch.begin()
            operator = open_client(self.world, cluster, "operator", LOG)
            async with operator as admin:
                await self._create(admin, LOG, self.result.history)
                if self.world.random("logs").random() < 0.3:
                    second = self.result.second = History()
                    await self._create(admin, SECOND_LOG, second)
                await self._work(cluster, admin)
        self.result.simulated_s = asyncio.get_running_loop().time()

    def _cluster_config(self) -> ClusterConfig:
        delay_max_s, commit_max_s = self.shape.tempo
        return ClusterConfig(
            nodes=self.shape.nodes,
            locations=tuple(f"z{n}" for n in range(self.shape.zones)),
            node=node_settings(self.world),
            archive=self.archive,
            commit_max_s=commit_max_s,
            network=NetworkConfig(
                delay_max_s=delay_max_s,
                slow_max_s=max(0.03, 2 * delay_max_s),
                repeat=REPEATED_CALLS,
                repeat_probability=self.profile.repeat_probability,
            ),
        )

    def _on_stored(self, disk: SimDisk, loglet: LogletId, first: Offset, end: Offset) -> None:
        (log,) = (it for it in self.logs if it.log_id == loglet.log_id)
        tick = log.history.tick()
        log.journal.note(disk.storage_id, loglet.segment_index, first, end, tick)

    def _on_record(self, record: LogRecord) -> None:
        for log in self.logs:
            if log.name == record.name and record.start > log.start:
                log.start = record.start
                log.history.starts_at(record.start)

    async def _create(self, admin: SimClient, name: str, history: History) -> None:
        shape = self.shape
        log = await admin.cluster.create_log(
            name, replicas=shape.replicas, write_quorum=shape.write_quorum
        )
        self.logs.append(_Watched(name, history, (await log.describe()).log_id))
        if shape.spread:
            await admin.cluster.admin.reconfigure(name, spread=shape.spread)

    async def _work(self, cluster: SimCluster, admin: SimClient) -> None:
        budget = Budget(cluster, [log.name for log in self.logs], self.profile.cool_down_s)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            clients = [
                await stack.enter_async_context(
                    open_client(
                        self.world, cluster, f"c{n}", LOG, routing="plain" if n == 3 else "smart"
                    )
                )
                for n in range(5)
            ]
            works = [Workload(self.world, log.history, tasks) for log in self.logs]
            nemesis = Nemesis(
                world=self.world,
                cluster=cluster,
                client=admin,
                transport=cluster.network.transport("operator"),
                log=LOG,
                profile=self.profile,
                clients=clients,
                budget=budget,
                watch=self.watch,
            )
            working = self._start(works, clients)
            keeper = self._operator(cluster, admin, tasks)
            breaking = [tasks.create_task(nemesis.run(), name="nemesis")]
            if keeper is not None:
                breaking.append(tasks.create_task(keeper.run(), name="archive operator"))
            await asyncio.sleep(self.duration_s)
            for task in breaking:
                task.cancel()
            await asyncio.wait(breaking)
            if self.world.random("rest").random() < RESTS_BROKEN_PROBABILITY:
                for work in works:
                    work.stopping = True
                await asyncio.wait(working, timeout=RESTS_BROKEN_S)
            self.result.faults = nemesis.counts
            self.world.trace.add("heal")
            await nemesis.heal()
            if keeper is not None:
                self.result.faults |= keeper.counts
                await patiently(keeper.come_to_rest, within_s=REST_S)
            for work in works:
                work.stopping = True
            await self._come_to_rest(cluster, budget, works, working)
            for log, work in zip(self.logs, works, strict=True):
                await self._judge(cluster, budget, log)
                self.result.violations += work.violations
                for following in work.following:
                    following.cancel()

    def _operator(
        self, cluster: SimCluster, admin: SimClient, tasks: asyncio.TaskGroup
    ) -> ArchiveOperator | None:
        if not self.archive:
            return None
        return ArchiveOperator(
            cluster,
            admin,
            [log.name for log in self.logs],
            purges=self.purges,
            pause_s=self.world.random("archive operator's pace").choice((2.0, 6.0)),
            tasks=tasks,
            violations=self.result.violations,
        )

    def _start(
        self, works: Sequence[Workload], clients: list[SimClient]
    ) -> list[asyncio.Task[None]]:
        """The workload; returns the tasks that end by themselves."""
        draw = self.world.random("workload")
        work, *others = works
        ending: list[asyncio.Task[None]] = []
        for client in clients[:2]:
            timeout_s = draw.choice((3.0, 8.0, 20.0))
            pipelined = PipelinedClient(work, client, pause_s=0.8, timeout_s=timeout_s)
            ending.append(work.start(client, pipelined.run(), "appends"))
        for client in clients[2:4]:
            timeout_s = draw.choice((2.0, 10.0))
            single = SingleClient(work, client, pause_s=0.8, timeout_s=timeout_s)
            ending.append(work.start(client, single.run(), "appends"))
            run = work.read_now_and_then(client, pause_s=5.0)
            ending.append(work.start(client, run, "reads"))
        for client in clients[1:4]:
            run = work.ask_for_tails(client, pause_s=1.3)
            ending.append(work.start(client, run, "tails"))
        for client, key in ((clients[0], None), (clients[3], None), (clients[1], KEYS[0])):
            run = work.follow(client, key=key)
            work.following.append(work.start(client, run, "follows"))
        for client in (clients[0], clients[4]):
            owner = CursorOwner(work, client, pause_s=2.5)
            ending.append(work.start(client, owner.run(), "owns the cursor"))
        for other in others:
            ending += self._start_second(work, other, clients[2], clients[4])
        return ending

    def _start_second(
        self, work: Workload, other: Workload, *clients: SimClient
    ) -> list[asyncio.Task[None]]:
        """What happens to a second log, and to both."""
        ending = []
        for client in clients:
            writer = client.at(SECOND_LOG, self.world)
            single = SingleClient(other, writer, pause_s=2.5, timeout_s=5.0)
            ending.append(other.start(writer, single.run(), "appends to the second"))
        merged = MergedReader({LOG: work, SECOND_LOG: other}, clients[-1])
        run = merged.read_now_and_then(pause_s=10.0)
        ending.append(work.start(clients[-1], run, "merges"))
        work.following.append(work.start(clients[-1], merged.follow(), "merges for ever"))
        return ending

    async def _come_to_rest(
        self,
        cluster: SimCluster,
        budget: Budget,
        works: Sequence[Workload],
        working: list[asyncio.Task[None]],
    ) -> None:
        """Wait for answers, followers and copies, at most `REST_S`; again after one append more.

        Before that one nothing but the cluster's own care brings a log to a node that was away.
        """
        _, unanswered = await asyncio.wait(working, timeout=REST_S)
        for task in unanswered:
            self._violation("stuck", f"{task.get_name()} has not ended {REST_S:g} s after the heal")
        for log in self.logs:
            log.end = log.history.readable_end
        logs = list(zip(self.logs, works, strict=True))
        await self._settle(cluster, budget, logs)
        for log in self.logs:
            if not await self._append_last(cluster, log):
                return
        await self._settle(cluster, budget, logs)

    async def _settle(
        self, cluster: SimCluster, budget: Budget, logs: Sequence[tuple[_Watched, Workload]]
    ) -> None:
        """Wait for followers and copies, at most `REST_S`."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + REST_S
        while loop.time() < until_s:
            if not self._behind(logs) and not self._lacking(cluster, budget):
                return
            await asyncio.sleep(1.0)
        for read in self._behind(logs):
            message = f"{read.reader} follows up to {read.position} only; {read.error}"
            self._violation("stuck", message)
        for violation in self._lacking(cluster, budget):
            self._violation("stuck", f"not repaired in time: {violation.message}")

    async def _append_last(self, cluster: SimCluster, log: _Watched) -> bool:
        """The last record of a log; returns whether it takes it."""
        async with open_client(self.world, cluster, f"probe of {log.name}", log.name) as probe:
            append = log.history.append("probe", b"the last one")
            try:
                offset = await patiently(
                    lambda: probe.log.append(append.value, timeout_s=30), within_s=0
                )
            except SharedLogError as error:
                self._violation("stuck", f"{log.name} takes no append after the heal: {error}")
                return False
            log.history.acked(append, offset)
            log.end = offset + 1
            return True

    def _behind(self, logs: Sequence[tuple[_Watched, Workload]]) -> list[Read]:
        """Followers that are not at the end of their log."""
        return [read for log, work in logs for read in work.followers if read.position < log.end]

    def _lacking(self, cluster: SimCluster, budget: Budget) -> list[Violation]:
        """What is not yet as it should be on the disks, told without reading the logs."""
        found = []
        for log in self.logs:
            segments = segments_of(cluster, budget, log.name)
            closed = FinalLog(segments[-1].base, [])
            found += [it for it in check_disks(segments, closed) if it.kind == "copies"]
            found += check_strength(segments, log.end)
            record = budget.record(log.name)
            if self.archive and record.archived_end < log.end:
                message = f"{log.name} is archived up to {record.archived_end} of {log.end}"
                found.append(Violation("archived", message))
        return found

    async def _judge(self, cluster: SimCluster, budget: Budget, log: _Watched) -> None:
        async with open_client(self.world, cluster, f"judge of {log.name}", log.name) as judge:
            try:
                tail, start, records = await self._look(judge.log, log)
                # Who trims may have the log's state written once more.
                while tail != await judge.log.tail():
                    tail, start, records = await self._look(judge.log, log)
            except SharedLogError as error:
                self._violation("unreadable", f"{log.name}: {type(error).__name__}: {error}")
                return
        lost = [
            (lost.first, lost.end)
            for segment in budget.record(log.name).chain
            for lost in segment.lost
        ]
        gone = list(purged(cluster, budget, log.name, start))
        final = FinalLog(tail, gone + records, lost, start)
        segments = segments_of(cluster, budget, log.name, with_disks=True)
        found = check_history(log.history, final)
        found += check_disks(segments, final)
        if not found:
            found += check_durable(log.history, segments, log.journal)
        self.result.violations += found
        if self.watch is not None:
            self.watch.judge(budget.record(log.name).log_id, final, log.end)
        if log.name == LOG:
            self.result.tail = tail
            self.result.segments = len(segments)
        self.world.trace.add(f"judged {log.name}: tail {tail}, {len(found)} violations")

    async def _look(self, log: Log, watched: _Watched) -> tuple[int, int, list[FinalRecord]]:
        """The tail, where the log starts, and all between; what is judged besides is noted."""
        tail = await patiently(log.tail, within_s=30)
        records = await self._read_all(log, watched, tail)
        start = watched.start
        await self._look_for_moments(log, records)
        watched.history.cursors = [
            CursorEnd(it.name, it.epoch, it.position) for it in await log.cursors.list()
        ]
        return tail, start, records

    async def _read_all(self, log: Log, watched: _Watched, tail: int) -> list[FinalRecord]:
        """All that is not purged; below, readers are told where the log starts, and no other."""
        if watched.start:
            try:
                await read_records(log, tail)
            except Purged as error:
                if (error.offset, error.start) != (0, watched.start):
                    raise
            else:
                self._violation("purged", f"{watched.name} is read below {watched.start}")
        return await read_records(log, tail, watched.start)

    async def _look_for_moments(self, log: Log, records: Sequence[FinalRecord]) -> None:
        """Whatever holes and damage the faults have left, a moment lies where the records say."""
        times = sorted({record.timestamp_ms for record in records})
        draw = self.world.random(f"moments of {log.name}")
        for time_ms in draw.sample(times, min(MOMENTS, len(times))):
            moment_ms = time_ms + draw.choice((0, 1))
            offset = await log.find_offset(moment_ms)
            wrong = [it for it in records if (it.timestamp_ms < moment_ms) != (it.offset < offset)]
            if wrong:
                at = wrong[0]
                self._violation(
                    "moment", f"{moment_ms} is at {offset}; {at.offset} has {at.timestamp_ms}"
                )

    def _violation(self, kind: str, message: str) -> None:
        self.result.violations.append(Violation(kind, message))


SMALLER: Final = (
    (state, "BATCHES_MAX", CHECKPOINT_BATCHES),
    (object_format, "BLOCK_BYTES", 700),
    (manifest, "ENTRIES_MAX", 12),
    (manifest, "PAGE_ENTRIES", 5),
    (part, "PROBE_RETRY_MAX_S", 3.0),
)
"""What is large or long in production, lest a run be so too."""


def node_settings(world: World) -> dict[str, Any]:
    """Settings of the nodes: what takes minutes in production takes seconds here."""
    draw = world.random("offload")
    return {
        "controller": ControllerConfig(
            backfill_every_s=world.random("controller").choice((2.0, 10.0))
        ),
        "offload": OffloadConfig(
            object_bytes=draw.choice((1_000, 4_000)),
            offload_after_s=draw.choice((0.5, 2.0)),
            retention_every_s=2.0,
            block_cache_bytes=draw.choice((0, 2_000, 1 << 20)),
        ),
    }
