"""Clients that append: many records under way or one after the other, on conditions, by name.

What a client does next is drawn from the seed. Each append is noted before it begins, and what it
was told when it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Final

from helpers.history import Append, Life, Outcome
from helpers.sim.workload import SimClient, Workload

from sharedlog.appender import Appender
from sharedlog.batch import BatchBuilder
from sharedlog.codec import COMPRESSIONS
from sharedlog.errors import SharedLogError
from sharedlog.pending import PendingAppend

DROP_PROBABILITY: Final = 0.05
"""Of an appender, after each burst."""
CRASH_PROBABILITY: Final = 0.12
"""Of a named producer's life, likewise."""
NAMED_PROBABILITY: Final = 0.6
"""Of the next appender: it is a life of a named producer."""
SHARED_NAME: Final = "shared"
"""A producer that now one client runs, now another, and sometimes two."""
TRIES_MAX: Final = 3
"""Of an optimistic append, before the client gives up."""


class PipelinedClient:
    """Bursts of records and batches through one appender, in order.

    Now and then the appender is dropped with what it has under way, and another one goes on: one
    without a name, maybe with a fencing token, or the next life of a named producer.
    """

    def __init__(
        self, work: Workload, client: SimClient, *, pause_s: float, timeout_s: float
    ) -> None:
        self._work = work
        self._client = client
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._answers: list[asyncio.Task[None]] = []
        self._old_lives: list[asyncio.Task[None]] = []
        self._appenders = 0

    async def run(self) -> None:
        """Until the workload stops; then all that is under way ends first."""
        while not self._work.stopping:
            self._appenders += 1
            if self._client.draw.random() < NAMED_PROBABILITY:
                await self._live()
            else:
                await self._append_nameless()
        await _all([*self._old_lives, *self._answers])

    async def _pause(self) -> None:
        await asyncio.sleep(self._client.draw.expovariate(1 / self._pause_s))

    # Without a name.

    async def _append_nameless(self) -> None:
        work, draw = self._work, self._client.draw
        token = work.token if draw.random() < 0.3 else None
        appender = self._client.log.appender(
            timeout_s=self._timeout_s, fencing_token=token, compression=draw.choice(COMPRESSIONS)
        )
        run = _Run(appender, f"{self._client.name}.a{self._appenders}", token)
        while not (work.stopping or run.is_fenced) and draw.random() > DROP_PROBABILITY:
            what = draw.random()
            if what < 0.12:
                await self._append_batch(run, None)
            elif what < 0.2:
                await self._append_chain(run)
            for _ in range(draw.choice((1, 1, 1, 2, 6))):
                value, key = work.record(self._client)
                append = work.history.append(run.name, value, key=key, token=token)
                await self._append_record(run, append)
                if draw.random() < 0.5:
                    await asyncio.sleep(draw.uniform(0, 0.03))  # a batch of its own
            await self._pause()
        await self._drop(appender)

    async def _append_chain(self, run: _Run) -> None:
        """Batches that are to follow each other, and nothing between, from where the log may end.

        A draw decides whether that is looked up, or is where the last record of this client is.
        """
        work, client = self._work, self._client
        match = run.last_end
        if client.draw.random() < 0.5:
            match = await work.find_tail(client) or match
        for _ in range(client.draw.randint(1, 3)):
            match += await self._append_batch(run, match)

    async def _append_batch(self, run: _Run, match_offset: int | None) -> int:
        """Returns how many records it has."""
        work, client = self._work, self._client
        records = [work.record(client) for _ in range(client.draw.randint(2, 5))]
        appends = work.history.append_batch(
            run.name, records, match_offset=match_offset, token=run.token
        )
        builder = BatchBuilder()
        for value, key in records:
            builder.append(value, key)
        try:
            batch = await run.appender.append_batch(builder, match_offset=match_offset)
        except SharedLogError as error:
            work.failed(appends, error)
            return len(records)

        async def answer() -> int:
            await batch.wait()
            return batch.first_offset()

        self._await_answer(run, appends, answer())
        return len(records)

    # With a name.

    async def _live(self) -> None:
        """One life of a named producer, up to its crash or its first failure.

        Sometimes it does not know that it is over, and goes on while the next one begins.
        """
        client, draw = self._client, self._client.draw
        producer = SHARED_NAME if draw.random() < 0.4 else f"producer of {client.name}"
        appender = client.log.appender(
            producer=producer, timeout_s=self._timeout_s, compression=draw.choice(COMPRESSIONS)
        )
        life = self._work.history.life(producer)
        try:
            await appender.open()
        except SharedLogError as error:
            self._work.trace(f"no life of {producer}: {type(error).__name__} {error}")
            await self._pause()
            return
        epoch = appender._queue.epoch  # no caller needs it, but the check
        name, sequence = f"{client.name}.a{self._appenders}", appender.next_sequence
        self._work.history.lives_on(life, epoch=epoch, next_sequence=sequence)
        run = _Run(appender, name, None, life, sequence)
        while not (self._work.stopping or run.failed) and draw.random() > CRASH_PROBABILITY:
            await self._append_numbered(run)
        if draw.random() < 0.3:
            old = self._go_on_unaware(run)
            self._old_lives.append(self._work.start(client, old, "old life"))
        else:
            await self._drop(appender)

    async def _go_on_unaware(self, run: _Run) -> None:
        for _ in range(self._client.draw.randint(1, 5)):
            await self._append_numbered(run)
        await self._drop(run.appender)

    async def _append_numbered(self, run: _Run) -> None:
        """A burst of the producer's next records."""
        work, client = self._work, self._client
        for _ in range(client.draw.choice((1, 1, 2, 5))):
            if run.failed:
                return
            assert run.life is not None
            value, key = work.record(client, f"{run.life.producer} {run.sequence}")
            append = work.history.append_in(run.life, run.name, value, run.sequence, key=key)
            run.sequence += 1
            await self._append_record(run, append)
            if client.draw.random() < 0.5:
                await asyncio.sleep(client.draw.uniform(0, 0.03))
        await self._pause()

    # Either.

    async def _append_record(self, run: _Run, append: Append) -> None:
        try:
            promised = await run.appender.append(append.value, append.key)
        except SharedLogError as error:
            self._work.failed([append], error)
            run.ended(append)
            return
        self._await_answer(run, [append], _offset_of(promised))

    def _await_answer(self, run: _Run, appends: Sequence[Append], answer: Awaitable[int]) -> None:
        for append in appends:
            self._work.history.admitted(append)

        async def settle() -> None:
            await self._work.settle(appends, answer)
            run.ended(appends[-1])

        self._answers.append(self._work.start(self._client, settle(), "answer"))

    async def _drop(self, appender: Appender) -> None:
        if self._work.stopping:
            await _all(self._answers)
        await appender.abort()


