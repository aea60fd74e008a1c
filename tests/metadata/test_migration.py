"""Moving a cluster from one metadata store to another: never are both live, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from helpers.memory_metadata import MemoryMetadata

from metadata import migration
from metadata.core import Load
from metadata.cursor_registry import delete_cursor
from metadata.encoding import cursor_key
from metadata.lease import Lease, keep, release
from metadata.migration import Place, Plan, Progress, living_nodes, look, migrate, undo
from metadata.moved import moved_to, moving_from, where_moved, where_moving
from metadata.records import CLUSTER_KEY, CONTROLLER_KEY, LogRecord, NodeRecord
from metadata.registry import commit_change, create_log, fetch_log, join_cluster, register_node
from metadata.standing import StandingMetadataStore
from metadata.store import ABSENT, Entry, MetadataStore, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    InvalidArgument,
    MetadataUnavailable,
    SharedLogError,
    WrongCluster,
)
from sharedlog.ids import Generation, LogId, NodeId, StorageId
from sharedlog.limits import METADATA_VALUE_BYTES_MAX
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.methods import PING
from sharedlog.v1 import cluster_pb2

LOGS = ("a", "b/c", "d")


def new_id() -> str:
    return "0" * 32


class Faulty(MemoryMetadata):
    """A store that ends the run at the n-th call that changes something, or right after it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fails_at: int | None = None
        self.made = False  # the change that fails was made

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        self.calls += 1
        fails = self.calls == self.fails_at
        if fails and not self.made:
            raise MetadataUnavailable("no answer")
        version = await super().put(key, value, expected=expected)
        if fails:
            raise MetadataUnavailable("no answer")
        await asyncio.sleep(0)
        return version


async def fill(store: MemoryMetadata) -> str:
    """A small cluster; returns its id."""
    nodes = [
        await register_node(
            store,
            node_id=NodeId(name),
            storage_id=StorageId(f"s-{name}"),
            address=f"{name}:1",
            roles=("log-server", "sequencer"),
            known_cluster_id="",
            new_id=new_id,
            now_ms=1,
        )
        for name in ("n1", "n2")
    ]
    for number, name in enumerate(LOGS):
        await create_log(
            store,
            name=name,
            replicas=2,
            write_quorum=2,
            nonce="",
            alive=nodes,
            load=Load(),
            log_id=LogId(number + 1),
            now_ms=1,
        )
    await store.put("cursors/1/c", b"cursor", expected=ABSENT)
    await store.put("namespaces/", b"namespace", expected=ABSENT)
    lease = Lease(holder=NodeId("n1"), nonce="n", ttl_s=0.01)
    await keep(store, lease, SystemClock())
    return (await cluster_of(store)).value.decode()


async def cluster_of(store: MemoryMetadata) -> Entry:
    entry = await store.get(CLUSTER_KEY)
    assert entry is not None
    return entry


async def starts(store: MemoryMetadata) -> bool:
    """Whether a node would start on it, one that remembers nothing of a cluster."""
    before = dict(store.entries)
    try:
        await join_cluster(store, known_cluster_id="", new_id=lambda: "f" * 32, now_ms=2)
    except WrongCluster:
        return False
    finally:
        store.entries = before
    return True


def values_of(store: MemoryMetadata) -> dict[str, bytes]:
    """All but the lease, which is nobody's in another store."""
    return {key: entry.value for key, entry in store.entries.items() if key != CONTROLLER_KEY}


def places(source: MemoryMetadata, target: MemoryMetadata) -> tuple[Place, Place]:
    return Place(source, "embedded://h:1"), Place(target, "s3://bucket/prefix")


async def run(source: Place, target: Place) -> Progress:
    progress = Progress()
    await migrate(source, target, await look(source, target), progress)
    return progress


async def test_all_of_it_moves() -> None:
    """Every value but the lease, byte for byte; nodes start on the target alone, and are told."""
    old, new = MemoryMetadata(), MemoryMetadata()
    source, target = places(old, new)
    await fill(old)
    wanted = values_of(old)
    plan = await look(source, target)
    assert (plan.begun, plan.complete, plan.keys) == (False, False, len(wanted) - 1)
    assert values_of(old) == wanted
    assert not new.entries, "looking changes nothing"
    progress = await run(source, target)
    assert (progress.done, progress.copied) == (True, len(wanted) - 1)
    assert values_of(new) == wanted
    assert CONTROLLER_KEY not in new.entries
    known = (await join_cluster(new, known_cluster_id="", new_id=new_id, now_ms=1)).cluster_id
    with pytest.raises(WrongCluster, match="was moved to s3://bucket/prefix: start the node with"):
        await join_cluster(old, known_cluster_id=known, new_id=new_id, now_ms=1)
    again = await run(source, target)
    assert (again.done, again.already, again.copied) == (True, True, 0)


