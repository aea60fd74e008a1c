"""What every object store promises (`loglet/archive/object_store.py`), run against each kind."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest
from helpers.archive_stores import Place, new_id, pieces

from loglet.archive import probe as probing
from loglet.archive.object_store import ObjectStore
from sharedlog.errors import ArchiveUnavailable, InvalidArgument, ObjectNotFound, SwapConflict
from sharedlog.limits import MIB

LOG = "0123456789abcdef0123456789abcdef/0000000000000007"


async def put(store: ObjectStore, key: str, data: bytes) -> None:
    assert await store.upload(key, pieces(data)) == len(data)


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def proven(store: ObjectStore) -> ObjectStore:
    """It knows how its server wants to be asked."""
    await probing.probe(store, new_id)
    return store


async def test_every_kind_passes_the_probe(place: Place) -> None:
    """And the probe leaves nothing behind, in an empty root as in one that was used."""
    store = place.open()
    for _ in range(2):
        await probing.probe(store, new_id)
        assert await keys(store) == []


async def test_what_is_uploaded_is_read(store: ObjectStore) -> None:
    """Whole, in ranges, at the end; parts of any size, empty ones too."""
    data = os.urandom(5_000)
    assert await store.upload("a/b.slog", pieces(b"", data[:7], data[7:4_000], b"", data[4_000:]))
    assert await store.read("a/b.slog") == data
    for start, end in ((0, 1), (0, 5_000), (17, 4_999), (4_999, 5_000), (30, None), (0, 9_000)):
        assert await store.read("a/b.slog", start, end) == data[start:end]
    assert await store.read_tail("a/b.slog", 10) == (data[-10:], 5_000)
    assert await store.read_tail("a/b.slog", 5_000) == (data, 5_000)
    assert await store.read_tail("a/b.slog", 64 * 1024) == (data, 5_000)


async def test_what_lies_beyond_the_end_is_left_out(store: ObjectStore) -> None:
    await put(store, "o", b"12345")
    assert await store.read("o", 3, 100) == b"45"
    assert await store.read("o", 5) == b""
    assert await store.read("o", 5, 6) == b""
    assert await store.read("o", 99, 100) == b""
    assert await store.read("o", 2, 2) == b""


async def test_an_empty_object_is_one(store: ObjectStore) -> None:
    assert await store.upload("o", pieces()) == 0
    assert await store.read("o") == b""
    assert await store.read("o", 0, 10) == b""
    assert await store.read_tail("o", 10) == (b"", 0)
    info = await store.stat("o")
    assert info is not None
    assert (info.key, info.size) == ("o", 0)
    assert await keys(store) == ["o"]


async def test_what_is_not_there(store: ObjectStore) -> None:
    """Reading it is an error that names the key; looking for it is not."""
    await put(store, "a/b", b"x")
    for missing in ("nothing", "a/c", "b/c/d"):
        for read in (
            store.read(missing),
            store.read(missing, 1, 2),
            store.read(missing, 1, 1),
            store.read_tail(missing, 5),
        ):
            with pytest.raises(ObjectNotFound) as caught:
                await read
            assert caught.value.key == missing
        assert await store.read_versioned(missing) is None
        assert await store.stat(missing) is None
    assert await keys(store, "zzz") == await keys(store, "b/c/") == []


async def test_an_upload_can_be_repeated(store: ObjectStore) -> None:
    """The key has what the last one wrote, and nothing of the one before."""
    await put(store, "o", b"long and old")
    await put(store, "o", b"new")
    assert await store.read("o") == b"new"


async def test_a_large_object_comes_back(store: ObjectStore) -> None:
    """Beyond the size from which S3 is sent several parts, which begin anywhere in the stream."""
    block = os.urandom(3 * MIB + 11)
    assert await store.upload("o", pieces(*[block] * 7)) == 7 * len(block)
    for number in range(7):
        at = number * len(block)
        assert await store.read("o", at, at + len(block)) == block
    assert await store.read_tail("o", 1_000) == (block[-1_000:], 7 * len(block))
    info = await store.stat("o")
    assert info is not None
    assert info.size == 7 * len(block)


@pytest.mark.parametrize("size", [0, 20 * MIB])
async def test_an_upload_that_fails_leaves_nothing(store: ObjectStore, size: int) -> None:
    """What the stream raises is raised, and there is no object."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * size
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.upload("o", broken())
    assert await store.stat("o") is None
    assert await keys(store) == []


@pytest.mark.parametrize("size", [10, 20 * MIB])
async def test_an_upload_that_is_cancelled_leaves_nothing(store: ObjectStore, size: int) -> None:
    """While it waits for the stream."""
    waits = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x" * size
        waits.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        upload = group.create_task(store.upload("o", stuck()))
        await waits.wait()
        upload.cancel()
    assert upload.cancelled()
    assert await store.stat("o") is None
    assert await keys(store) == []


async def test_stat_tells_size_and_time(store: ObjectStore) -> None:
    """The time is the store's clock, to the second at least."""
    before_ms = time.time_ns() // 1_000_000
    await put(store, "o", b"12345")
    info = await store.stat("o")
    assert info is not None
    assert (info.key, info.size) == ("o", 5)
    assert abs(info.modified_ms - before_ms) < 600_000
    (listed,) = [found async for found in store.list("")]
    assert (listed.key, listed.size) == ("o", 5)
    assert abs(listed.modified_ms - info.modified_ms) < 1_000, "one of the two is to the second"


