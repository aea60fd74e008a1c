"""Digests: what a log server really holds, in pages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers.gated_store import GatedStore
from helpers.log_servers import (
    LOGLET,
    OTHER,
    WAIT_S,
    Served,
    damage_file,
    open_store,
    opened,
    placed,
    request,
    serve,
    until,
)

from loglet import digest
from loglet.messages import CommittedTail, StoreRequest
from loglet.wire import loglet_to_proto
from sharedlog.errors import LogletNotOpen, WrongStorage
from sharedlog.ids import Offset
from sharedlog.rpc.methods import DIGEST
from sharedlog.v1.log_server_pb2 import DigestRequest, DigestResponse, OffsetRange


def pairs(ranges: object) -> list[tuple[int, int]]:
    found = []
    for it in ranges:  # type: ignore[attr-defined] # protobuf's container
        assert isinstance(it, OffsetRange)
        found.append((it.first, it.end))
    return found


def jumps(*batches: bytes) -> StoreRequest:
    """A request whose batches need no prefix: everything is committed."""
    message = request(batches, opens=[opened()])
    message.committed = [CommittedTail(LOGLET, Offset(10**6))]
    return message


async def whole(server: Served, *, verify: bool = False, end: int | None = None) -> DigestResponse:
    """All pages as one, each beginning where the one before it ended."""
    joined = DigestResponse()
    start = 0
    async with asyncio.timeout(WAIT_S):
        while True:
            page = await server.digest(start, end=end, verify=verify)
            assert len(page.held) <= digest.PAGE_RANGES_MAX
            assert len(page.batch_firsts) == len(page.batch_checksums)
            joined.MergeFrom(page)
            wanted = page.status.local_tail if end is None else end
            if page.next >= wanted:
                return joined
            assert page.next > start
            start = page.next


@pytest.mark.parametrize("loopback", [True, False])
async def test_a_digest_says_what_is_held(tmp_path: Path, loopback: bool) -> None:
    """Ranges that touch are one; what lies between them is a hole; the loglet's state with it."""
    batches = [placed(0, 2), placed(2), placed(10, 5), placed(20)]
    async with serve(open_store(tmp_path), loopback=loopback) as server:
        await server.store_all(jumps(*batches))
        page = await server.digest()
        assert pairs(page.held) == [(0, 3), (10, 15), (20, 21)]
        assert page.next == 21
        assert not page.damaged
        assert not page.batch_firsts
        status = page.status
        assert (status.local_tail, status.sealed, status.HasField("told_end")) == (21, False, False)
        page = await server.digest(verify=True)
        assert pairs(page.held) == [(0, 3), (10, 15), (20, 21)]
        assert list(page.batch_firsts) == [0, 2, 10, 20]
        assert list(page.batch_checksums) == [int.from_bytes(it[:4], "little") for it in batches]


async def test_a_digest_of_a_part(tmp_path: Path) -> None:
    """Ranges are those of the part; a batch that begins before it is still named whole."""
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(jumps(placed(0, 4), placed(4, 4), placed(10, 5)))
        page = await server.digest(2, end=12, verify=True)
        assert (pairs(page.held), page.next) == ([(2, 8), (10, 12)], 12)
        assert list(page.batch_firsts) == [0, 4, 10]
        page = await server.digest(8, end=10)
        assert (pairs(page.held), page.next) == ([], 10)
        page = await server.digest(12, end=99)
        assert (pairs(page.held), page.next) == ([(12, 15)], 99), "it reaches the wanted end"
        page = await server.digest(50)
        assert (pairs(page.held), page.next) == ([], 50)


async def test_damage_is_found_by_verifying(tmp_path: Path) -> None:
    """Field notes 5 and 24: a damaged batch is held and damaged, and no whole batch."""
    batches = [placed(0), placed(1, 3, text="needle"), placed(4)]
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request(batches, opens=[opened()]))
    damage_file(tmp_path, b"needle")
    async with serve(open_store(tmp_path)) as server:
        page = await server.digest(verify=True)
        assert (pairs(page.held), pairs(page.damaged)) == ([(0, 5)], [(1, 4)])
        assert list(page.batch_firsts) == [0, 4]
        assert server.metric("damaged_batches_total") == 1
        page = await server.digest()
        assert (pairs(page.held), pairs(page.damaged)) == ([(0, 5)], [])


async def test_beyond_a_told_end_nothing_is_listed(tmp_path: Path) -> None:
    """Field note 7: what a loser left there is in no log, and nobody shall backfill it."""
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request([placed(0, 2), placed(2, 3)], opens=[opened()]))
        await server.seal()
        await server.tell_ends((LOGLET, 2))
        page = await server.digest(verify=True)
        assert (pairs(page.held), page.next, list(page.batch_firsts)) == ([(0, 2)], 2, [0])
        assert (page.status.told_end, page.status.local_tail) == (2, 5)
        page = await server.digest(end=9)
        assert (pairs(page.held), page.next) == ([(0, 2)], 9)


async def test_pages_are_bounded_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ranges, batches and bytes; together the pages say all, once."""
    first = [placed(2 * it, record_bytes=500) for it in range(40)]
    rest = [placed(80 + it, record_bytes=500) for it in range(40)]
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(jumps(*first, *rest))
        one = await server.digest(verify=True)
        assert one.next == 120
        for name, limit in (
            ("PAGE_RANGES_MAX", 7),
            ("PAGE_BATCHES_MAX", 9),
            ("SCAN_BYTES_MAX", 2_000),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(digest, name, limit)
                assert (await server.digest(verify=True)).next < 100
                found = await whole(server, verify=True)
                keys_only = await whole(server)
            offsets = [offset for it in found.held for offset in range(it.first, it.end)]
            assert offsets == [offset for it in one.held for offset in range(it.first, it.end)]
            assert list(found.batch_firsts) == list(one.batch_firsts)
            assert list(found.batch_checksums) == list(one.batch_checksums)
            said = [offset for it in keys_only.held for offset in range(it.first, it.end)]
            assert said == offsets


async def test_a_running_commit_is_no_hole(tmp_path: Path) -> None:
    """Who takes it for one would begin to fill it: the digest waits for what it counts on."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store) as server:
        await server.store_all(request([placed(0)], opens=[opened()]))
        store.gate.clear()
        stream = server.stores()
        await stream.send(request([placed(1, 4)]))
        await until(lambda: len(store.groups) == 2)
        asking = asyncio.create_task(server.digest())
        done, _ = await asyncio.wait([asking], timeout=0.05)
        assert not done
        store.gate.set()
        page = await asking
        assert (pairs(page.held), page.status.local_tail) == ([(0, 5)], 5)
        stream.cancel()


async def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    """Field note 20: an unknown loglet is no empty one, and another disk is not asked."""
    async with serve(open_store(tmp_path)) as server:
        with pytest.raises(LogletNotOpen):
            await server.digest(loglet=OTHER)
        await server.seal(OTHER, 7)
        page = await server.digest(7, loglet=OTHER)
        assert (pairs(page.held), page.next, page.status.sealed) == ([], 7, True)
        message = DigestRequest(storage_id="b" * 32, loglet=loglet_to_proto(OTHER))
        with pytest.raises(WrongStorage):
            await server.transport.call(server.address, DIGEST, message, timeout_s=WAIT_S)
