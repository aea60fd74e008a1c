"""What one seed decides besides the network and the disks: time, ids, and the trace of a run."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable

EPOCH_MS = 1_700_000_000_000
"""Unix time at virtual time 0."""


class SimClock:
    """A `Clock` on the simulator's loop. Each process may have its own, off by `skew_ms`.

    The skew may jump at any time, back too, as when an operator or NTP sets a machine's clock; the
    monotonic time never does.
    """

    def __init__(self, *, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms

    def now_ms(self) -> int:
        return EPOCH_MS + self.skew_ms + int(asyncio.get_running_loop().time() * 1000)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Trace:
    """What happened, in order: a line is the virtual time in microseconds and the event.

    Two runs with one seed must give equal traces. Only a hash is kept, unless `lines` is given to
    keep them: the first line that differs, or the last ones before a failure, are where to look.
    """

    def __init__(self, *, lines: list[str] | None = None) -> None:
        self.lines = lines
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, event: str) -> None:
        line = f"{asyncio.get_running_loop().time() * 1e6:.0f} {event}"
        self.count += 1
        self._hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def digest(self) -> str:
        return self._hash.hexdigest()


class World:
    """One simulation: the seed, everything drawn from it, and the trace.

    Each user of randomness has a generator of its own, by name, so that one more draw in one place
    does not shift all others.
    """

    def __init__(self, seed: int, *, keep_lines: bool = False) -> None:
        self.seed = seed
        self.trace = Trace(lines=[] if keep_lines else None)

    def random(self, name: str) -> random.Random:
        # A string seeds the same generator in every process, unlike its hash().
        return random.Random(f"{self.seed}/{name}")

    def ids(self, name: str) -> Callable[[], str]:
        """A source of ids in the form of `uuid4().hex`."""
        source = self.random(f"ids/{name}")
        return lambda: f"{source.getrandbits(128):032x}"