async def test_a_swap_compares(store: ObjectStore) -> None:
    """It makes what is not there, replaces what was expected, and nothing else."""
    key = f"{LOG}/manifest"
    first = await store.swap(key, b"one", None)
    found = await store.read_versioned(key)
    assert found == (b"one", first)
    with pytest.raises(SwapConflict) as lost:
        await store.swap(key, b"two", None)
    assert (lost.value.key, lost.value.actual) == (key, first)
    second = await store.swap(key, b"three", first)
    assert second != first
    for expected in (first, None, "0123456789abcdef0123456789abcdef"):
        with pytest.raises(SwapConflict) as lost:
            await store.swap(key, b"four", expected)
        assert lost.value.actual == second
    assert await store.read_versioned(key) == (b"three", second)
    assert await store.read(key) == b"three"


async def test_a_swap_of_what_is_gone_is_lost(store: ObjectStore) -> None:
    """Deleted meanwhile, or never there: it is not made."""
    version = await store.swap("m", b"one", None)
    await store.delete(["m"])
    with pytest.raises(SwapConflict) as lost:
        await store.swap("m", b"two", version)
    assert lost.value.actual is None
    assert await store.stat("m") is None
    assert await store.swap("m", b"three", None)


async def test_of_racing_swaps_one_wins_each_round(place: Place, store: ObjectStore) -> None:
    """Through several handles, as several nodes have them; the others are told that they lost."""
    handles = [store, *[await proven(place.open()) for _ in range(2)]]
    version: str | None = None
    history = []

    async def race(number: int, expected: str | None) -> tuple[str, bytes] | None:
        data = f"{number} {new_id()}".encode()
        try:
            return await handles[number % 3].swap("m", data, expected), data
        except SwapConflict:
            return None

    for _ in range(6):
        results = await asyncio.gather(*(race(number, version) for number in range(12)))
        won = [result for result in results if result is not None]
        assert len(won) == 1, f"{len(won)} won"
        version, data = won[0]
        history.append(version)
        assert await store.read_versioned("m") == (data, version)
    assert len(set(history)) == len(history)


async def test_no_increment_is_lost(place: Place, store: ObjectStore) -> None:
    """Whoever reads, adds and swaps until it succeeds has added once."""
    handles = [store, *[await proven(place.open()) for _ in range(2)]]
    await store.swap("count", f"0 {new_id()}".encode(), None)

    async def add(handle: ObjectStore) -> None:
        while True:
            found = await handle.read_versioned("count")
            assert found is not None
            mine = f"{int(found.data.split()[0]) + 1} {new_id()}".encode()
            try:
                await handle.swap("count", mine, found.version)
            except SwapConflict:
                continue
            except ArchiveUnavailable:  # a busy server's; nothing of it arrives later than this
                if await handle.read("count") != mine:
                    continue
            return

    await asyncio.gather(*(add(handle) for handle in handles * 3))
    assert (await store.read("count")).split()[0] == b"9"


async def test_objects_are_listed_in_the_order_of_their_keys(store: ObjectStore) -> None:
    """Of the bytes, in which a dash comes before a slash; folders are nothing of their own."""
    wanted = sorted(
        [
            *("a", "a-b", "a.b", "b/a/x", "b/a-x", "b/a.x", "b/b", "b/b-0/y", "c0/z", "c=0"),
            *(
                f"{LOG}/{first:020}-{first + 10:020}-{first:032x}.slog"
                for first in range(0, 50, 10)
            ),
        ]
    )
    for key in reversed(wanted):
        await put(store, key, key.encode())
    found = [info async for info in store.list("")]
    assert [info.key for info in found] == wanted
    assert [info.size for info in found] == [len(key) for key in wanted]
    for prefix in (
        "a",
        "a-",
        "b/",
        "b/a",
        "b/a/",
        "b",
        LOG,
        f"{LOG}/",
        f"{LOG}/00000000000000000",
        "c0",
    ):
        assert await keys(store, prefix) == [key for key in wanted if key.startswith(prefix)]


async def test_a_listing_can_be_left(store: ObjectStore) -> None:
    for key in ("a", "b/c"):
        await put(store, key, b"")
    listing = store.list("")
    assert (await anext(listing)).key == "a"
    await listing.aclose()  # type: ignore[attr-defined]  # every store's is a generator


async def test_what_is_deleted_is_gone(store: ObjectStore) -> None:
    """Those that are missing are fine, and so is nothing at all."""
    many = [f"d/{number}" for number in range(20)]
    for key in (*many, "kept"):
        await put(store, key, b"x")
    await store.delete([])
    await store.delete([*many, "d/never", "never/there", many[0]])
    assert await keys(store) == ["kept"]
    for key in (many[0], many[-1]):
        assert await store.stat(key) is None


NO_KEYS = (
    *("", "/", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/./b", "a b", "ä", "a\n"),
    *("k" * 201, "a/" * 300 + "a"),
)


async def test_what_is_no_key_is_refused(store: ObjectStore) -> None:
    """By all methods, for keys come from manifests, and none may lead out of the archive."""
    await put(store, "kept", b"x")
    for key in NO_KEYS:
        for refused in (
            store.read(key),
            store.read(key, 1, 1),
            store.read_tail(key, 1),
            store.read_versioned(key),
            store.swap(key, b"", None),
            store.upload(key, pieces(b"x")),
            store.stat(key),
            store.delete(["kept", key]),
        ):
            with pytest.raises(InvalidArgument, match="is no key"):
                await refused
    assert await keys(store) == ["kept"]


async def test_what_no_key_begins_with_is_not_listed(store: ObjectStore) -> None:
    for prefix in ("/", "/a", "a//", "../", "a/../b", "ä", "a b"):
        with pytest.raises(InvalidArgument, match="no beginning of a key"):
            await keys(store, prefix)


async def test_a_closed_store_does_nothing(place: Place) -> None:
    """And can be closed again."""
    store = place.open()
    await probing.probe(store, new_id)
    await store.close()
    await store.close()
    with pytest.raises(ArchiveUnavailable, match="closed"):
        await store.stat("a")
