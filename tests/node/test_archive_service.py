"""Who does a trim: the process that orders the log, or the asked node if that can't be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from helpers.failover_parts import World3, log_record, node_record, running
from helpers.sim import run_virtual

from metadata.archive_rules import Committed
from metadata.records import LogRecord
from node.archive.service import ArchiveService
from node.archive.work import History, Told, Trimmed, go_on
from sharedlog.errors import InvalidArgument, LogNotFound, SharedLogError, Unreachable
from sharedlog.ids import NodeId, Offset
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.methods import PING, PURGE_LOG, TRIM_LOG
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp
from sharedlog.v1 import archive_pb2, cluster_pb2
from sharedlog.v1.archive_pb2 import HistoryBound, TrimLogRequest, TrimLogResponse

RECORD = log_record("orders", "n2")


@dataclass
class Work:
    """A history whose log ends at 100, of which 10 must stay."""

    trims: list[tuple[Offset, str]] = field(default_factory=list)
    who: str = ""

    async def committed(self, name: str) -> tuple[LogRecord, Committed]:
        assert name == "orders"
        return RECORD, Committed(0, Offset(100))

    async def trim_point(self, record: LogRecord, known: Committed, below: Offset) -> Offset:
        return min(below, Offset(known.tail - 10))

    async def trim(
        self, record: LogRecord, known: Committed, below: Offset, *, told: Told = go_on
    ) -> Trimmed:
        self.trims.append((below, self.who))
        point = await self.trim_point(record, known, below)
        return Trimmed(record=record, below=point, waiting=[NodeId("n3")])


class Moments:
    async def of(self, name: str, timestamp_ms: int, tail: Offset) -> Offset:
        return Offset(timestamp_ms // 1_000)


class Doors:
    """Transport of n1 to the others; those that are not there can't be reached."""

    def __init__(self, others: dict[str, Loopback]) -> None:
        self.others = others

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        if address not in self.others:
            raise Unreachable(f"can't reach {address}")
        return await self.others[address].call(address, method, request, timeout_s=timeout_s)

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        return self.others[address].stream(address, method)

    async def close(self) -> None:
        pass


@asynccontextmanager
async def service(there: str) -> AsyncIterator[tuple[Loopback, list[tuple[Offset, str]], Loopback]]:
    """n1's service, and n2's, which orders the log and is "up", "away" or "dies" in the middle."""
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, 4)))
    world.put_log(RECORD)
    near, far = Loopback(), Loopback()
    trims: list[tuple[Offset, str]] = []

    async def ping(_: cluster_pb2.PingRequest) -> cluster_pb2.PingResponse:
        return cluster_pb2.PingResponse()

    async def die(stream: Any) -> None:
        await stream.receive()
        await stream.send(TrimLogResponse(offload=archive_pb2.OffloadLogResponse(objects=1)))
        raise Unreachable("the connection broke")

    async with running(world, "n1") as one, running(world, "n2") as two:
        doors = Doors({"n2:1": far} if there != "away" else {})
        for part, door in ((one, near), (two, far)):
            made = ArchiveService(
                me=part.me,
                view=part.view,
                transport=doors,
                history=cast("History", Work(trims, str(part.me.node_id))),
                offsets=Moments(),
                tools=None,
            )
            if there == "dies" and door is far:
                door.add_stream(TRIM_LOG, die)
            else:
                made.register(door)
        far.add_call(PING, ping)
        try:
            yield near, trims, far
        finally:
            await near.close()
            await far.close()


async def trim(door: Loopback, **fields: Any) -> list[TrimLogResponse]:
    stream = door.stream("", TRIM_LOG)
    await stream.send(TrimLogRequest(log="orders", **fields))
    await stream.end()
    answers = []
    while (answer := await stream.receive()) is not None:
        answers.append(answer)
    return answers


@pytest.mark.parametrize(
    ("there", "direct_only", "doer"),
    [("up", False, "n2"), ("up", True, "n1"), ("away", False, "n1"), ("dies", False, "n1")],
)
def test_field_note_44_a_trim_goes_to_who_orders_the_log_once(
    there: str, direct_only: bool, doer: str
) -> None:
    """And is done by the asked node if that ends in nothing; the answer states how far it went."""

    async def scenario() -> None:
        async with service(there) as (near, trims, _):
            bound = HistoryBound(before=95)
            answers = await trim(near, bound=bound, direct_only=direct_only)
            assert trims == [(95, doer)]
            last = answers[-1]
            assert [it.done for it in answers] == [False] * (len(answers) - 1) + [True]
            assert (last.wanted, last.trimmed, list(last.waiting)) == (95, 90, ["n3"])

    run_virtual(scenario)


def test_bounds_are_offsets_or_moments() -> None:
    """A dry run does nothing; no bound at all, or one beyond the tail of a purge, is refused."""

    async def scenario() -> None:
        async with service("up") as (near, trims, _):
            (answer,) = await trim(near, bound=HistoryBound(older_than_ms=30_000), dry_run=True)
            assert (answer.done, answer.wanted, answer.trimmed) == (True, 30, 30)
            assert trims == []
            with pytest.raises(InvalidArgument, match="up to where"):
                await trim(near)
            request = archive_pb2.PurgeLogRequest(log="orders", bound=HistoryBound(before=101))
            with pytest.raises(InvalidArgument, match="its tail is 100"):
                await near.call("", PURGE_LOG, request, timeout_s=1)

    run_virtual(scenario)


def test_what_the_sequencer_says_is_not_tried_elsewhere() -> None:
    """A refusal is an answer."""

    async def scenario() -> None:
        async with service("up") as (near, trims, far):
            refusals: list[SharedLogError] = [
                InvalidArgument("no archive"),
                LogNotFound(name="orders"),
            ]

            async def refuse(stream: Any) -> None:
                await stream.receive()
                raise refusals[0]

            far.add_stream(TRIM_LOG, refuse)
            while refusals:
                with pytest.raises(type(refusals[0])):
                    await trim(near, bound=HistoryBound(before=9))
                refusals.pop(0)
            assert trims == []

    run_virtual(scenario)
