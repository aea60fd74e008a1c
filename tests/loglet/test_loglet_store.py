"""The LMDB store: what was committed is there after a restart; damage and full disks are said."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers.log_servers import (
    CLUSTER,
    LOGLET,
    ME,
    OTHER,
    STORAGE,
    damage_file,
    open_store,
    placed,
)

from loglet.config import LogServerConfig
from loglet.held import STEPS_BACK_MAX
from loglet.lmdb_store import LmdbLogStore
from loglet.store import LogletState, PutBatch, PutLoglet, PutRepaired
from sharedlog.batch import PLACEMENT_BYTES, parse_placement
from sharedlog.errors import StoreFailed, StoreReadOnly, WrongCluster, WrongStorage
from sharedlog.ids import LogletId, NodeId, Offset, SequencerId
from sharedlog.limits import MIB

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = LogServerConfig(store_bytes_max=2 * MIB, reserve_bytes=MIB)


def put(batch: bytes) -> PutBatch:
    placement = parse_placement(batch)
    return PutBatch(placement.loglet, placement.first, placement.end, batch)


def record(
    loglet: LogletId = LOGLET,
    *,
    base: int = 0,
    opened_by: SequencerId | None = ME,
    sealed: bool = False,
) -> PutLoglet:
    return PutLoglet(loglet, Offset(base), opened_by, sealed, Offset(base))


async def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    """Field note 46: identity, openers, seals and tails survive, without a scan of the data."""
    store = open_store(tmp_path)
    await store.commit([record(), record(OTHER, base=40), put(placed(0, 3))])
    await store.commit([put(placed(3, 2, committed=3)), put(placed(40, loglet=OTHER))])
    await store.commit([record(OTHER, base=40, sealed=True)])
    unknown = LogletId(LOGLET.log_id, 1)
    await store.commit([record(unknown, base=9, opened_by=None, sealed=True)])
    await store.close()
    store = open_store(tmp_path, storage_id="another")
    assert store.storage_id == STORAGE
    assert {it.loglet: it for it in store.loglets()} == {
        LOGLET: LogletState(
            *(LOGLET, Offset(0), ME, False, Offset(0), Offset(5), Offset(3)),
            last_timestamp_ms=1_003,
        ),
        OTHER: LogletState(
            *(OTHER, Offset(40), ME, True, Offset(40), Offset(41), Offset(40)),
            last_timestamp_ms=1_040,
        ),
        unknown: LogletState(unknown, Offset(9), None, True, Offset(9), Offset(9), Offset(9)),
    }
    assert await store.read(LOGLET, Offset(0), Offset(9), max_bytes=MIB) == [
        (0, placed(0, 3)),
        (3, placed(3, 2, committed=3)),
    ]
    await store.close()


async def test_reads_find_what_overlaps(tmp_path: Path) -> None:
    """A range yields the batches that overlap it, in order, at least one, within a size."""
    store = open_store(tmp_path)
    batches = [placed(0, 3), placed(3, 1), placed(10, 300), placed(310, 1)]
    others = [placed(0, 500, loglet=OTHER)]
    await store.commit([record(), record(OTHER), *map(put, batches + others)])

    async def firsts(start: int, end: int, max_bytes: int = MIB) -> list[int]:
        found = await store.read(LOGLET, Offset(start), Offset(end), max_bytes=max_bytes)
        assert all(parse_placement(raw).first == first for first, raw in found)
        return [first for first, _ in found]

    assert await firsts(0, 400) == [0, 3, 10, 310]
    assert await firsts(2, 3) == [0]
    assert await firsts(3, 10) == [3]
    assert await firsts(4, 10) == []
    assert await firsts(4, 11) == [10]
    assert await firsts(309, 400) == [10, 310]
    assert await firsts(311, 400) == []
    assert await firsts(0, 400, max_bytes=1) == [0]
    assert await firsts(0, 400, max_bytes=len(batches[0]) + len(batches[1])) == [0, 3]
    assert await store.read(OTHER, Offset(7), Offset(8), max_bytes=1) == [(0, others[0])]
    await store.close()


async def test_large_batches_come_back_whole(tmp_path: Path) -> None:
    """Values of many pages are stored and read as they came."""
    store = open_store(tmp_path)
    batch = placed(0, 4, record_bytes=MIB)
    await store.commit([record(), put(batch)])
    assert await store.read(LOGLET, Offset(2), Offset(3), max_bytes=1) == [(0, batch)]
    await store.close()


async def test_a_store_keeps_to_its_limit_and_its_reserve(tmp_path: Path) -> None:
    """Field notes 11 and 26: a full store refuses batches, takes seals, and stays readable."""
    store = open_store(tmp_path, config=SMALL)
    await store.commit([record()])
    first = 0
    with pytest.raises(StoreReadOnly):  # noqa: PT012 - the commit that finds it full raises
        while True:
            await store.commit([put(placed(first, 4, record_bytes=10_000)), put(placed(first + 4))])
            first += 5
    assert first > 50
    assert store.space().used_bytes <= SMALL.store_bytes_max - SMALL.reserve_bytes
    await store.commit([record(sealed=True)])
    many = [record(LogletId(LOGLET.log_id, index), sealed=True) for index in range(1, 1_000)]
    await store.commit(many)
    await store.close()
    store = open_store(tmp_path, config=SMALL)
    states = {it.loglet: it for it in store.loglets()}
    assert len(states) == 1_000
    assert (states[LOGLET].local_tail, states[LOGLET].sealed) == (first, True)
    await store.close()


@pytest.mark.slow
async def test_even_the_reserve_ends(tmp_path: Path) -> None:
    """When the whole map is full, a record is refused, nothing of its group is written."""
    config = LogServerConfig(store_bytes_max=MIB, reserve_bytes=0)
    store = open_store(tmp_path, config=config)
    index = 0
    with pytest.raises(StoreReadOnly):  # noqa: PT012 - the commit that finds it full raises
        while True:
            group = [record(LogletId(LOGLET.log_id, index + it)) for it in range(500)]
            await store.commit(group)
            index += 500
    assert len(store.loglets()) == index > 0
    await store.close()


@dataclass(frozen=True)
class Disk:
    """A file system with so many bytes free."""

    f_bavail: int
    f_blocks: int = 1 << 20
    f_frsize: int = 1


async def test_a_full_file_system_makes_the_store_read_only(tmp_path: Path) -> None:
    """Field note 26: batches stop at the reserve of the disk, and go on once there is room."""
    free = [MIB]
    config = LogServerConfig(reserve_bytes=MIB // 2)
    store = LmdbLogStore.open(
        tmp_path,
        node_id=NodeId("n1"),
        cluster_id=CLUSTER,
        new_id=lambda: STORAGE,
        config=config,
        statvfs=lambda _: Disk(free[0]),
    )
    assert store.space().free_bytes == MIB // 2
    await store.commit([record(), put(placed(0))])
    free[0] = MIB // 2
    assert store.space().free_bytes == 0
    with pytest.raises(StoreReadOnly):
        await store.commit([put(placed(1)), record(OTHER)])
    assert len(store.loglets()) == 1, "all or nothing"
    await store.commit([record(sealed=True)])
    free[0] = MIB
    await store.commit([put(placed(1))])
    await store.close()


async def test_a_lowered_limit_leaves_the_store_readable(tmp_path: Path) -> None:
    """A store that is larger than its new limit is read-only, not lost."""
    store = open_store(tmp_path)
    await store.commit([record(), *[put(placed(it, record_bytes=MIB)) for it in range(4)]])
    await store.close()
    store = open_store(tmp_path, config=SMALL)
    assert len(await store.read(LOGLET, Offset(0), Offset(9), max_bytes=9 * MIB)) == 4
    with pytest.raises(StoreReadOnly):
        await store.commit([put(placed(4))])
    await store.close()


async def test_ends_survive(tmp_path: Path) -> None:
    """Where a segment ends is there in another life, with all else that was known."""
    store = open_store(tmp_path)
    await store.commit([record(), put(placed(0, 3, committed=0))])
    await store.commit([replace(record(sealed=True), told_end=Offset(2))])
    await store.close()
    store = open_store(tmp_path)
    (state,) = store.loglets()
    assert (state.told_end, state.sealed, state.opened_by) == (2, True, ME)
    assert (state.local_tail, state.committed_tail) == (3, 0)
    await store.close()


async def test_damage_is_overwritten_in_its_place(tmp_path: Path) -> None:
    """A repair puts a whole batch under the key of a damaged one, and nowhere else."""
    store = open_store(tmp_path)
    batch = placed(1, 2, text="needle", record_bytes=9_000)
    await store.commit([record(), put(placed(0)), put(batch), put(placed(3))])
    await store.close()
    damage_file(tmp_path, b"needle")
    store = open_store(tmp_path)
    assert await scan(store) == [(0, 1, True), (1, 3, False), (3, 4, True)]
    with pytest.raises(StoreFailed, match="is there already"):
        await store.commit([PutRepaired(LOGLET, Offset(1), Offset(3), batch)])
    await store.commit([PutRepaired(LOGLET, Offset(1), Offset(3), batch, overwrites=True)])
    await store.close()
    store = open_store(tmp_path)
    assert await scan(store) == [(0, 1, True), (1, 3, True), (3, 4, True)]
    assert await store.read(LOGLET, Offset(1), Offset(2), max_bytes=1) == [(1, batch)]
    await store.close()


async def scan(
    store: LmdbLogStore, start: int = 0, end: int = 99, *, batches: int = 99, size: int = MIB
) -> list[tuple[int, int, bool]]:
    """First, end, sound or not."""
    found = await store.scan(
        *(LOGLET, Offset(start), Offset(end)), verify=True, max_batches=batches, max_bytes=size
    )
    assert all(it.placement_bytes != b"" for it in found)
    return [(it.first, it.end, it.placement_bytes is not None) for it in found]


async def test_scans_find_what_overlaps(tmp_path: Path) -> None:
    """Keys alone say what is held; with the bytes also whether it is sound; both in bounds."""
    store = open_store(tmp_path)
    wrong = PutBatch(LOGLET, Offset(20), Offset(22), placed(20))
    batches = [placed(0, 3), placed(3), placed(10, 5)]
    await store.commit([record(), record(OTHER), *map(put, batches), wrong])
    await store.commit([put(placed(0, 50, loglet=OTHER))])
    everything = [(0, 3, True), (3, 4, True), (10, 15, True), (20, 22, False)]
    assert await scan(store) == everything, "a batch under another's key is damaged"
    assert await scan(store, 2, 3) == everything[:1]
    assert await scan(store, 4, 11) == everything[2:3]
    assert await scan(store, 22) == []
    assert await scan(store, batches=2) == everything[:2]
    assert await scan(store, size=1) == everything[:1]
    assert await scan(store, size=len(batches[0]) + len(batches[1])) == everything[:2]
    keys_only = await store.scan(
        *(LOGLET, Offset(0), Offset(99)), verify=False, max_batches=3, max_bytes=1
    )
    assert [(it.first, it.end, it.placement_bytes) for it in keys_only] == [
        (first, end, b"") for first, end, _ in everything[:3]
    ]
    await store.close()


async def test_repairs_stop_at_half_of_the_reserve(tmp_path: Path) -> None:
    """Field note 11: beyond what stores may use, and not all that seals may need."""
    store = open_store(tmp_path, config=SMALL)
    await store.commit([record(sealed=True)])
    first = 0
    with pytest.raises(StoreReadOnly):  # noqa: PT012 - the commit that finds it full raises
        while True:
            batch = placed(first, record_bytes=50_000)
            await store.commit([PutRepaired(LOGLET, Offset(first), Offset(first + 1), batch)])
            first += 1
    space = store.space()
    assert space.free_bytes == 0
    assert MIB < space.used_bytes <= MIB + MIB // 2
    with pytest.raises(StoreReadOnly):
        await store.commit([put(placed(first))])
    await store.commit([replace(record(sealed=True), told_end=Offset(first))])
    await store.close()


@pytest.mark.parametrize("at", [4, PLACEMENT_BYTES + 8], ids=["placement", "batch"])
async def test_a_damaged_last_batch_is_held(tmp_path: Path, at: int) -> None:
    """Field note 5: forgetting it at a start would be amnesia; its key says what it takes."""
    last = placed(2, 5, committed=2, record_bytes=50, text="last")
    store = open_store(tmp_path)
    await store.commit([record(), put(placed(0, 2)), put(last)])
    await store.close()
    damage_file(tmp_path, last[at : at + 30])
    store = open_store(tmp_path)
    (state,) = store.loglets()
    placement_lost = at == 4
    assert state.local_tail == 7
    assert state.committed_tail == (0 if placement_lost else 2)
    assert state.last_timestamp_ms == (1_000 if placement_lost else 1_002)
    assert await scan(store) == [(0, 2, True), (2, 7, False)]
    await store.close()


async def test_many_damaged_batches_are_held(tmp_path: Path) -> None:
    """However many of the last ones are damaged, the tail comes from the key."""
    store = open_store(tmp_path)
    await store.commit([record(), *(put(placed(it)) for it in range(STEPS_BACK_MAX + 9))])
    await store.close()
    damage_file(tmp_path, placed(0)[4:8])  # the beginning of every placement
    store = open_store(tmp_path)
    (state,) = store.loglets()
    assert (state.local_tail, state.committed_tail) == (STEPS_BACK_MAX + 9, 0)
    assert state.last_timestamp_ms == 0
    assert [sound for _, _, sound in await scan(store)] == [False] * (STEPS_BACK_MAX + 9)
    await store.close()


async def test_a_batch_is_never_overwritten(tmp_path: Path) -> None:
    """The core decides; a second batch at one place is a bug that stops the server."""
    store = open_store(tmp_path)
    await store.commit([record(), put(placed(0))])
    with pytest.raises(StoreFailed):
        await store.commit([put(placed(0, text="other"))])
    assert await store.read(LOGLET, Offset(0), Offset(1), max_bytes=1) == [(0, placed(0))]
    await store.close()


@pytest.mark.slow
@pytest.mark.cluster
async def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Field note 27: a second opening is refused in one line, here and from another process."""
    store = open_store(tmp_path)
    with pytest.raises(StoreFailed, match="in use by another process"):
        open_store(tmp_path)
    command = (sys.executable, "-m", "loglet", "inspect", str(tmp_path))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"in use by another process" in err
    assert len(err.splitlines()) == 1
    await store.close()
    await open_store(tmp_path).close()


