"""A node that is cut off from the metadata store tells an old chain: nobody may depend on it."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from sharedlog.clock import SystemClock
from sharedlog.config import ClientConfig
from sharedlog.connection import Connection
from sharedlog.errors import Unreachable
from sharedlog.ids import Offset
from sharedlog.route import Route
from sharedlog.v1 import log_pb2, types_pb2


class Nodes:
    """Nodes by address, each with the version of the chain that it knows; 0: it does not answer.

    From version 2 on the first segment has ended, at 5.
    """

    def __init__(self, **versions: int) -> None:
        self.versions = versions
        self.asked: Counter[str] = Counter()

    async def call(self, address: str, _: Any, request: Any, *, timeout_s: float) -> Any:
        assert isinstance(request, log_pb2.DescribeLogRequest)
        self.asked[address] += 1
        version = self.versions[address]
        if not version:
            raise Unreachable(address)
        first = types_pb2.Segment(index=0, base=0)
        chain = [first]
        if version > 1:
            first.end = 5
            chain.append(types_pb2.Segment(index=1, base=5))
        found = types_pb2.LogDescription(name="l", log_id=1, chain_version=version, chain=chain)
        return log_pb2.DescribeLogResponse(log=found)

    def route(self) -> Route:
        connection = Connection(
            self,  # type: ignore[arg-type]  # as much of a transport as is used
            list(self.versions),
            clock=SystemClock(),
            rng=Random(1),
            smart=True,
            config=ClientConfig(),
        )
        return Route(connection, "l")


async def test_who_knows_less_than_the_client_is_passed_over() -> None:
    """A replica has told the end, so there is a newer chain: the cut-off node, asked first and
    quick to answer, must not keep the reader from it."""
    nodes = Nodes(a=1, b=2)
    route = nodes.route()
    assert (await route.slice_at(Offset(5))).chain_version == 1
    found = await route.slice_at(Offset(5), refresh=True, min_version=2)
    assert found.chain_version == 2
    assert (await route.open_segment()).chain_version == 2


async def test_each_look_for_something_new_asks_another_node() -> None:
    """Nobody has told of a newer chain: an idle follower finds it all the same, at its next look or
    the one after it. A node that has not answered lately is left out."""
    nodes = Nodes(a=1, dead=0, b=2)
    route = nodes.route()
    await route.slice_at(Offset(5))
    found = [(await route.slice_at(Offset(5), refresh=True)).chain_version for _ in range(9)]
    assert set(found) == {2}, "once known, an older one is never taken"
    assert nodes.asked["dead"] == 1
    nodes.versions["b"] = 0
    nodes.versions["a"] = 3
    assert (await route.slice_at(Offset(5), refresh=True)).chain_version == 3


async def test_an_old_chain_is_taken_when_there_is_no_other() -> None:
    """All nodes that answer know less: that is what there is, and it does not take for ever."""
    nodes = Nodes(a=2, b=3, dead=0)
    route = nodes.route()
    route.learn_version(9)
    assert (await route.slice_at(Offset(5))).chain_version == 3, "the newest of them"
    assert nodes.asked == {"a": 1, "b": 1, "dead": 1}
    many = Nodes(**{f"n{i}": 1 for i in range(20)})
    route = many.route()
    route.learn_version(2)
    assert (await route.slice_at(Offset(5))).chain_version == 1
    assert many.asked.total() == 4
    many.versions["n19"] = 2
    found = [(await route.slice_at(Offset(5))).chain_version for _ in range(5)]
    assert found == [1, 1, 1, 2, 2], "the others come next"
