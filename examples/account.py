"""An event-sourced account: optimistic concurrency with `match_offset`.

The log holds what happened (deposits and withdrawals); the balance is what comes out of applying it
all. A withdrawal must not overdraw the account, and two clerks decide at the same time, each with
a view of its own. So a clerk appends with `match_offset`: the event is taken only if it gets the
offset at which the clerk's view ends, which is to say that nothing happened that the clerk has not
seen. A clerk that lost reads what came in between and decides again. There is no lock, and no
database transaction.

That settles the case of a lost answer, too. An event that asks for offset 17 is at offset 17 or
nowhere: if the clerk reads its own event there, it was appended; if another lies there, never.

    python examples/account.py [--address 127.0.0.1:4100]
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from random import Random

import running

import sharedlog
from sharedlog import AppendIndefinite, OffsetMismatch


class Overdrawn(Exception):
    """The account has less than is to be withdrawn; nothing was appended."""


class Account:
    """One clerk's view of an account: the balance as of `position`. For one task at a time."""

    def __init__(self, log: sharedlog.Log) -> None:
        self.balance = 0
        self.position = 0  # the first offset that is not in `balance` yet
        self.conflicts = 0  # times that another clerk was faster
        self._log = log

    async def deposit(self, amount: int) -> None:
        """Add to the balance."""
        await self._append(lambda: amount)

    async def withdraw(self, amount: int) -> None:
        """Take from the balance.

        Raises:
            Overdrawn: there is not so much.
        """

        def decide() -> int:
            if self.balance < amount:
                raise Overdrawn(f"{amount} are asked for, and there are {self.balance}")
            return -amount

        await self._append(decide)

    async def refresh(self) -> set[str]:
        """Take in everything that was acknowledged before the call; the ids of these events."""
        return await self._read_up_to(await self._log.tail())

    async def _append(self, decide: Callable[[], int]) -> None:
        """Append the change that `decide` makes of the balance; it is asked again after a conflict.

        In the usual case that is one round trip: nothing is read before the append.
        """
        event_id = secrets.token_hex(8)
        read: set[str] = set()
        while event_id not in read:
            change = decide()
            event = json.dumps({"id": event_id, "change": change}).encode()
            try:
                offset = await self._log.append(event, match_offset=self.position)
            except OffsetMismatch as mismatch:
                self.conflicts += 1
                read = await self._read_up_to(mismatch.tail)
            except AppendIndefinite:
                read = await self.refresh()
            else:
                self._apply(offset, change)
                return

    async def _read_up_to(self, end: int) -> set[str]:
        read = set()
        # With `follow` the read goes exactly up to `end`, even if the tail can't be told now.
        async for record in self._log.read(self.position, end, follow=True):
            event = json.loads(record.value)
            self._apply(record.offset, event["change"])
            read.add(event["id"])
        self.position = max(self.position, end)  # control records may lie below `end`
        return read

    def _apply(self, offset: int, change: int) -> None:
        self.balance += change
        self.position = offset + 1


async def withdraw_at_random(account: Account, rng: Random, times: int) -> int:
    """Withdraw some amounts; how many of them the account had not enough for."""
    refused = 0
    for _ in range(times):
        try:
            await account.withdraw(rng.randint(1, 10))
        except Overdrawn:
            refused += 1
            await account.refresh()  # somebody may have paid in since
    return refused


async def main(address: str) -> None:
    """Two clerks pay out of one account, which has not enough for all that they are asked for."""
    async with sharedlog.connect(address) as here, sharedlog.connect(address) as there:
        log = await here.create_log(f"examples/account-{secrets.token_hex(4)}")
        ann, bob = Account(log), Account(there.log(log.name))
        await ann.deposit(100)
        async with asyncio.TaskGroup() as clerks:
            by_ann = clerks.create_task(withdraw_at_random(ann, Random(1), times=20))
            by_bob = clerks.create_task(withdraw_at_random(bob, Random(2), times=20))
        print("withdrawals that were refused:", by_ann.result() + by_bob.result())
        print("times that a clerk had to decide again:", ann.conflicts + bob.conflicts)

        balance, lowest = 0, 0
        async for record in log.read():
            balance += json.loads(record.value)["change"]
            lowest = min(lowest, balance)
        await ann.refresh()
        await bob.refresh()
        assert ann.balance == bob.balance == balance
        assert lowest == 0, "the account was overdrawn"
        print("never overdrawn; both clerks and the log agree on the balance:", balance)


if __name__ == "__main__":
    running.run(main, about=__doc__)
