"""What a seal's answer says of damage, where there is much to be looked at."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from helpers.log_servers import (
    LOGLET,
    WAIT_S,
    damage_file,
    open_store,
    opened,
    placed,
    request,
    serve,
)

from loglet.digest import DigestService
from loglet.messages import SealRequest
from loglet.seal_looks import REMEMBERED_MAX, SealLooks
from loglet.store import HeldBatch
from loglet.wire import SEAL
from sharedlog.ids import LogId, LogletId, Offset

PAGE = 10


class Disk:
    """Batches of one record; it verifies ten at a time, and may be slow."""

    def __init__(self, *damaged: int) -> None:
        self.damaged = set(damaged)
        self.verified: list[int] = []
        self.pages_max = 1_000  # after so many pages it hangs

    async def verify(self, loglet: LogletId, start: Offset, end: Offset) -> list[HeldBatch]:
        if not self.pages_max:
            await asyncio.get_running_loop().create_future()
        self.pages_max -= 1
        found = range(start, min(start + PAGE, end))
        self.verified += found
        return [
            HeldBatch(Offset(it), Offset(it + 1), None if it in self.damaged else b"whole")
            for it in found
        ]


def looks_at(disk: Disk) -> SealLooks:
    return SealLooks(cast("DigestService", disk))


async def ask(looks: SealLooks, start: int, end: int) -> Any:
    return await looks.damaged(LOGLET, Offset(start), Offset(end))


async def impatiently(looks: SealLooks, start: int, end: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await ask(looks, start, end)


async def test_a_look_that_takes_long_goes_on_where_it_was() -> None:
    """Who asks gives up after two pages of ten, again and again: each offset is verified once, and
    in the end all of the damage is told, also what was found on the way."""
    disk = Disk(3, 55, 56)
    looks = looks_at(disk)
    for _ in range(4):
        disk.pages_max = 2
        await impatiently(looks, 0, 100)
    disk.pages_max = 2
    assert await ask(looks, 0, 100) == [(3, 4), (55, 57)]
    assert disk.verified == list(range(100))
    disk.pages_max = 2
    assert await ask(looks, 0, 110) == [(3, 4), (55, 57)]
    assert disk.verified == list(range(110)), "what came later is looked at too"
    assert await ask(looks, 56, 110) == [(56, 57)], "a committed tail has risen"


async def test_what_was_repaired_meanwhile_is_not_damaged() -> None:
    """A repair verifies what it stores, whether it came before or while the range was read."""
    disk = Disk(3, 15, 16)
    looks = looks_at(disk)
    disk.pages_max = 1
    await impatiently(looks, 0, 100)
    looks.on_repaired(LOGLET, [placed(3), placed(15)])
    disk.pages_max = 100
    assert await ask(looks, 0, 100) == [(16, 17)]
    looks.on_repaired(LogletId(LogId(99), 0), [placed(16)])
    assert await ask(looks, 0, 100) == [(16, 17)], "another loglet's repair"


async def test_a_short_look_is_made_each_time() -> None:
    """What costs one page is not remembered, and what is remembered is bounded."""
    disk = Disk(3)
    looks = looks_at(disk)
    assert await ask(looks, 0, 5) == [(3, 4)]
    disk.damaged.add(4)
    assert await ask(looks, 0, 5) == [(3, 5)]
    for log_id in range(REMEMBERED_MAX + 1):
        await looks.damaged(LogletId(LogId(100 + log_id), 0), Offset(0), Offset(20))
    disk.verified.clear()
    await looks.damaged(LogletId(LogId(101), 0), Offset(0), Offset(20))
    assert disk.verified == []
    await looks.damaged(LogletId(LogId(100), 0), Offset(0), Offset(20))
    assert disk.verified == list(range(20))


async def test_a_seal_that_skips_damage_reads_nothing(tmp_path: Path) -> None:
    """The flag goes over the wire; tails and timestamp are told as ever, damage is not looked for.
    Without it the same server tells it."""
    batch = placed(3, 2, text="needle")
    async with serve(open_store(tmp_path), loopback=False) as server:
        await server.store_all(request([placed(0, 3), batch], opens=[opened()]))
    damage_file(tmp_path, b"needle")
    async with serve(open_store(tmp_path), loopback=False) as server:
        message = SealRequest(server.storage_id, LOGLET, Offset(0), skip_damage=True)
        answer = await server.transport.call(server.address, SEAL, message, timeout_s=WAIT_S)
        assert (answer.local_tail, answer.damaged) == (5, [])
        assert server.metric("damaged_batches_total") == 0
        assert (await server.seal()).damaged == [(3, 5)]