@pytest.mark.parametrize("made", [False, True], ids=["not-made", "made-unheard"])
@pytest.mark.parametrize("of_source", [False, True], ids=["target", "source"])
async def test_an_interrupted_run_goes_on(*, made: bool, of_source: bool) -> None:
    """Wherever it ends: never do nodes start on both, and a further run ends it."""
    for fails_at in range(1, 30):
        old, new = Faulty(), Faulty()
        source, target = places(old, new)
        await fill(old)
        wanted = values_of(old)
        faulty = old if of_source else new
        faulty.calls, faulty.fails_at, faulty.made = 0, fails_at, made
        interrupted = False
        try:
            await run(source, target)
        except MetadataUnavailable:
            interrupted = True
        if new.entries:  # else nothing has begun
            assert not (await starts(old) and await starts(new))
            assert values_of(new) == wanted or not await starts(new)
        faulty.fails_at = None
        progress = await run(source, target)
        assert progress.done
        assert values_of(new) == wanted
        assert not await starts(old)
        if not interrupted:
            assert fails_at > len(wanted)
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("fails_at", range(1, 24))
async def test_what_has_begun_can_be_undone(fails_at: int) -> None:
    """Up to the last step; the source is then what it was, and the target empty."""
    old, new = MemoryMetadata(), Faulty()
    source, target = places(old, new)
    await fill(old)
    wanted = values_of(old)
    new.fails_at = fails_at
    try:
        await run(source, target)
    except MetadataUnavailable:
        await undo(source, target, Progress())
        await undo(source, target, Progress())
        assert values_of(old) == wanted
        assert not new.entries
        assert await starts(old)
        new.fails_at = None
        assert (await run(source, target)).done
    with pytest.raises(WrongCluster, match="holds a cluster, and not a part of one"):
        await undo(source, target, Progress())
    assert values_of(new) == wanted


async def test_an_undone_run_that_still_goes_on_does_not_end_well() -> None:
    """Its last step is a compare-and-swap on what the undoing has taken away."""
    old, new = MemoryMetadata(), MemoryMetadata()
    source, target = places(old, new)
    await fill(old)
    plan = await look(source, target)
    marker = moving_from(source.url, plan.cluster)
    await new.put(CLUSTER_KEY, marker, expected=ABSENT)
    begun = await look(source, target)
    await undo(source, target, Progress())
    with pytest.raises(WrongCluster, match="was it undone"):
        await migrate(source, target, begun, Progress())
    assert not await starts(old)
    await undo(source, target, Progress())
    assert await starts(old)


async def test_what_an_undone_run_still_closes_can_be_opened_again() -> None:
    """It was busy with a key while that was undone: the cluster is open, and the key is not."""
    old, new = MemoryMetadata(), MemoryMetadata()
    source, target = places(old, new)
    await fill(old)
    wanted = values_of(old)
    here = old.entries["logs/a"]
    await old.put("logs/a", moved_to(target.url, here.value), expected=here.version)
    await new.put("logs/a", here.value, expected=ABSENT)
    progress = Progress()
    await undo(source, target, progress)
    assert progress.moved == 1
    assert values_of(old) == wanted
    assert not new.entries
    assert (await run(source, target)).done


async def test_what_a_node_changes_meanwhile_is_moved_or_fails() -> None:
    """A node that nobody noticed: no change of it that succeeded is missing in the target."""
    old, new = Faulty(), Faulty()
    source, target = places(old, new)
    await fill(old)
    made: dict[str, int] = {}
    failed = 0

    async def change(name: str) -> None:
        nonlocal failed
        for number in range(1, 1_000):
            try:
                await commit_change(old, name, replace, f"{name} {number}")
                made[name] = number
            except SharedLogError:
                failed += 1
                return

    async with asyncio.TaskGroup() as group:
        for name in LOGS:
            group.create_task(change(name))
        moving = group.create_task(run(source, target))
    assert moving.result().done
    assert failed == len(LOGS)
    for name in LOGS:
        record, _ = await fetch_log(new, name)
        last = f"{name} {made[name]}" if name in made else ""
        assert record.change_nonce == last


