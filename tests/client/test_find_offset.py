"""Finding a moment: from any replica that knows, round those that don't, in a few calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from helpers.memory_log import MemoryLog
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.batch import encode_records
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import DataLoss, InvalidArgument, LogNotFound, LogUnavailable, Unreachable
from sharedlog.log import Log
from sharedlog.starts import timestamp_to_ms
from sharedlog.v1 import log_server_pb2, types_pb2

HOLE = log_server_pb2.ReadGap.REASON_HOLE
DAMAGED = log_server_pb2.ReadGap.REASON_DAMAGED
PATIENT = sharedlog.ReaderConfig(silence_s=5.0, timeout_s=10.0)
HASTY = sharedlog.ReaderConfig(timeout_s=0.2)


def fill(memory: MemoryCluster, *, batches: int = 30, roll_every: int = 0) -> MemoryLog:
    """Batches of three records, each 10 ms after the one before, the first at 1,000 ms."""
    log = memory.create("orders")
    for index in range(batches):
        values = [(b"%d" % (3 * index + it), None, None) for it in range(3)]
        log.append(encode_records(values), timestamp_ms=1_000 + 10 * index)
        if roll_every and index % roll_every == roll_every - 1:
            log.roll()
    return log


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        yield cluster


def connect(memory: MemoryCluster, routing: Routing = "smart") -> Cluster:
    return sharedlog.connect(memory.address, routing=routing, read_config=PATIENT)


def asked(memory: MemoryCluster) -> int:
    return sum(node.times_asked for node in memory.nodes.values())


def gap(memory: MemoryCluster, first: int, end: int, *names: str) -> None:
    """These nodes lack the range."""
    for name in names:
        memory.nodes[name].faults.gaps.append((first, end, HOLE))


async def find(log: Log, timestamp_ms: int) -> int:
    async with asyncio.timeout(20):
        return await log.find_offset(timestamp_ms)


@pytest.mark.parametrize("routing", ["smart", "plain"])
@pytest.mark.parametrize("roll_every", [0, 1, 7])
async def test_the_first_record_that_is_not_earlier(
    memory: MemoryCluster, routing: Routing, roll_every: int
) -> None:
    """Between batches, on them, before the first and behind the last, in whatever segments."""
    truth = fill(memory, roll_every=roll_every)
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        for moment_ms in (0, 999, 1_000, 1_001, 1_010, 1_069, 1_070, 1_145, 1_290, 1_291, 9_999):
            assert await find(log, moment_ms) == truth.find_offset(moment_ms), moment_ms


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_an_empty_log_has_only_its_tail(memory: MemoryCluster, routing: Routing) -> None:
    """And a log that is not there is an error."""
    memory.create("empty")
    async with connect(memory, routing) as cluster:
        assert await find(cluster.log("empty"), 0) == 0
        with pytest.raises(LogNotFound):
            await find(cluster.log("nothing"), 0)


async def test_one_replica_is_enough(memory: MemoryCluster) -> None:
    """If it holds both neighbours of the moment, nobody else is asked, and nothing is read."""
    fill(memory)
    async with connect(memory) as cluster:
        assert await find(cluster.log("orders"), 1_155) == 48
    assert asked(memory) == 1
    assert sum(node.reads_opened for node in memory.nodes.values()) == 0


@pytest.mark.parametrize("holed", [("n1", "n2"), ("n2", "n3"), ("n1", "n3")])
async def test_a_hole_is_no_answer(memory: MemoryCluster, holed: tuple[str, ...]) -> None:
    """Two replicas lack the place, the first later batch that they hold lies far behind it."""
    truth = fill(memory)
    gap(memory, 30, 60, *holed)
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        for moment_ms in range(1_050, 1_250, 5):
            assert await find(log, moment_ms) == truth.find_offset(moment_ms)
    assert sum(node.reads_opened for node in memory.nodes.values()) == 0


async def test_each_tells_a_part(memory: MemoryCluster) -> None:
    """Replicas with holes in different places find together what none finds alone."""
    truth = fill(memory)
    gap(memory, 0, 45, "n1")
    gap(memory, 45, 90, "n2")
    gap(memory, 30, 66, "n3")
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        for moment_ms in range(1_000, 1_300, 10):
            assert await find(log, moment_ms) == truth.find_offset(moment_ms)


async def test_damaged_placements_are_passed_over(memory: MemoryCluster) -> None:
    """Their checksum says that they prove nothing; another replica's do."""
    truth = fill(memory)
    for name in ("n1", "n2"):
        memory.nodes[name].faults.damaged_placements.update(range(30, 60, 3))
    async with connect(memory) as cluster:
        for moment_ms in range(1_080, 1_220, 5):
            assert await find(cluster.log("orders"), moment_ms) == truth.find_offset(moment_ms)


async def test_what_nobody_has_is_a_loss(memory: MemoryCluster) -> None:
    """Never a guess at one of the hole's edges; what lies elsewhere is found all the same."""
    fill(memory)
    for node in memory.nodes.values():
        node.faults.gaps.append((30, 33, DAMAGED))
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        with pytest.raises(DataLoss) as raised:
            await find(log, 1_100)
        assert (raised.value.first, raised.value.end) == (30, 33)
        assert await find(log, 1_085) == 27
        assert await find(log, 1_120) == 36


