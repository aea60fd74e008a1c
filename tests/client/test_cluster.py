"""`connect`, the cluster's calls, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.connection import parse_addresses
from sharedlog.errors import (
    InvalidArgument,
    LogExists,
    LogNotFound,
    MetadataUnavailable,
    Unreachable,
)


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        yield cluster


async def test_logs_are_created_listed_and_described(memory: MemoryCluster) -> None:
    """Listing goes through all pages; describing an unknown log is LogNotFound."""
    memory.page = 2
    async with sharedlog.connect(memory.address) as cluster:
        for name in ("b/1", "a", "b/2", "b/3", "c"):
            log = await cluster.create_log(name, replicas=3, write_quorum=2)
            assert log.name == name
        assert [log.name for log in await cluster.list_logs("b/")] == ["b/1", "b/2", "b/3"]
        assert len(await cluster.list_logs()) == 5
        assert (await cluster.describe_log("a")).write_quorum == 2
        assert (await cluster.log("a").describe()).name == "a"
        with pytest.raises(LogExists):
            await cluster.create_log("a")
        with pytest.raises(LogNotFound):
            await cluster.describe_log("d")
        with pytest.raises(InvalidArgument):
            await cluster.create_log("d", replicas=0)
        assert [node.node_id for node in await cluster.nodes()] == ["n1", "n2", "n3"]
        assert (await cluster.status()).cluster_id == "memory"


async def test_any_of_several_addresses_will_do(memory: MemoryCluster) -> None:
    """Addresses of nodes that are down are passed over."""
    nobody = "127.0.0.1:1"
    async with sharedlog.connect(f"{nobody}, {memory.address}") as cluster:
        log = await cluster.create_log("orders")
        assert await log.append(b"x") == 0
    async with sharedlog.connect([nobody, memory.address], routing="plain") as cluster:
        assert await cluster.log("orders").append(b"y") == 1
        assert await cluster.log("orders").tail() == 2


async def test_nodes_that_were_learned_stand_in_for_the_one_given(memory: MemoryCluster) -> None:
    """A client that knows one address outlives that node."""
    async with sharedlog.connect(memory.nodes["n3"].address) as cluster:
        log = await cluster.create_log("orders")
        await memory.nodes["n3"].stop()
        assert await log.append(b"x") == 0
        assert (await cluster.describe_log("orders")).name == "orders"
        assert [record.value async for record in log.read()] == [b"x"]


@pytest.mark.slow
async def test_calls_are_tried_again_for_a_while(memory: MemoryCluster) -> None:
    """What may pass is waited for; when the time is up the last reason is raised."""
    memory.create("orders")
    # No time for a second try, which the deadline could cut short.
    config = sharedlog.ClientConfig(timeout_s=1.0, backoff_min_s=2.0, backoff_max_s=2.0)
    gone = MetadataUnavailable("no metadata store")
    async with sharedlog.connect(memory.address, routing="plain") as cluster:
        memory.nodes["n1"].faults.describe_errors.extend([gone, gone])
        assert (await cluster.describe_log("orders")).name == "orders"
    async with sharedlog.connect(memory.address, config=config, routing="plain") as cluster:
        memory.nodes["n1"].faults.describe_errors.extend([gone] * 100)
        with pytest.raises(MetadataUnavailable, match="no metadata store"):
            await cluster.describe_log("orders")
    async with sharedlog.connect("127.0.0.1:1", config=config) as cluster:
        with pytest.raises(Unreachable):
            await cluster.nodes()


@pytest.mark.parametrize("address", ["", " , ", "localhost", "host:", ":1", "host:port", "h:70000"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """A clear error at `connect`, not a time-out later."""
    with pytest.raises(InvalidArgument):
        sharedlog.connect(address, transport=object())  # type: ignore[arg-type]  # never used


def test_addresses_come_as_text_or_sequence() -> None:
    """Both forms of several addresses."""
    assert parse_addresses("a:1, b:2") == parse_addresses(["a:1", "b:2"]) == ["a:1", "b:2"]


def test_settings_out_of_range_are_refused() -> None:
    """Each setting has its bounds."""
    for settings in ({"batch_bytes": 1 << 30}, {"batch_records": 0}, {"slots": 0}):
        with pytest.raises(InvalidArgument):
            sharedlog.AppenderConfig(**settings)  # type: ignore[arg-type]  # all of them are ints
    with pytest.raises(InvalidArgument):
        sharedlog.AppenderConfig(linger_s=5, timeout_s=1)
    with pytest.raises(InvalidArgument):
        sharedlog.connect("a:1", routing="clever")  # type: ignore[arg-type]  # the point


def test_importing_the_package_loads_neither_grpc_nor_asyncio() -> None:
    """`sharedlog --help` and scripts that only want the version pay for nothing else."""
    code = (
        "import sys, sharedlog; sharedlog.__version__\n"
        "assert not {'grpc', 'asyncio', 'google.protobuf'} & set(sys.modules)\n"
        "for name in sharedlog.__all__: getattr(sharedlog, name)\n"
        "assert 'connect' in dir(sharedlog)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
