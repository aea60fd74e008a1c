"""Who works on the archive besides the nodes themselves: an operator, at any node, or at several.

What is asked of a node is done as its process does it: a node that dies or stands still takes it
along. An answer may be lost in a time-out, and then all of it is asked again somewhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from helpers.history_log import Violation
from helpers.sim.cluster import SimCluster, SimNode
from helpers.sim.workload import SimClient

from loglet.archive.offload import Step
from node.archive.work import History, Told
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset
from sharedlog.retention import Retention

TIMEOUTS_S: Final = (0.5, 3.0, 15.0)
_ENOUGH: Final = (0, 500, 3_000, 20_000)
"""Bytes that are kept on log servers; 0 is no limit."""
_AGES_S: Final = (0, 5, 20)


class ArchiveOperator:
    """Sets retention, and has a log offloaded, trimmed, purged and swept, until it is cancelled."""

    def __init__(
        self,
        cluster: SimCluster,
        client: SimClient,
        logs: Sequence[str],
        *,
        purges: bool,
        pause_s: float,
        tasks: asyncio.TaskGroup,
        violations: list[Violation],
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._logs = logs
        self._purges = purges
        self._pause_s = pause_s
        self._tasks = tasks
        self._violations = violations
        self._draw = cluster.world.random("archive operator")
        self.counts: dict[str, int] = {}

    async def run(self) -> None:
        """For ever."""
        for log in self._logs:
            await self._set_retention(log)
        while True:
            await asyncio.sleep(self._draw.expovariate(1 / self._pause_s))
            log = self._draw.choice(self._logs)
            if self._draw.random() < 0.3:
                await self._set_retention(log)
                continue
            for _ in range(self._draw.choice((1, 1, 2, 3))):
                self._have(log)

    async def come_to_rest(self) -> None:
        """Nothing is purged any more."""
        for log in self._logs:
            await self._change(log, Retention(total_age_s=0))

    async def _set_retention(self, log: str) -> None:
        draw = self._draw
        await self._change(
            log,
            Retention(
                local_bytes=draw.choice(_ENOUGH),
                local_age_s=draw.choice((0, 0, 4)),
                total_age_s=draw.choice(_AGES_S) if self._purges else 0,
            ),
        )

    async def _change(self, log: str, retention: Retention) -> None:
        try:
            await self._client.cluster.set_retention(log, retention)
        except SharedLogError as error:
            self._cluster.world.trace.add(f"retention of {log} failed: {error}")

    def _have(self, log: str) -> None:
        """Have one node do something, as its process; nobody waits for it."""
        draw = self._draw
        nodes = [it for it in self._cluster.nodes.values() if it.serves and not it.host.paused]
        if not nodes:
            return
        node = draw.choice(nodes)
        more = ("purge",) if self._purges else ()
        what = draw.choice(("offload", "trim", "trim", "sweep", *more))
        run = self._do(what, node, log, draw.random(), draw.choice(TIMEOUTS_S))
        node.host.run(self._tasks.create_task, run, name=f"operator {what} at {node.node_id}")

    async def _do(self, what: str, node: SimNode, log: str, share: float, timeout_s: float) -> None:
        trace = self._cluster.world.trace.add
        assert node.services is not None
        history = node.services.archive.history
        try:
            async with asyncio.timeout(timeout_s):
                trace(f"{node.node_id} is to {what} {log}")
                done = await self._work(what, history, log, share)
        except (SharedLogError, TimeoutError) as error:
            trace(f"{node.node_id} {what} of {log} failed: {type(error).__name__} {error}")
        else:
            trace(f"{node.node_id} {what} of {log}: {done}")
            self.counts[what] = self.counts.get(what, 0) + 1

    async def _work(self, what: str, history: History, log: str, share: float) -> str:
        record, known = await history.committed(log)
        if what == "offload":
            record = await history.offload(record, known, known.tail, told=self._told(log))
            return f"archived up to {record.archived_end}"
        if what == "trim":
            upto = Offset(int(known.tail * share))
            trimmed = await history.trim(record, known, upto, told=self._told(log))
            return f"below {trimmed.below}, {trimmed.waiting} have not"
        if what == "sweep":
            # Without grace: what keeps objects that are to be named must be something else.
            assert history._archive is not None
            cleaner = history._archive.cleaner
            async with aclosing(cleaner.sweep(record, grace_ms=0, dry_run=False)) as steps:
                swept = [it.key async for step in steps for it in step.objects]
            return f"{len(swept)} objects deleted"
        # Mostly little of what there is, lest there be nothing to read; all of it at times.
        start = Offset(record.start + int((known.tail - record.start) * share**3))
        purged = await history.purge(record, known, start)
        return f"starts at {purged.record.start}, {len(purged.dropped.keys)} objects deleted"

    def _told(self, log: str) -> Told:
        async def told(step: Step) -> bool:
            """An object that is said to be made is in the manifest that was written with it."""
            made, manifest = step.made, step.manifest
            assert made is not None
            if all(it.key != made.key for it in manifest.entries):
                message = f"{log}: {made.key} was made, and revision {manifest.revision} has it not"
                self._violations.append(Violation("winners", message))
            return True

        return told