async def test_an_accepted_loss_is_stepped_over(memory: MemoryCluster) -> None:
    """It has no records, so the next one that there is counts."""
    log = fill(memory, batches=3)
    log.lose(5, accepted_ms=1, reason="two disks burnt")
    log.append(encode_records([(b"x", None, None)]), timestamp_ms=2_000)
    async with connect(memory) as cluster:
        found = cluster.log("orders")
        assert await find(found, 1_020) == 6
        assert await find(found, 1_021) == 14
        assert await find(found, 1_500) == 14
        assert await find(found, 2_001) == 15


async def test_servers_that_lag_do_not_hide_the_newest(memory: MemoryCluster) -> None:
    """All know a low committed tail; the reader gets the last headers as soon as one knows more."""
    fill(memory)
    for name in ("n1", "n2"):
        memory.nodes[name].faults.known_tail = 60
    memory.nodes["n3"].faults.time_errors.extend([Unreachable("away")] * 50)
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await find(log, 1_270) == 81
        assert await find(log, 1_291) == 90
        assert await find(log, 1_100) == 30


async def test_a_server_that_does_not_answer_is_asked_again(memory: MemoryCluster) -> None:
    """The others have a hole there: only this one can tell, and it comes back."""
    fill(memory)
    gap(memory, 30, 60, "n1", "n2")
    memory.nodes["n3"].faults.time_errors.extend([Unreachable("away")] * 2)
    async with connect(memory) as cluster:
        assert await find(cluster.log("orders"), 1_155) == 48


async def test_when_nobody_answers_it_says_so(memory: MemoryCluster) -> None:
    """As a read does, after as long a time, with the reasons."""
    fill(memory)
    for node in memory.nodes.values():
        node.faults.time_errors.extend([Unreachable("away")] * 1_000)
    async with sharedlog.connect(memory.address, read_config=HASTY) as cluster:
        with pytest.raises(Unreachable, match=r"\[0, 90\).*away"):
            await find(cluster.log("orders"), 1_155)


async def test_without_a_sequencer_what_is_known_is_found(memory: MemoryCluster) -> None:
    """Only the answer "at the tail" needs a tail that is certain."""
    fill(memory)
    config = sharedlog.ClientConfig(timeout_s=1.0)
    for node in memory.nodes.values():
        node.faults.find_tail_error = LogUnavailable("no sequencer")
    async with sharedlog.connect(memory.address, config=config, read_config=PATIENT) as cluster:
        log = cluster.log("orders")
        assert await find(log, 1_100) == 30
        with pytest.raises(LogUnavailable):
            await find(log, 5_000)


async def test_a_long_chain_costs_few_calls(memory: MemoryCluster) -> None:
    """Of a thousand segments some parts are described, and two log servers are asked: the answer
    is where a segment begins, and the batch before it is looked at as well."""
    log = memory.create("orders")
    for index in range(1_000):
        log.append(encode_records([(b"x", None, None)]), timestamp_ms=1_000 + index)
        log.roll()
    async with connect(memory) as cluster:
        found = cluster.log("orders")
        await found.tail()
        before = memory.describes
        for moment_ms in (1_001, 1_500, 1_998):
            assert await find(found, moment_ms) == moment_ms - 1_000
    assert memory.describes - before <= 21
    assert asked(memory) <= 6


def test_moments_are_aware_datetimes_or_whole_milliseconds() -> None:
    """Anything else is refused, for it could be read in two ways."""
    moment = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)
    assert timestamp_to_ms(moment) == 1_795_773_600_000
    assert timestamp_to_ms(moment.astimezone(timezone(timedelta(hours=2)))) == 1_795_773_600_000
    assert timestamp_to_ms(moment + timedelta(microseconds=1)) == 1_795_773_600_001
    assert timestamp_to_ms(moment - timedelta(microseconds=1)) == 1_795_773_600_000
    assert timestamp_to_ms(datetime(1969, 1, 1, tzinfo=UTC)) == 0
    assert timestamp_to_ms(17) == 17
    for wrong in (datetime(2026, 11, 27), -1, 1 << 63, True, 1.5, "now"):  # noqa: DTZ001
        with pytest.raises(InvalidArgument):
            timestamp_to_ms(wrong)  # type: ignore[arg-type]  # wrong on purpose
    for count in (-1, 1.5, True):
        with pytest.raises(InvalidArgument):
            sharedlog.from_tail(count)  # type: ignore[arg-type]  # wrong on purpose


async def test_what_is_purged_meanwhile_is_looked_for_no_more(memory: MemoryCluster) -> None:
    """The log servers have dropped it, and the description that the search began with is old."""
    truth = fill(memory)
    gap(memory, 0, 30, *memory.nodes)
    describe, told = truth.describe, 0

    def purged_since(**which: Any) -> types_pb2.LogDescription:
        nonlocal told
        told += 1
        found = describe(**which)
        found.start = found.trimmed = 0 if told == 1 else 30
        return found

    truth.describe = purged_since  # type: ignore[method-assign]
    async with connect(memory) as cluster:
        assert await find(cluster.log("orders"), 1_050) == 30
        first = await anext(cluster.log("orders").read(sharedlog.from_time(1_050)))
        assert first.offset == 30
    assert told > 1