async def test_identity_is_checked(tmp_path: Path) -> None:
    """Field note 20: another node's or cluster's store is refused, and stays as it is."""
    await open_store(tmp_path).close()
    with pytest.raises(WrongStorage):
        open_store(tmp_path, node_id="n2")
    with pytest.raises(WrongCluster):
        open_store(tmp_path, cluster_id="d" * 32)
    store = open_store(tmp_path, storage_id="e" * 32)
    assert store.storage_id == STORAGE
    await store.close()


async def test_a_wiped_store_is_another_store(tmp_path: Path) -> None:
    """Field note 20: without its files the store gets a new storage_id."""
    await open_store(tmp_path).close()
    (tmp_path / "data.mdb").unlink()
    store = open_store(tmp_path, storage_id="e" * 32)
    assert store.storage_id == "e" * 32
    await store.close()


async def test_a_flipped_bit_in_a_batch_is_read_as_it_is(tmp_path: Path) -> None:
    """Field note 5: a damaged batch keeps its place: it is held, and it is given out as it is."""
    store = open_store(tmp_path)
    await store.commit([record(), put(placed(0)), put(placed(1, text="needle", committed=1))])
    await store.close()
    damage_file(tmp_path, b"needle")
    store = open_store(tmp_path)
    assert [(it.local_tail, it.committed_tail) for it in store.loglets()] == [(2, 1)]
    (_, sound), (_, damaged) = await store.read(LOGLET, Offset(0), Offset(2), max_bytes=MIB)
    assert sound == placed(0)
    assert damaged != placed(1, text="needle", committed=1)
    await store.close()