@dataclass(slots=True, eq=False)
class _Run:
    """An appender while it is used."""

    appender: Appender
    name: str
    token: str | None
    life: Life | None = None
    sequence: int = 0  # of the next record of a named producer
    failed: bool = False
    is_fenced: bool = False
    last_end: int = field(default=0)  # behind the last record that was acknowledged

    def ended(self, append: Append) -> None:
        """An append has its outcome."""
        if append.offset is not None:
            self.last_end = max(self.last_end, append.offset + 1)
        else:
            self.failed = True
            self.is_fenced = self.is_fenced or append.told_token is not None


async def _offset_of(promised: PendingAppend) -> int:
    return await promised


class SingleClient:
    """One record after the other, each waited for: some on a condition, and now and then a fence.

    It writes with a token until another client's fence refuses that; then it takes the token that
    it is told, or sets one of its own in that one's place.
    """

    def __init__(
        self, work: Workload, client: SimClient, *, pause_s: float, timeout_s: float
    ) -> None:
        self._work = work
        self._client = client
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._appends = 0
        self._fences = 0
        self._tail = 0  # where it takes the log to end
        self._token = ""

    async def run(self) -> None:
        """Until the workload stops."""
        draw = self._client.draw
        while not self._work.stopping:
            what = draw.random()
            if what < 0.45:
                await self._append()
            elif what < 0.7:
                await self._append_at_the_tail()
            elif what < 0.93:
                await self._append_with_token()
            else:
                await self._fence(self._token if draw.random() < 0.6 else None)
            await asyncio.sleep(draw.expovariate(1 / self._pause_s))

    async def _append(self, *, match_offset: int | None = None, token: str | None = None) -> Append:
        work, client = self._work, self._client
        self._appends += 1
        value, key = work.record(client)
        append = work.history.append(
            f"{client.name}.{self._appends}",
            value,
            key=key,
            match_offset=match_offset,
            token=token,
        )
        answer = client.log.append(
            append.value,
            append.key,
            match_offset=match_offset,
            fencing_token=token,
            timeout_s=self._timeout_s,
        )
        await work.settle([append], answer)
        if append.offset is not None:
            self._tail = append.offset + 1
        return append

    async def _append_at_the_tail(self) -> None:
        """Append where the log is taken to end; if it ends elsewhere, try again there."""
        draw = self._client.draw
        if draw.random() < 0.5:  # else where it was when this client last heard
            self._tail = await self._work.find_tail(self._client) or self._tail
        token = self._token if draw.random() < 0.2 else None
        for _ in range(TRIES_MAX):
            append = await self._append(match_offset=self._tail, token=token)
            if append.told_tail is None:
                return
            self._tail = append.told_tail

    async def _append_with_token(self) -> None:
        append = await self._append(token=self._token)
        if append.told_token is None:
            return
        self._token = append.told_token
        if self._client.draw.random() < 0.4:
            await self._fence(append.told_token)

    async def _fence(self, expected: str | None) -> None:
        work, client = self._work, self._client
        self._fences += 1
        token = f"{client.name}#{self._fences}"
        append = work.history.fence(f"{client.name}.fence", token, expected=expected)
        answer = client.log.fence(token, expected, timeout_s=self._timeout_s)
        await work.settle([append], answer)
        if append.told_token is not None:
            self._token = append.told_token
        elif append.outcome is not Outcome.DEFINITE:
            self._token = work.token = token


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
