"""A leader lock with fencing: one leader at a time, and none that was deposed gets a word in.

A lock that expires is not enough. A leader that was paused (by the garbage collector, the
scheduler, a live migration) wakes up behind its expiry and goes on writing as if nothing had
happened. Here every write of a leader goes into the log with its *fencing token*, and the log
refuses it if the token is no longer the log's own:

- To take over is to set the token, on condition that it is still the one of the leader that is to
  be replaced (`Log.fence` with `expected`). Of several candidates exactly one succeeds.
- That the leader is gone is a guess: nothing has been heard of it for a while. A wrong guess costs
  a change of leaders, and never a wrong record: safety does not rest on clocks.
- A new leader first reads the log up to its own fence. Nothing of an older leader comes behind it,
  so what it has read then is all there is.

The leaders here hand out ticket numbers: 1, 2, 3, … with no number twice, whoever leads.

    python examples/leader_lock.py [--address 127.0.0.1:4100]
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack

import running

import sharedlog
from sharedlog import AppendIndefinite, FencingTokenMismatch

PATIENCE_S = 0.5
"""A leader that has not been heard of for so long may be replaced."""


class Candidate:
    """Who wants to lead, or leads."""

    def __init__(self, log: sharedlog.Log, name: str) -> None:
        self.name = name
        self.token = ""  # of our last term; the log knows whether it still lasts
        self.leader_token = ""  # the log's, as far as we know
        self.last_ticket = 0  # as far as we know, likewise
        self._log = log

    async def campaign(self) -> bool:
        """Try to replace the leader that is known here; whether it worked. Else another is known.

        The leader that has won knows all tickets that were ever handed out.
        """
        token = f"{self.name}/{secrets.token_hex(4)}"  # one for each term
        while True:
            try:
                fence = await self._log.fence(token, expected=self.leader_token)
            except FencingTokenMismatch as mismatch:
                if mismatch.current != token:
                    self.leader_token = mismatch.current
                    return False
                fence = await self._log.tail()  # it is ours, by an attempt that got no answer
            except AppendIndefinite:
                continue  # asking again tells
            self.token = self.leader_token = token
            await self._learn(fence)
            return True

    async def issue_ticket(self) -> int:
        """Hand out the next number, as the leader; it is taken when this returns.

        Raises:
            FencingTokenMismatch: somebody else leads by now. No number was taken.
            AppendIndefinite: the number may be taken. Campaign again before the next one.
        """
        number = self.last_ticket + 1
        await self._log.append(f"{number} {self.name}".encode(), fencing_token=self.token)
        self.last_ticket = number
        return number

    async def wait_for_silence(self) -> None:
        """Follow the log until nothing has come for a while."""
        start = await self._log.tail()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_S) as silence:
                async for _ in self._log.read(start, follow=True):
                    silence.reschedule(loop.time() + PATIENCE_S)
        except TimeoutError:
            return

    async def _learn(self, end: int) -> None:
        # With `follow` the read goes exactly up to `end`, even if the tail can't be told now.
        async for record in self._log.read(0, end, follow=True):
            self.last_ticket = int(record.value.split()[0])


async def challenge(candidate: Candidate) -> bool:
    """Become the leader once the present one is silent, unless another candidate is faster."""
    await candidate.wait_for_silence()
    return await candidate.campaign()


async def main(address: str) -> None:
    """Ann leads and falls silent; Bob and Cid want to follow her; Ann wakes up."""
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(sharedlog.connect(address)) for _ in range(3)]
        log = await clusters[0].create_log(f"examples/tickets-{secrets.token_hex(4)}")
        names = ("ann", "bob", "cid")
        ann, bob, cid = (
            Candidate(cluster.log(log.name), name)
            for cluster, name in zip(clusters, names, strict=True)
        )
        assert await ann.campaign()
        assert not await bob.campaign()  # he learns who leads
        assert not await cid.campaign()
        print("ann leads and hands out", [await ann.issue_ticket() for _ in range(3)])

        # She is paused from here on. Both others notice, and one of them gets the lock.
        won = await asyncio.gather(challenge(bob), challenge(cid))
        assert won.count(True) == 1
        leader = bob if won[0] else cid
        print("a new leader hands out", [await leader.issue_ticket() for _ in range(2)])

        try:  # Ann wakes up, and knows nothing of all that.
            await ann.issue_ticket()
        except FencingTokenMismatch:
            print("ann wakes up and is refused")
        assert await leader.issue_ticket() == 6

        tickets = [record.value.decode().split() async for record in log.read()]
        assert [int(number) for number, _ in tickets] == [1, 2, 3, 4, 5, 6]
        assert [name for _, name in tickets] == ["ann"] * 3 + [leader.name] * 3
        print("in the log: tickets 1 to 6, each once")


if __name__ == "__main__":
    running.run(main, about=__doc__)
