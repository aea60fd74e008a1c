"""A replicated key-value store: a state machine over a log.

Every change is a command in the log. A replica applies the commands in their order, so that all
replicas go through the same states; how far one has come is an offset. No replica talks to another,
there is no leader, and any of them may be thrown away: the log is the database.

- A *write* appends its command. It is durable when the append returns.
- A *linearizable read* asks for the log's tail, applies everything below it, and then answers: it
  sees every write that was acknowledged before it began, whichever replica that went through.
- A *conditional write* (`swap`) is a command whose condition is judged when it is applied: at its
  place in the log, by every replica alike.
- A *snapshot* is the state and the offset behind it. A replica that starts from one reads only the
  rest of the log. Logs are not trimmed yet; once they are, the log need not go back further than
  the oldest snapshot that somebody may start from.

    python examples/kv_store.py [--address 127.0.0.1:4100]
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import running

import sharedlog


class State:
    """The state machine, the same in every replica: no I/O, no clock, no chance."""

    def __init__(self, values: Mapping[str, str] = {}, position: int = 0) -> None:
        self.values = dict(values)
        self.position = position  # the first offset that is not in `values` yet

    def apply(self, offset: int, command: Mapping[str, str | None]) -> bool:
        """Take the command at `offset`; whether its condition, if it has one, was met."""
        assert offset >= self.position, "a command is applied once, in its place"
        self.position = offset + 1
        key, value = command["key"], command["value"]
        assert key is not None
        if "if" in command and command["if"] != self.values.get(key):
            return False
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value
        return True

    def save(self, path: Path) -> None:
        """Write a snapshot. Whoever reads the file sees a whole one, this or the one before."""
        draft = path.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"position": self.position, "values": self.values}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The state that a snapshot has."""
        snapshot = json.loads(path.read_text(encoding="utf-8"))
        return cls(snapshot["values"], snapshot["position"])


class Replica:
    """A copy of the store, as new as its last read. For any number of tasks of one event loop."""

    def __init__(self, log: sharedlog.Log, state: State | None = None) -> None:
        self.state = state or State()
        self._log = log
        self._applying = asyncio.Lock()  # one task at a time moves the state on
        self._swaps: dict[str, bool] = {}  # those under way here: whether the condition was met

    async def get(self, key: str) -> str | None:
        """The value, or None; sees every write that was acknowledged before the call."""
        await self._catch_up(await self._log.tail())
        return self.state.values.get(key)

    def get_stale(self, key: str) -> str | None:
        """The value as this replica has it: at once, and perhaps an old one."""
        return self.state.values.get(key)

    async def put(self, key: str, value: str | None) -> None:
        """Set the value; None deletes it."""
        await self._append({"key": key, "value": value})

    async def swap(self, key: str, old: str | None, new: str | None) -> bool:
        """Set the value if it is `old` just before; whether it was."""
        swap_id = secrets.token_hex(8)
        self._swaps[swap_id] = False
        try:
            offset = await self._append({"key": key, "value": new, "if": old, "id": swap_id})
            await self._catch_up(offset + 1)
            return self._swaps[swap_id]
        finally:
            del self._swaps[swap_id]

    async def _append(self, command: Mapping[str, str | None]) -> int:
        return await self._log.append(json.dumps(command).encode())

    async def _catch_up(self, end: int) -> None:
        """Apply everything below `end`, which lies at the tail or below it."""
        async with self._applying:
            if self.state.position >= end:
                return
            # With `follow` the read goes exactly up to `end`, even if the tail can't be told now.
            async for record in self._log.read(self.state.position, end, follow=True):
                command = json.loads(record.value)
                met = self.state.apply(record.offset, command)
                if command.get("id") in self._swaps:
                    self._swaps[command["id"]] = met
            # Control records, which a reader passes over, may lie between the last one and `end`.
            self.state.position = end


async def increment(replica: Replica, key: str) -> None:
    """Add 1 to a number; nobody's addition is lost, whatever others do at the same time."""
    while True:
        old = await replica.get(key)
        if await replica.swap(key, old, str(int(old or "0") + 1)):
            return


async def count_together(replicas: list[Replica], times: int) -> None:
    """Each replica increments the same number, at the same time."""

    async def count(replica: Replica) -> None:
        for _ in range(times):
            await increment(replica, "counter")

    async with asyncio.TaskGroup() as tasks:
        for replica in replicas:
            tasks.create_task(count(replica))


async def main(address: str) -> None:
    """Two clients with a replica each; then a third one, from a snapshot."""
    async with sharedlog.connect(address) as here, sharedlog.connect(address) as there:
        log = await here.create_log(f"examples/kv-{secrets.token_hex(4)}")
        one, two = Replica(log), Replica(there.log(log.name))

        await one.put("colour", "green")
        print("replica two has not looked yet:", two.get_stale("colour"))
        print("a linearizable read of it:", await two.get("colour"))

        await count_together([one, two], times=10)
        print("two replicas, ten increments each:", await two.get("counter"))

        with TemporaryDirectory() as directory:
            snapshot = Path(directory) / "kv.json"
            one.state.save(snapshot)
            await two.put("colour", None)
            await two.put("shape", "round")
            three = Replica(log, State.load(snapshot))
        from_start = Replica(log)
        print("from the snapshot and the rest of the log:", await three.get("shape"))
        print("from the whole log:", await from_start.get("shape"))
        assert three.state.values == from_start.state.values == {"counter": "20", "shape": "round"}
        print("both replicas are equal:", three.state.values)


if __name__ == "__main__":
    running.run(main, about=__doc__)