async def test_a_log_that_is_made_meanwhile_is_moved() -> None:
    """What is new in the source when all that was there is moved."""
    old, new = Faulty(), Faulty()
    source, target = places(old, new)
    await fill(old)

    async def create() -> None:
        for number in range(5):
            await old.put(f"logs/new{number}", b"new", expected=ABSENT)

    async with asyncio.TaskGroup() as group:
        moving = group.create_task(run(source, target))
        group.create_task(create())
    assert moving.result().done
    assert {f"logs/new{number}" for number in range(5)} <= new.entries.keys()


async def create(store: MetadataStore, name: str) -> LogRecord:
    """As a node does that knows `n1` from before; safe to repeat."""
    n1 = NodeRecord(
        node_id=NodeId("n1"),
        generation=Generation(1),
        storage_id=StorageId("s-n1"),
        address="n1:1",
        http_address="",
        location="",
        roles=("log-server", "sequencer"),
    )
    record, _ = await create_log(
        store,
        name=name,
        replicas=1,
        write_quorum=1,
        nonce=f"create {name}",
        alive=[n1],
        load=Load(),
        log_id=LogId(99),
        now_ms=1,
    )
    return record


class Overtaken(MemoryMetadata):
    """A store in which something happens between the next key that is made and the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], Awaitable[object]]] = []

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        version = await super().put(key, value, expected=expected)
        if expected == ABSENT and self.meanwhile:
            await self.meanwhile.pop()()
        return version


async def test_a_log_that_is_made_too_late_is_in_neither_store() -> None:
    """A node that nobody noticed goes on after the move: what it makes would never be moved."""
    old, new = MemoryMetadata(), MemoryMetadata()
    source, target = places(old, new)
    await fill(old)
    nodes = StandingMetadataStore(old), StandingMetadataStore(old)
    await create(nodes[0], "before")
    assert (await run(source, target)).done
    moved = values_of(old)
    for node in (*nodes, *nodes):
        with pytest.raises(MetadataUnavailable, match="was moved to s3://bucket/prefix"):
            await create(node, "late")
        assert values_of(old) == moved
    assert "logs/before" in new.entries
    assert "logs/late" not in new.entries


async def test_a_log_that_is_made_before_the_move_is_moved_whatever_its_maker_hears() -> None:
    """All of the move happens before the answer arrives: what was made is in the other store."""
    old, new = Overtaken(), MemoryMetadata()
    source, target = places(old, new)
    await fill(old)
    old.meanwhile.append(lambda: run(source, target))
    with pytest.raises(MetadataUnavailable, match="was moved to"):
        await create(StandingMetadataStore(old), "x")
    record, _ = await fetch_log(new, "x")
    assert await create(StandingMetadataStore(new), "x") == record


async def test_a_log_that_is_made_too_late_is_not_believed_by_a_repeat() -> None:
    """It is there, for its maker died before it could take it back; nobody is told it was made."""
    old, new = MemoryMetadata(), MemoryMetadata()
    await fill(old)
    await run(*places(old, new))
    await create(old, "late")
    with pytest.raises(MetadataUnavailable, match="was moved to"):
        await create(StandingMetadataStore(old), "late")


async def test_logs_can_be_made_again_once_a_move_is_undone() -> None:
    old, new = MemoryMetadata(), Faulty()
    source, target = places(old, new)
    await fill(old)
    new.fails_at = 3
    with pytest.raises(MetadataUnavailable):
        await run(source, target)
    node = StandingMetadataStore(old)
    with pytest.raises(MetadataUnavailable, match="was moved to"):
        await create(node, "x")
    await undo(source, target, Progress())
    assert (await create(node, "x")).name == "x"


async def test_a_cursor_that_has_moved_is_not_deleted() -> None:
    """Its deletion would be lost, and a move that goes on would find it in the target alone."""
    old, new = MemoryMetadata(), MemoryMetadata()
    await fill(old)
    await old.put(cursor_key(LogId(1), "c"), b"cursor", expected=ABSENT)
    await run(*places(old, new))
    with pytest.raises(MetadataUnavailable, match="cursor 'c' was moved to s3://bucket/prefix"):
        await delete_cursor(old, LogId(1), "c")
    assert await delete_cursor(new, LogId(1), "c")


async def test_a_source_that_is_never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "PASSES_MAX", 3)

    class Busy(MemoryMetadata):
        async def list(self, prefix: str) -> list[Entry]:
            await self.put(f"logs/{len(self.entries)}", b"new", expected=ABSENT)
            return list(await super().list(prefix))

    old, new = Busy(), MemoryMetadata()
    await fill(old)
    with pytest.raises(WrongCluster, match="is not quiet: a node goes on writing"):
        await run(*places(old, new))
    assert not await starts(new)


async def refused(source: Place, target: Place, words: str) -> None:
    with pytest.raises(WrongCluster, match=words):
        await look(source, target)


async def test_what_can_not_be_moved_is_refused() -> None:
    old, new = MemoryMetadata(), MemoryMetadata()
    source, target = places(old, new)
    await refused(source, target, "has no cluster: there is nothing to move")
    await fill(old)
    await new.put("k", b"v", expected=ABSENT)
    await refused(source, target, "is not empty, and holds no cluster")
    other = MemoryMetadata()
    await fill(other)
    await refused(source, Place(other, "etcd://h:1/p"), "holds a cluster already")
    third = MemoryMetadata()
    await run(source, Place(third, "etcd://h:1/third"))
    await refused(
        source, Place(MemoryMetadata(), "etcd://h:1/x"), "was moved already, to etcd://h:"
    )
    with pytest.raises(WrongCluster, match="was moved to etcd://h:1/third, not to"):
        await undo(source, target, Progress())
    half = MemoryMetadata()
    await half.put(CLUSTER_KEY, moving_from("etcd://h:1/y", b"1"), expected=ABSENT)
    await refused(
        Place(third, "etcd://h:1/third"), Place(half, "etcd://h:1/z"), "from etcd://h:1/y"
    )
    await refused(
        Place(half, "etcd://h:1/z"), Place(MemoryMetadata(), "u"), "is being filled itself"
    )


async def test_a_target_that_is_in_use_is_noticed() -> None:
    """Whoever else writes there has made it another store than was thought."""
    old, new = MemoryMetadata(), MemoryMetadata()
    source, target = places(old, new)
    await fill(old)
    plan: Plan = await look(source, target)
    await new.put("logs/other", b"v", expected=ABSENT)
    with pytest.raises(WrongCluster, match="has a key 'logs/other' that"):
        await migrate(source, target, plan, Progress())
    await new.delete("logs/other", expected=new.entries["logs/other"].version)
    await new.put("logs/a", b"v", expected=ABSENT)
    with pytest.raises(WrongCluster, match="another value of 'logs/a'"):
        await run(source, target)
    assert not await starts(new)


async def test_versions_that_fall_are_told() -> None:
    """Clients that go on running remember versions of logs, and take a smaller one for old."""
    old, new = MemoryMetadata(), MemoryMetadata()
    await fill(old)
    assert (await run(*places(old, new))).versions_fall
    old, new = MemoryMetadata(), MemoryMetadata()
    await fill(old)
    new._version = 1_000
    assert not (await run(*places(old, new))).versions_fall


async def test_nodes_that_live_are_noticed() -> None:
    """One answers a ping; what answers at an old address need not be that node."""
    store = MemoryMetadata()
    await fill(store)
    lease = Lease(holder=NodeId("n1"), nonce="n", ttl_s=0.01)
    await keep(store, lease, SystemClock())
    await release(store, lease, SystemClock())
    transport = Loopback()

    async def ping(_: cluster_pb2.PingRequest) -> cluster_pb2.PingResponse:
        return cluster_pb2.PingResponse(node_id="n1", generation=1)

    clock = SystemClock()
    assert await living_nodes(store, Loopback(), clock) == []
    transport.add_call(PING, ping)
    assert await living_nodes(store, transport, clock) == ["node n1 answers at n1:1"]
    await run(*places(store, MemoryMetadata()))
    assert await living_nodes(store, transport, clock) == ["node n1 answers at n1:1"]


async def test_a_lease_that_is_renewed_is_noticed() -> None:
    """Whoever renews it may be where no ping reaches."""
    store = MemoryMetadata()
    await fill(store)
    lease = Lease(holder=NodeId("n1"), nonce="n", ttl_s=0.01)

    class Renewing(SystemClock):
        async def sleep(self, seconds: float) -> None:
            await keep(store, lease, SystemClock())

    class Still(SystemClock):
        async def sleep(self, seconds: float) -> None:
            """Nothing happens meanwhile."""

    assert await living_nodes(store, Loopback(), Still()) == []
    assert await living_nodes(store, Loopback(), Renewing()) == [
        "the controller's lease is being renewed"
    ]


def test_marks() -> None:
    value = b"moved to nowhere\nas it was"
    marked = moved_to("s3://b/p", value)
    assert where_moved(marked) == ("s3://b/p", value)
    assert where_moving(marked) is None
    assert where_moving(moving_from("s3://b/p", value)) == ("s3://b/p", value)
    assert where_moved(b"0123abcd {}") is where_moving(b"0123abcd {}") is None
    with pytest.raises(InvalidArgument, match="has no room for where it moves"):
        moved_to("s3://b/p", b"v" * METADATA_VALUE_BYTES_MAX)
