"""Clients that append, read and ask for the tail without pause, and note all of it in a history."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

from helpers.history import Append, Final, FinalRecord, History, Read

import sharedlog
from sharedlog import AppendIndefinite, Log, SharedLogError
from sharedlog.errors import DataLoss
from sharedlog.pending import PendingAppend

_OUTSTANDING_MAX = 16


@dataclass(slots=True)
class Load:
    """Some clients on one log; `stop` ends them, and everything that they did is in `history`."""

    addresses: list[str]
    name: str
    history: History = field(default_factory=History)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledged: int = 0

    async def run(self, *, appenders: int = 2, timeout_s: float = 60.0) -> None:
        """Until told to stop: appenders, a follower from 0, a reader and a caller of `tail`."""
        async with sharedlog.connect(self.addresses) as cluster, asyncio.TaskGroup() as tasks:
            log = cluster.log(self.name)
            following = tasks.create_task(self._follow(log), name="follower")
            for number in range(appenders):
                tasks.create_task(self._append(log, f"a{number}", timeout_s), name=f"a{number}")
            tasks.create_task(self._ask_tails(log), name="tails")
            tasks.create_task(self._read_again(log), name="reader")
            await self.stopping.wait()
            following.cancel()

    async def _append(self, log: Log, name: str, timeout_s: float) -> None:
        waiting: deque[tuple[Append, PendingAppend]] = deque()
        number = 0
        async with log.appender(timeout_s=timeout_s) as appender:
            while not self.stopping.is_set():
                noted = self.history.append(name, f"{name}-{number}".encode())
                pending = await appender.append(noted.value)
                self.history.admitted(noted)
                waiting.append((noted, pending))
                number += 1
                if len(waiting) >= _OUTSTANDING_MAX:
                    await self._settle(*waiting.popleft())
                    await asyncio.sleep(0.001)
            while waiting:
                await self._settle(*waiting.popleft())

    async def _settle(self, noted: Append, pending: PendingAppend) -> None:
        try:
            offset = await pending
        except AppendIndefinite as error:
            self.history.failed(noted, error, definite=False)
        except SharedLogError as error:
            self.history.failed(noted, error, definite=True)
        else:
            self.history.acked(noted, offset)
            self.acknowledged += 1

    async def _follow(self, log: Log) -> None:
        noted = self.history.read("follower", 0, follow=True)
        async with contextlib.aclosing(log.read(start=0, follow=True)) as records:
            async for record in records:
                self.history.saw(noted, record.offset, record.value, record.timestamp_ms)

    async def _ask_tails(self, log: Log) -> None:
        while not self.stopping.is_set():
            noted = self.history.tail("tails")
            try:
                self.history.tail_found(noted, await log.tail())
            except SharedLogError as error:
                noted.error = f"{type(error).__name__}: {error}"
            await asyncio.sleep(0.02)

    async def _read_again(self, log: Log) -> None:
        """Read from some place to the tail, again and again."""
        while not self.stopping.is_set():
            start = max(0, self.acknowledged - 500)
            noted = self.history.read("reader", start)
            await self._read(log, noted)
            await asyncio.sleep(0.1)

    async def _read(self, log: Log, noted: Read) -> None:
        try:
            # The end is asked for beforehand: it makes the read a read "to the tail" for certain.
            noted.end = await log.tail()
            if noted.end <= noted.start:
                noted.start = noted.end
                self.history.read_ended(noted)
                return
            async with contextlib.aclosing(log.read(noted.start, end=noted.end)) as records:
                async for record in records:
                    self.history.saw(noted, record.offset, record.value, record.timestamp_ms)
            self.history.read_ended(noted)
        except SharedLogError as error:
            noted.error = f"{type(error).__name__}: {error}"


async def read_final(addresses: list[str], name: str) -> Final:
    """The log in the end, through a client of its own."""
    async with sharedlog.connect(addresses) as cluster:
        log = cluster.log(name)
        tail = await log.tail()
        records: list[FinalRecord] = []
        lost: list[tuple[int, int]] = []
        start = 0
        while start < tail:
            try:
                async with contextlib.aclosing(log.read(start, end=tail)) as found:
                    async for record in found:
                        records.append(
                            FinalRecord(record.offset, record.value, record.timestamp_ms)
                        )
                        start = record.offset + 1
                break
            except DataLoss as gap:
                lost.append((gap.first, gap.end))
                start = gap.end
        chain = (await log.describe()).chain
        accepted = [(gap.first, gap.end) for part in chain for gap in part.lost]
        assert set(lost) <= set(accepted), f"lost without anybody's consent: {lost}"
        return Final(tail, records, accepted)
