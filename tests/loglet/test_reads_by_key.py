"""A log server's reads for one key: what is left out is said, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.log_servers import (
    LOGLET,
    WAIT_S,
    Served,
    damage_file,
    open_store,
    opened,
    request,
    serve,
)

from loglet.config import LogServerConfig
from loglet.messages import CommittedTail
from sharedlog.batch import (
    HEADERS_BYTES,
    PLACEMENT_BYTES,
    Placement,
    encode_records,
    parse_batch_header,
    place_batch,
)
from sharedlog.checksum import crc32c
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset
from sharedlog.key_digest import hash_key
from sharedlog.rpc.read_answer import DAMAGED, HOLE, ReadAnswer
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1.log_server_pb2 import ReadLogletRequest

ReadStream = ClientStream[ReadLogletRequest, ReadAnswer]


def placed(first: int, *keys: bytes | None, text: str = "", control: bool = False) -> bytes:
    """A batch with a record for each key."""
    batch = encode_records([(f"{first}{text}".encode(), key, None) for key in keys])
    crc = parse_batch_header(batch).crc32c
    whole = place_batch(Placement(LOGLET, Offset(first), len(keys), 1, Offset(0), crc), batch)
    if control:
        body = whole[4:7] + b"\1" + whole[8:PLACEMENT_BYTES]
        whole = crc32c(body).to_bytes(4, "little") + body + whole[PLACEMENT_BYTES:]
    return whole


BATCHES = [
    placed(0, b"a", b"b"),
    placed(2, None, None),
    placed(4, b"b"),
    placed(5, b"a"),
    placed(6, None, control=True),
    placed(7, b"c", b"b"),
]
END = 9


@pytest.fixture(params=["grpc", "loopback", "from disk"])
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A log server that holds [0, 9), of which [0, 7) is committed."""
    config = LogServerConfig(
        tail_cache_bytes=0 if request.param == "from disk" else 1 << 20,
        heartbeat_s=0.05,
        reserve_bytes=0,
    )
    async with serve(open_store(tmp_path), config, loopback=request.param == "loopback") as server:
        await fill(server, BATCHES, committed=7)
        yield server


async def fill(server: Served, batches: list[bytes], *, committed: int) -> None:
    message = request(batches, opens=[opened()])
    message.committed = [CommittedTail(LOGLET, Offset(committed))]
    await server.store_all(message)


async def messages(stream: ReadStream) -> list[ReadAnswer]:
    found: list[ReadAnswer] = []
    async with asyncio.timeout(WAIT_S):
        while (message := await stream.receive()) is not None:
            found.append(message)
    stream.cancel()
    return found


def batches(found: list[ReadAnswer]) -> list[bytes]:
    return [placed for message in found for placed in message.batches]


def skipped(found: list[ReadAnswer]) -> list[tuple[int, int]]:
    return [it for message in found for it in message.skipped]


async def test_batches_without_the_key_are_left_out_and_said(served: Served) -> None:
    """Ranges that adjoin are one; together with the batches they cover all that is committed."""
    found = await messages(await served.read(0, no_wait=True, key_digest=hash_key(b"a")))
    assert batches(found) == [BATCHES[0], BATCHES[3]]
    assert skipped(found) == [(2, 5), (6, 7)]
    found = await messages(await served.read(1, end=5, key_digest=hash_key(b"nobody")))
    assert (batches(found), skipped(found)) == ([], [(0, 5)])


async def test_without_a_key_nothing_is_left_out(served: Served) -> None:
    """`include_control` alone asks for nothing."""
    for control in (False, True):
        found = await messages(await served.read(0, no_wait=True, include_control=control))
        assert (batches(found), skipped(found)) == (BATCHES[:5], [])


async def test_control_batches_come_if_they_are_asked_for(served: Served) -> None:
    """Whatever keys they have or lack."""
    stream = await served.read(0, no_wait=True, key_digest=hash_key(b"a"), include_control=True)
    found = await messages(stream)
    assert batches(found) == [BATCHES[0], BATCHES[3], BATCHES[4]]
    assert skipped(found) == [(2, 5)]


async def test_nothing_is_left_out_that_is_not_committed(served: Served) -> None:
    """A follower hears of what is left out when it is committed, and not before."""
    stream = await served.read(5, key_digest=hash_key(b"nobody"))
    async with asyncio.timeout(WAIT_S):
        first = await stream.receive()
        assert first is not None
        assert skipped([first]) == [(5, 7)]
        await fill(served, [], committed=END)
        while (message := await stream.receive()) is not None and not message.skipped:
            assert not message.batches
    assert message is not None
    assert (skipped([message]), message.committed_tail) == ([(7, END)], END)
    stream.cancel()


async def test_headers_alone_can_be_asked_for_by_key(served: Served) -> None:
    """The digest is looked at before a batch is cut."""
    stream = await served.read(0, no_wait=True, key_digest=hash_key(b"a"), headers_only=True)
    found = await messages(stream)
    assert batches(found) == [BATCHES[0][:HEADERS_BYTES], BATCHES[3][:HEADERS_BYTES]]


async def test_a_repair_takes_everything(served: Served) -> None:
    """It copies what is there; a key would make holes."""
    await served.seal()
    with pytest.raises(InvalidArgument, match="repair"):
        await messages(await served.read(0, for_repair=True, key_digest=hash_key(b"a")))


async def test_a_hole_is_a_gap_for_every_key(served: Served) -> None:
    """What is not here can't be ruled out."""
    await fill(served, [placed(20, b"c")], committed=20)
    found = await messages(await served.read(5, no_wait=True, key_digest=hash_key(b"nobody")))
    assert skipped(found) == [(5, END)]
    assert found[-1].gap == (HOLE, END, 20)


@pytest.mark.parametrize("damage_the_header", [False, True])
async def test_damage_is_never_left_out(tmp_path: Path, *, damage_the_header: bool) -> None:
    """A damaged batch may have been anything, whatever the digest that is left of it says."""
    needle = b"needle" + b"k" * 30
    whole = [placed(0, b"a"), placed(1, needle, None, text="mark"), placed(3, b"c")]
    async with serve(open_store(tmp_path)) as server:
        await fill(server, whole, committed=4)
    batch = whole[1][PLACEMENT_BYTES:]
    damage_file(tmp_path, batch[40:52] if damage_the_header else needle)
    async with serve(open_store(tmp_path)) as server:
        found = await messages(
            await server.read(0, end=4, segment_end=4, key_digest=hash_key(b"nobody"))
        )
        assert (batches(found), skipped(found)) == ([], [(0, 1)])
        assert found[-1].gap == (DAMAGED, 1, 3)
        found = await messages(
            await server.read(3, end=4, segment_end=4, key_digest=hash_key(b"nobody"))
        )
        assert skipped(found) == [(3, 4)]
