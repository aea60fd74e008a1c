"""Whom a search asks: a node that may be the dead one must not hold up the log that it left."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from helpers.failover_parts import log_record, node_record
from helpers.log_servers import placed
from helpers.sim import SimClock, run_virtual

from metadata.records import NodeRecord
from sequencer.history import LogHistory
from sharedlog.batch import HEADERS_BYTES
from sharedlog.ids import LogletId, NodeId, Offset
from sharedlog.rpc.loopback import Loopback, RoutingTransport
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.read_answer import ReadAnswer
from sharedlog.rpc.transport import ServerStream
from sharedlog.v1 import log_server_pb2

Stream = ServerStream[ReadAnswer, log_server_pb2.ReadLogletRequest]
RECORD = log_record("orders", "n2")
LOGLET: LogletId = RECORD.loglet(RECORD.open_segment)


async def search(
    silent: set[str], *, own: str, seed: int, held_dead: bool = False
) -> tuple[list[str], float]:
    """Who was asked, in order, and how long it took, if these log servers do not answer."""
    asked: list[str] = []

    def server(name: str) -> Loopback:
        async def read(stream: Stream) -> None:
            await stream.receive()
            asked.append(name)
            if name in silent:
                await asyncio.Event().wait()
            batch = placed(0, 5, loglet=LOGLET)[:HEADERS_BYTES]
            await stream.send(ReadAnswer(Offset(5), [batch]))

        found = Loopback()
        found.add_stream(READ_LOGLET, read)
        return found

    servers = {f"n{n}:1": server(f"n{n}") for n in (1, 2, 3)}
    first, *_ = servers.values()
    clock = SimClock()

    def directory(node_id: NodeId) -> NodeRecord:
        return node_record(node_id)

    history = LogHistory(
        transport=RoutingTransport(servers, default=first),
        directory=directory,
        clock=clock,
        random=Random(seed),
        own=NodeId(own),
        held_dead=lambda node_id: held_dead and node_id in silent,
    )
    try:
        began_s = clock.monotonic_s()
        pages = [page async for page in history.scan(RECORD, Offset(0), Offset(5))]
        assert [page.up_to for page in pages] == [5]
        return asked, clock.monotonic_s() - began_s
    finally:
        for it in servers.values():
            await it.close()


@pytest.mark.parametrize("seed", range(6))
def test_the_own_log_server_is_asked_first(seed: int) -> None:
    """It lives for certain: the others may be silent, and the search is over at once."""
    asked, seconds = run_virtual(lambda: search({"n1", "n2"}, own="n3", seed=seed))
    assert asked == ["n3"]
    assert seconds < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_a_silent_log_server_is_left_soon(seed: int) -> None:
    """Who has said nothing after half a second is passed over for the next one."""
    asked, seconds = run_virtual(lambda: search({"n1", "n2"}, own="n9", seed=seed))
    assert asked[-1] == "n3"
    assert seconds < 0.1 + 0.5 * (len(asked) - 1)


@pytest.mark.parametrize("seed", range(6))
def test_those_that_are_held_dead_come_last(seed: int) -> None:
    """Whoever took the log over knows who has just died: the search costs no wait for it."""
    asked, seconds = run_virtual(lambda: search({"n1", "n2"}, own="n9", seed=seed, held_dead=True))
    assert asked == ["n3"]
    assert seconds < 0.1
