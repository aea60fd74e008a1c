"""`sharedlog bench logs` against nodes in memory: what it reports, and that it ends."""

from __future__ import annotations

import os
from typing import Any

import pytest
from helpers.memory_server import memory_cluster

import sharedlog
from sharedlog.benchmark.logs import LogsFailed, LogsPlan, logs_rows, run_logs
from sharedlog.benchmark.processes import UsageSampler
from sharedlog.benchmark.target import Target
from sharedlog.clock import SystemClock
from sharedlog.errors import LogUnavailable

CLOCK = SystemClock()
PLAN = LogsPlan(logs=20, active=5, at_once=4, seconds=0.1, settle_s=0.0)


@pytest.mark.slow
async def test_every_log_is_made_written_and_counted() -> None:
    """Each figure is there, and every active log has got records."""
    said: list[str] = []
    async with memory_cluster() as memory, sharedlog.connect(memory.address) as cluster:
        log = await cluster.create_log("bench")
        sampler = UsageSampler({"client": os.getpid()}, CLOCK)
        target = Target(cluster, log, memory.address, sampler, CLOCK)
        found: dict[str, Any] = await run_logs(target, PLAN, said.append)
        tails = [memory.logs[f"bench/{index:06d}"].tail for index in range(20)]
    assert (found["logs"], found["listed"], found["errors"]) == (20, 20, 0)
    assert all(tail > 1 for tail in tails[:5])
    assert tails[5:] == [1] * 15
    assert found["active_logs"]["logs_written"] == 5
    assert found["active_logs"]["records"] == sum(tail - 2 for tail in tails[:5])
    assert found["active_over_one"] > 0
    assert set(found["rss_anon_mb"]) == {"start", "created", "written", "end"}
    assert len(said) == 4
    assert ("logs", "20", "5 of them active") in logs_rows(found)


@pytest.mark.slow
async def test_a_cluster_that_refuses_everything_ends_the_run() -> None:
    """After a thousand failures, with the last reason."""
    config = sharedlog.AppenderConfig(timeout_s=0.05)
    async with (
        memory_cluster(1) as memory,
        sharedlog.connect(memory.address, append_config=config) as cluster,
    ):
        log = await cluster.create_log("bench")
        memory.nodes["n1"].faults.refuse_sessions.extend([LogUnavailable("no servers")] * 100_000)
        target = Target(cluster, log, memory.address, UsageSampler({}, CLOCK), CLOCK)
        plan = LogsPlan(logs=1_100, active=1, at_once=1_000, settle_s=0.0)
        with pytest.RaisesGroup(LogsFailed, flatten_subgroups=True):
            await run_logs(target, plan, lambda _: None)
