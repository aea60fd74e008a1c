"""Clients that read by a cursor, and several logs as one.

What a client does next is drawn from the seed. The records that it gets are noted as those of any
other read, and so are judged likewise; what a cursor's owner does, and in which order the logs'
records come, is judged besides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import aclosing, suppress
from typing import Final

from helpers.history import Owner, Read
from helpers.history_log import Violation
from helpers.sim.workload import SimClient, Workload

from sharedlog.cursor import Cursor
from sharedlog.errors import CursorLost, DataLoss, Purged, SharedLogError
from sharedlog.ids import Offset

CURSOR: Final = "billing"
CRASH_PROBABILITY: Final = 0.15
"""Of a cursor's owner, after each step."""


class CursorOwner:
    """Takes the cursor over, handles records and commits, until it crashes or loses the cursor.

    Others do the same with the same cursor, now and then at the same time.
    """

    def __init__(self, work: Workload, client: SimClient, *, pause_s: float) -> None:
        self._work = work
        self._client = client
        self._pause_s = pause_s

    async def run(self) -> None:
        """Until the workload stops."""
        while not self._work.stopping:
            await self._pause()
            await self._own()

    async def _pause(self) -> None:
        await asyncio.sleep(self._client.draw.expovariate(1 / self._pause_s))

    async def _own(self) -> None:
        work, client, draw = self._work, self._client, self._client.draw
        every_s = draw.choice((0.0, 0.3))
        cursor = client.log.cursor(CURSOR, commit_every_s=every_s, owner_name=client.name)
        owner = work.history.owner(client.name, CURSOR)
        try:
            await cursor.open()
        except SharedLogError as error:
            work.trace(f"{client.name} gets no cursor: {type(error).__name__} {error}")
            return
        work.history.owns(owner, epoch=cursor.epoch, position=cursor.position)
        work.trace(f"{client.name} has the cursor: epoch {cursor.epoch}, at {cursor.position}")
        try:
            while not work.stopping and draw.random() > CRASH_PROBABILITY:
                await self._handle(cursor, owner)
                await self._move(cursor, owner, at_once=every_s == 0)
                await self._pause()
            if draw.random() < 0.5:
                await self._flush(cursor, owner)
        except CursorLost as error:
            work.history.cursor_lost(owner)
            work.trace(f"{client.name} has lost the cursor: {error}")
        finally:
            await cursor.abort()

    async def _handle(self, cursor: Cursor, owner: Owner) -> None:
        """The next few records."""
        work, limit = self._work, self._client.draw.choice((1, 5, 20))
        read = work.history.read(f"cursor of {self._client.name}", cursor.next_offset)
        try:
            async with aclosing(cursor.read(limit=limit)) as records:
                async for record in records:
                    work.history.saw(read, record.offset, record.value, record.timestamp_ms)
                    owner.handled.add(record.offset)
        except CursorLost:
            raise
        except SharedLogError as error:
            work.read_failed(read, error)
            if isinstance(error, DataLoss):
                cursor.on_handed_out(Offset(error.end))
            elif isinstance(error, Purged):
                cursor.on_handed_out(Offset(error.start))

    async def _move(self, cursor: Cursor, owner: Owner, *, at_once: bool) -> None:
        """Mostly forward, to where all is handled; sometimes back; sometimes not at all."""
        draw = self._client.draw
        what = draw.random()
        if what < 0.1:
            position = max(0, cursor.position - draw.randint(0, 10))
            await self._note(owner, position, cursor.seek(position))
        elif what < 0.7:
            is_news = cursor.next_offset != cursor.position  # else nothing is asked
            await self._note(owner, cursor.next_offset, cursor.commit(), told=at_once and is_news)
        elif what < 0.85:
            await self._flush(cursor, owner)

    async def _flush(self, cursor: Cursor, owner: Owner) -> None:
        async def commit_and_flush() -> None:
            await cursor.commit()
            await cursor.flush()

        is_news = cursor.next_offset != cursor.position
        await self._note(owner, cursor.next_offset, commit_and_flush(), told=is_news)

    async def _note(
        self, owner: Owner, position: int, change: Awaitable[None], *, told: bool = True
    ) -> None:
        """Make a move; raises only `CursorLost`. That it is made its return tells if `told`."""
        work = self._work
        move = work.history.move(owner, position)
        try:
            await change
        except CursorLost:
            raise
        except SharedLogError as error:
            work.trace(f"{self._client.name} moves the cursor to {position}? {error}")
        else:
            if told:
                work.history.moved(move)


class MergedReader:
    """Reads several logs as one: to their tails again and again, or for ever."""

    def __init__(self, works: Mapping[str, Workload], client: SimClient) -> None:
        self._works = works
        self._client = client

    async def read_now_and_then(self, *, pause_s: float) -> None:
        """From the beginning or from somewhere, until the workload stops."""
        draw = self._client.draw
        seen = dict.fromkeys(self._works, 0)
        while not any(work.stopping for work in self._works.values()):
            await asyncio.sleep(draw.expovariate(1 / pause_s))
            starts = {name: draw.choice((0, draw.randint(0, end))) for name, end in seen.items()}
            reads = self._begin(starts)
            await self._read(reads)
            seen = {name: max(seen[name], read.position) for name, read in reads.items()}

    async def follow(self) -> None:
        """From 0 on, for ever; after a failure it goes on where it stood in each log."""
        reads = self._begin(dict.fromkeys(self._works, 0), follow=True)
        for name, work in self._works.items():
            work.followers.append(reads[name])
        while True:
            await self._read(reads, follow=True)
            await asyncio.sleep(self._client.draw.uniform(0.2, 1.0))

    def _begin(self, starts: Mapping[str, int], *, follow: bool = False) -> dict[str, Read]:
        reads = {}
        for name, work in self._works.items():
            who = f"merge of {self._client.name}"
            read = reads[name] = work.history.read(who, starts[name], follow=follow)
            read.stale = True  # whether a tail was certain it is not told
        return reads

    async def _read(self, reads: Mapping[str, Read], *, follow: bool = False) -> None:
        starts = {name: read.position for name, read in reads.items()}
        last = (0, "")
        merged = self._client.cluster.read_many(self._works, start=starts, follow=follow)
        try:
            async with aclosing(merged) as records:
                async for name, record in records:
                    offset, moment_ms = record.offset, record.timestamp_ms
                    history = self._works[name].history
                    history.saw(reads[name], offset, record.value, moment_ms)
                    if not follow and (moment_ms, name) < last:
                        message = f"{name} {offset} at {moment_ms} came behind {last}"
                        self._works[name].violations.append(Violation("merge", message))
                    last = (moment_ms, name)
        except SharedLogError as error:
            for name, read in reads.items():
                read.error = f"{type(error).__name__}: {error}"
                self._works[name].trace(f"merge failed at {read.position} of {name}: {read.error}")
            if isinstance(error, Purged):
                await self._pass_over(reads)

    async def _pass_over(self, reads: Mapping[str, Read]) -> None:
        """Go on where the logs start; of which log it was told the error does not say."""
        for name, read in reads.items():
            with suppress(SharedLogError):
                start = (await self._client.cluster.log(name).describe()).start
                if read.position < start:
                    self._works[name].history.purged(read, read.position, start)
