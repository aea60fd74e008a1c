"""Logs made by their first append, namespaces, listings and cursors, on real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
from helpers.processes import NodeProcess

import sharedlog
from sharedlog.batch import encode_records
from sharedlog.errors import (
    CursorLost,
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    NotSequencer,
    VersionMismatch,
)
from sharedlog.retention_proto import retention_from_proto
from sharedlog.rpc import methods
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.v1 import log_pb2, types_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DAY = 86_400
Nodes = dict[str, NodeProcess]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes in two zones, and "m" that hosts the metadata and nothing else."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        host = NodeProcess(folder / "m", "m", roles=("metadata",))
        found = {"m": host}
        for index, name in enumerate(("n1", "n2", "n3")):
            found[name] = NodeProcess(
                folder / name,
                name,
                metadata=f"embedded://{host.address}",
                settings={"SHAREDLOG_LOCATION": f"eu.z{index % 2}"},
            )
        for node in found.values():
            stack.enter_context(node)
        for node in found.values():
            node.wait_ready()
        yield found


@pytest.fixture
async def transport() -> AsyncIterator[GrpcTransport]:
    opened = GrpcTransport()
    yield opened
    await opened.close()


@pytest.fixture
async def cluster(nodes: Nodes) -> AsyncIterator[sharedlog.Cluster]:
    async with sharedlog.connect(nodes["n1"].address) as connected:
        yield connected


def record(value: bytes) -> types_pb2.Record:
    return types_pb2.Record(value=value)


def told(settings: list[types_pb2.Setting]) -> dict[str, tuple[str, str]]:
    return {it.name: (it.value, it.source) for it in settings}


# Made by the first append.


async def test_a_plain_append_makes_the_log_at_whichever_node_is_asked(
    nodes: Nodes, transport: GrpcTransport
) -> None:
    """Only if it says so; a node without any role in the log does it too."""
    for name in ("n1", "m"):
        request = log_pb2.AppendRequest(log=f"plain/{name}", records=[record(b"x")])
        with pytest.raises(LogNotFound):
            await transport.call(nodes[name].address, methods.APPEND, request, timeout_s=10)
        request.create = True
        done = await transport.call(nodes[name].address, methods.APPEND, request, timeout_s=10)
        assert (done.first_offset, done.next_offset) == (0, 1)
        done = await transport.call(nodes[name].address, methods.APPEND, request, timeout_s=10)
        assert done.first_offset == 1


async def test_a_session_makes_the_log_before_it_opens(
    nodes: Nodes, transport: GrpcTransport, cluster: sharedlog.Cluster
) -> None:
    """With `direct_only` too: the log is there then, and the answer says who orders it."""
    opening = log_pb2.AppendSessionOpen(log="session/a", create=True)
    stream = transport.stream(nodes["m"].address, methods.APPEND_SESSION)
    await stream.send(SessionRequest(open=opening))
    opened = await stream.receive()
    assert opened is not None
    assert opened.HasField("opened")
    await stream.send(SessionRequest(batch=encode_records([(b"x", None, None)])))
    await stream.end()
    answer = await stream.receive()
    assert answer is not None
    assert answer.results[0].first_offset == 0
    stream.cancel()
    stream = transport.stream(nodes["m"].address, methods.APPEND_SESSION)
    opening = log_pb2.AppendSessionOpen(log="session/b", create=True, direct_only=True)
    await stream.send(SessionRequest(open=opening))
    with pytest.raises(NotSequencer) as refused:
        await stream.receive()
    stream.cancel()
    made = await cluster.describe_log("session/b")
    assert refused.value.sequencer_node_id == made.chain[-1].sequencer.node_id


async def test_many_who_make_one_log_at_once_append_to_the_same(nodes: Nodes) -> None:
    """Through all nodes, in both routings: one log, every record in it once."""
    addresses = [nodes[name].address for name in ("n1", "n2", "n3", "m")]

    async def append(index: int) -> int:
        routing: sharedlog.cluster.Routing = "smart" if index % 2 else "plain"
        async with sharedlog.connect(addresses[index % 4], routing=routing) as cluster:
            return await cluster.log("at/once", create=True).append(b"%d" % index)

    offsets = await asyncio.gather(*(append(index) for index in range(16)))
    assert sorted(offsets) == list(range(16))
    async with sharedlog.connect(addresses[0]) as cluster:
        values = [record.value async for record in cluster.log("at/once").read()]
    assert [values[offset] for offset in offsets] == [b"%d" % index for index in range(16)]


async def test_a_log_that_cannot_be_made_is_a_definite_failure(
    nodes: Nodes, cluster: sharedlog.Cluster
) -> None:
    """More replicas than servers: it stays so until the deadline, and nothing is in any log."""
    await cluster.namespaces.set("too-many/", replicas=5)
    config = sharedlog.AppenderConfig(timeout_s=1.5)
    async with sharedlog.connect(nodes["n1"].address, append_config=config) as other:
        with pytest.raises(LogUnavailable, match="5 replicas need 5 log servers"):
            await other.log("too-many/a", create=True).append(b"x")
    with pytest.raises(LogNotFound):
        await cluster.describe_log("too-many/a")


# Namespaces.


async def test_a_log_gets_what_its_namespaces_say_and_keeps_it(
    nodes: Nodes, cluster: sharedlog.Cluster
) -> None:
    """However it is made, by any node, at once after the setting; later changes pass it by."""
    await cluster.namespaces.set("team/", replicas=3, spread={"zone": 2})
    await cluster.namespaces.set("team/tmp/", replicas=1, spread={})
    for name in ("n2", "m"):
        async with sharedlog.connect(nodes[name].address) as other:
            await other.log(f"team/{name}", create=True).append(b"x")
            made = await other.describe_log(f"team/{name}")
            assert (made.replicas, made.write_quorum, dict(made.spread)) == (3, 2, {"zone": 2})
            assert told([*made.created_with]) == {
                "replicas": ("3", "namespace:team/"),
                "write_quorum": ("2", "default"),
                "spread": ("zone:2", "namespace:team/"),
            }
            assert made.chain[0].spread == {"zone": 2}
            await other.create_log(f"team/tmp/{name}", write_quorum=1)
            made = await other.describe_log(f"team/tmp/{name}")
            assert (made.replicas, made.write_quorum, dict(made.spread)) == (1, 1, {})
            assert told([*made.created_with])["write_quorum"] == ("1", "create")
    await cluster.namespaces.set("team/", replicas=2, inherit=["spread"])
    made = await cluster.describe_log("team/m")
    assert made.replicas == 3
    await cluster.create_log("team/later")
    assert (await cluster.describe_log("team/later")).replicas == 2
    await cluster.admin.reconfigure("team/m", replicas=1, write_quorum=1, spread={})
    made = await cluster.describe_log("team/m")
    assert (made.replicas, told([*made.created_with])["replicas"][0]) == (1, "3")


async def test_namespaces_are_set_shown_listed_and_deleted(cluster: sharedlog.Cluster) -> None:
    """With compare-and-swap where it is asked for, and refused with the reason."""
    spaces = cluster.namespaces
    made = await spaces.set("s/", replicas=3, write_quorum=3, expected_version=0)
    assert (made.replicas, made.write_quorum, made.HasField("spread")) == (3, 3, False)
    with pytest.raises(VersionMismatch):
        await spaces.set("s/", replicas=1, expected_version=0)
    with pytest.raises(InvalidArgument, match=r"write_quorum 3 \(namespace:s/\)"):
        await spaces.set("s/t/", replicas=2)
    with pytest.raises(InvalidArgument, match="no level"):
        await spaces.set("s/", spread={"town": 2})
    below = await spaces.set("s/t/", write_quorum=2)
    assert told([*below.effective]) == {
        "replicas": ("3", "namespace:s/"),
        "write_quorum": ("2", "namespace:s/t/"),
        "spread": ("", "default"),
        "near": ("", "default"),
        "local_bytes": ("", "default"),
        "local_age": ("", "default"),
        "total_age": ("", "default"),
    }
    nothing = await spaces.get("s/t/u/")
    assert (nothing.version, told([*nothing.effective])["write_quorum"][0]) == (0, "2")
    assert [it.prefix for it in await spaces.list("s/")] == ["s/", "s/t/"]
    assert await spaces.delete("s/t/", expected_version=below.version)
    assert not await spaces.delete("s/t/")
    assert [it.prefix for it in await spaces.list("s/")] == ["s/"]
    with pytest.raises(InvalidArgument, match="no namespace"):
        await spaces.set("s", replicas=3)


async def test_how_long_records_are_kept_is_inherited_asked_for_and_changed(
    nodes: Nodes, cluster: sharedlog.Cluster
) -> None:
    """Field by field, by any node; the log tells what is in force and what it was created with."""
    kept = sharedlog.Retention(local_age_s=7 * DAY, total_age_s=30 * DAY)
    space = await cluster.namespaces.set("kept/", retention=kept)
    assert (space.retention.local_age_s, space.retention.HasField("local_bytes")) == (
        7 * DAY,
        False,
    )
    assert told([*space.effective])["total_age"] == ("30d", "namespace:kept/")
    asked = sharedlog.Retention(local_bytes=10 << 30, total_age_s=0)
    await cluster.create_log("kept/a", retention=asked)
    made = await cluster.describe_log("kept/a")
    assert retention_from_proto(made.retention) == sharedlog.Retention(
        local_bytes=10 << 30, local_age_s=7 * DAY
    )
    assert told([*made.created_with]) | {
        "local_bytes": ("10GiB", "create"),
        "local_age": ("7d", "namespace:kept/"),
        "total_age": ("", "create"),
    } == told([*made.created_with])
    assert (made.start, made.trimmed, made.archived_end) == (0, 0, 0)
    with pytest.raises(InvalidArgument, match="less than the local age of 7d"):
        await cluster.set_retention("kept/a", sharedlog.Retention(total_age_s=DAY))
    async with sharedlog.connect(nodes["m"].address) as other:
        change = sharedlog.Retention(local_bytes=0, total_age_s=8 * DAY)
        changed = await other.set_retention("kept/a", change)
        assert changed == await other.set_retention("kept/a", change)
    found = sharedlog.Retention(local_age_s=7 * DAY, total_age_s=8 * DAY)
    assert retention_from_proto(changed.retention) == found
    await cluster.admin.reconfigure("kept/a")
    made = await cluster.describe_log("kept/a")
    assert (retention_from_proto(made.retention), len(made.chain)) == (found, 1)
    assert told([*made.created_with])["local_bytes"] == ("10GiB", "create")
    with pytest.raises(LogNotFound):
        await cluster.set_retention("kept/b", change)
    with pytest.raises(InvalidArgument, match="local_age_s is -1"):
        await cluster.create_log("kept/b", retention=sharedlog.Retention(local_age_s=-1))


async def test_logs_are_listed_in_short(cluster: sharedlog.Cluster) -> None:
    """By prefix and page; what is shown is what describing shows."""
    for index in range(5):
        await cluster.create_log(f"list/{index}", replicas=3)
    async with asyncio.timeout(60):
        while len((await cluster.list_page("list/")).logs) < 5:  # noqa: ASYNC110  # a watch's delay
            await asyncio.sleep(0.02)
    page = await cluster.list_page("list/", after="list/0", limit=2)
    assert ([it.name for it in page.logs], page.next_after) == (["list/1", "list/2"], "list/2")
    assert [it.name async for it in cluster.iter_logs("list/")] == [f"list/{i}" for i in range(5)]
    full, short = await cluster.describe_log("list/1"), page.logs[0]
    for name in ("log_id", "name", "replicas", "write_quorum", "created_ms", "chain_version"):
        assert getattr(full, name) == getattr(short, name)
    assert short.sequencer_node_id == full.chain[-1].sequencer.node_id
    assert list(short.node_ids) == [it.node_id for it in full.chain[-1].nodeset]


# Cursors.


async def test_two_owners_never_both_move_a_cursor(nodes: Nodes) -> None:
    """Owners come and go at random, through all nodes and in both routings. Each move that is
    acknowledged was made by who had the cursor then: positions only rise, and the last one that was
    acknowledged is where the cursor is."""
    addresses = [nodes[name].address for name in ("n1", "n2", "n3", "m")]
    acknowledged: list[tuple[int, int]] = []  # epoch and position
    lost: list[int] = []  # epochs
    async with sharedlog.connect(addresses[0]) as cluster:
        await cluster.create_log("cursors")
        await cluster.log("cursors").append_batch([b"x"] * 1_000)

    async def own(index: int) -> None:
        routing: sharedlog.cluster.Routing = "smart" if index % 2 else "plain"
        async with sharedlog.connect(addresses[index % 4], routing=routing) as cluster:
            for turn in range(3):
                cursor = cluster.log("cursors").cursor("c", commit_every_s=0)
                await cursor.open()
                try:
                    for _ in range(10 + index * turn):
                        await cursor.commit(cursor.position + 1)
                        acknowledged.append((cursor.epoch, cursor.position))
                except CursorLost:
                    lost.append(cursor.epoch)
                await cursor.close()

    async with asyncio.TaskGroup() as tasks:
        for index in range(6):
            tasks.create_task(own(index))
    assert len(acknowledged) >= 10
    assert len({position for _, position in acknowledged}) == len(acknowledged)
    assert sorted(acknowledged) == sorted(acknowledged, key=lambda it: it[1])
    async with sharedlog.connect(addresses[3]) as cluster:
        found = await cluster.log("cursors").cursors.get("c")
    assert found.epoch == 18
    assert 18 not in lost
    assert found.position == max(position for _, position in acknowledged)


async def test_a_cursor_outlives_its_owner_and_its_nodes(
    nodes: Nodes, cluster: sharedlog.Cluster
) -> None:
    """An owner that is gone without a word: the next goes on from what was written last."""
    log = cluster.log("orders", create=True)
    await log.append_batch([b"%d" % index for index in range(10)])
    abandoned = await log.cursor("billing", commit_every_s=0).open()
    assert [it.offset async for it in abandoned.read(limit=4)] == [0, 1, 2, 3]
    await abandoned.commit()
    async with (
        sharedlog.connect(nodes["m"].address, routing="plain") as other,
        other.log("orders").cursor("billing") as cursor,
    ):
        assert (cursor.position, cursor.epoch) == (4, 2)
        assert await cursor.lag() == 6
        assert [it.offset async for it in cursor.read()] == [4, 5, 6, 7, 8, 9]
    with pytest.raises(CursorLost):
        await abandoned.commit(9)
    await abandoned.close()