async def test_a_damaged_placement_costs_the_hint_alone(tmp_path: Path) -> None:
    """The tail comes from the key; the committed tail from the last placement that is sound."""
    store = open_store(tmp_path)
    last = placed(2, 5, committed=2)
    await store.commit([record(), put(placed(0)), put(placed(1, committed=1)), put(last)])
    await store.close()
    damage_file(tmp_path, last[8:PLACEMENT_BYTES])
    store = open_store(tmp_path)
    assert [(it.local_tail, it.committed_tail) for it in store.loglets()] == [(7, 1)]
    await store.close()


@pytest.mark.parametrize("needle", [b'"node_id"', b"n1-of-the-record"])
async def test_damaged_metadata_stops_the_process(tmp_path: Path, needle: bytes) -> None:
    """Field note 24: a store whose own records are damaged is not served at all."""
    opener = SequencerId(NodeId("n1-of-the-record"), ME.generation)
    store = open_store(tmp_path)
    await store.commit([record(opened_by=opener)])
    await store.close()
    damage_file(tmp_path, needle)
    opened: list[LmdbLogStore] = []
    with pytest.raises(StoreFailed, match="damaged"):  # noqa: PT012 - either step may notice
        opened.append(open_store(tmp_path))
        opened[0].loglets()
    for store in opened:
        await store.close()


async def test_no_store_can_be_made_on_a_file(tmp_path: Path) -> None:
    """A directory that can't be is a typed error, and the lock is not kept."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailed):
        open_store(tmp_path / "file")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(os.urandom(100_000))
    for _ in range(2):
        with pytest.raises(StoreFailed, match="can't open"):
            open_store(tmp_path / "bad")
