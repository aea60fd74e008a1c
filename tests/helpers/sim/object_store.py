"""A simulated object store: one for all nodes, reached over the network's faults, with its own.

`SimObjects` is the service, a host `archive` outside of every node; `SimObjectStore` is one node's
way to it, for one life of it. With no fault set it keeps the contract of `ObjectStore`, and the
tests of that run against it. What goes wrong besides what the network does:

- `up`: nothing answers;
- `trouble`: so many of the calls go wrong, each in a way that is drawn. It fails before it is made;
  it is made and its answer lost; it is made twice, the second time after its answer; it is made
  late, when its caller has given it up; or the service is busy, and it takes long or is refused;
- `damage_reads`, `damage_uploads`: a bit flips on the way to the reader, or in what an upload has
  left; values that are swapped are not damaged for good, for nobody could make them whole again;
- `lag_s`: what was written is listed late, and what was deleted is listed on.

Versions are hashes of the values, so that equal values can't be told apart (field note 49).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, TypeVar

from helpers.sim.network import SimNetwork
from helpers.sim.world import EPOCH_MS, World

from loglet.archive.object_store import ObjectInfo, Versioned, check_key
from loglet.archive.url import check_prefix
from sharedlog.errors import ArchiveUnavailable, ObjectNotFound, SwapConflict

T = TypeVar("T")

ARCHIVE_HOST: Final = "archive"

_PATIENCE_S: Final = 1.0
_LATE_MAX_S: Final = 6.0
_BUSY_MAX_S: Final = 3.0

_Trouble = Literal["", "before", "after", "twice", "late", "busy", "refused"]
_TROUBLES: Final[tuple[_Trouble, ...]] = ("before", "after", "twice", "late", "busy", "refused")


class _Object:
    """Bytes under a key."""

    __slots__ = ("data", "modified_ms", "version")

    def __init__(self, data: bytes, modified_ms: int) -> None:
        self.data = data
        self.modified_ms = modified_ms
        self.version = hashlib.sha256(data).hexdigest()


OnChange = Callable[[str, bytes | None], None]
"""Is told of each change when it is made: the key, and what is there now."""


def simulated_ms() -> int:
    """The service's clock, which is right."""
    return EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)


class SimObjects:
    """The objects, and what is wrong with the service."""

    def __init__(
        self,
        world: World,
        network: SimNetwork | None = None,
        *,
        now_ms: Callable[[], int] = simulated_ms,
    ) -> None:
        self.up = True
        self.trouble = 0.0
        self.damage_reads = 0.0
        self.damage_uploads = 0.0
        self.lag_s = 0.0
        self.network = network
        self.random = world.random("archive")
        self.trace = world.trace
        self.objects: dict[str, _Object] = {}
        self.on_change: OnChange = lambda _key, _data: None
        self.damaged: set[str] = set()  # keys of uploads that were
        self._now_ms = now_ms
        self._listed: dict[str, tuple[float, ObjectInfo | None]] = {}  # key → until when, what

    def store(self, host: str = "") -> SimObjectStore:
        """A node's way to it, for one life."""
        return SimObjectStore(self, host)

    def heal(self) -> None:
        """Nothing is wrong any more."""
        self.up = True
        self.trouble = self.damage_reads = self.damage_uploads = self.lag_s = 0.0

    def reaches(self, host: str, *, back: bool = False) -> bool:
        """A message gets through: from the host to the service, or back."""
        if not self.up or self.network is None:
            return self.up
        way = (ARCHIVE_HOST, host) if back else (host, ARCHIVE_HOST)
        return not (self.network.is_cut(*way) or self.network.is_refused(*way))

    def put(self, key: str, data: bytes) -> str:
        """Set a value; returns its version."""
        self._note_listing(key)
        made = self.objects[key] = _Object(data, self._now_ms())
        self.trace.add(f"archive {key} has {len(data)} bytes, {made.version[:8]}")
        self.on_change(key, data)
        return made.version

    def upload(self, key: str, data: bytes) -> int:
        """Set a new object's bytes, sometimes others than were given."""
        if data and self.random.random() < self.damage_uploads:
            data = self.flipped(data)
            self.damaged.add(key)
            self.trace.add(f"archive {key} is damaged")
        self.put(key, data)
        return len(data)

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Compare, and set."""
        found = self.objects.get(key)
        actual = None if found is None else found.version
        if actual != expected:
            raise SwapConflict("another value is there", key=key, actual=actual)
        return self.put(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete what there is of these."""
        for key in keys:
            self._note_listing(key)
            if self.objects.pop(key, None) is not None:
                self.trace.add(f"archive {key} is gone")
                self.on_change(key, None)

    def listed(self, prefix: str) -> list[ObjectInfo]:
        """What a listing tells."""
        now_s = asyncio.get_running_loop().time()
        found = {key: ObjectInfo(key, len(it.data), it.modified_ms) for key, it in self._all()}
        for key, (until_s, was) in self._listed.items():
            if until_s > now_s:
                found.pop(key, None)
                if was is not None:
                    found[key] = was
        return [found[key] for key in sorted(found) if key.startswith(prefix)]

    def flipped(self, data: bytes) -> bytes:
        """The same but for one bit."""
        at = self.random.randrange(8 * len(data))
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        return bytes(changed)

    def _all(self) -> list[tuple[str, _Object]]:
        return list(self.objects.items())

    def _note_listing(self, key: str) -> None:
        """Listings tell of what is there now for a while yet."""
        if self.lag_s:
            until_s = asyncio.get_running_loop().time() + self.random.uniform(0, self.lag_s)
            found = self.objects.get(key)
            was = None if found is None else ObjectInfo(key, len(found.data), found.modified_ms)
            self._listed[key] = until_s, was


class SimObjectStore:
    """`ObjectStore` of one node."""

    def __init__(self, objects: SimObjects, host: str) -> None:
        self._objects = objects
        self._host = host
        self._closed = False
        self.dead = False  # whatever the dying process asks for is not heard

    @property
    def url(self) -> str:
        return "sim:///archive"

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        check_key(key)
        data = await self._ask("read", key, lambda: self._get(key)[start:end])
        return self._received(data)

    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        check_key(key)
        data = await self._ask("read_tail", key, lambda: self._get(key))
        return self._received(data[-size:]), len(data)

    async def read_versioned(self, key: str) -> Versioned | None:
        check_key(key)
        found = await self._ask("read_versioned", key, lambda: self._objects.objects.get(key))
        return None if found is None else Versioned(self._received(found.data), found.version)

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        check_key(key)
        data = b"".join([part async for part in parts])
        return await self._change("upload", key, lambda: self._objects.upload(key, data))

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        check_key(key)
        try:
            return await self._change("swap", key, lambda: self._objects.swap(key, data, expected))
        except SwapConflict:
            # It may have been this very request, made twice.
            found = await self._ask("read_versioned", key, lambda: self._objects.objects.get(key))
            if found is not None and found.data == data:
                return found.version
            raise

    async def stat(self, key: str) -> ObjectInfo | None:
        check_key(key)
        found = await self._ask("stat", key, lambda: self._objects.objects.get(key))
        return None if found is None else ObjectInfo(key, len(found.data), found.modified_ms)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        for info in await self._ask("list", prefix, lambda: self._objects.listed(prefix)):
            yield info

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        if keys:
            await self._change("delete", keys[0], lambda: self._objects.delete(keys))

    async def close(self) -> None:
        self._closed = True

    async def _ask(self, name: str, key: str, make: Callable[[], T]) -> T:
        """Something that changes nothing."""
        trouble = await self._go(name, key)
        if trouble in ("after", "late"):
            await self._lose(name)
        answer = make()
        await self._travel(back=True)
        return answer

    async def _change(self, name: str, key: str, make: Callable[[], T]) -> T:
        trouble = await self._go(name, key)
        if trouble == "late":
            self._later(make)
            await self._lose(name)
        answer = make()
        if trouble == "twice":
            await self._travel()
            answer = make()
            if self._objects.random.random() < 0.5:
                self._later(make)
        elif trouble == "after":
            await self._lose(name)
        await self._travel(back=True)
        return answer

    async def _go(self, name: str, key: str) -> _Trouble:
        """The request arrives, or not; what is to become of it."""
        await self._travel()
        objects, draw = self._objects, self._objects.random
        trouble: _Trouble = ""
        if objects.trouble and draw.random() < objects.trouble:
            trouble = draw.choice(_TROUBLES)
            objects.trace.add(f"archive {self._host} {name} {key}: {trouble}")
        if trouble == "busy":
            await asyncio.sleep(draw.uniform(0, _BUSY_MAX_S))
        elif trouble == "refused":
            raise ArchiveUnavailable(f"{self.url}: {name}: slow down")
        elif trouble == "before":
            await self._lose(name)
        return trouble

    def _later(self, make: Callable[[], object]) -> None:
        """A request that nobody waits for any more arrives."""
        objects = self._objects

        def arrive() -> None:
            with suppress(SwapConflict):
                make()

        assert objects.network is not None
        objects.network.after(_LATE_MAX_S * objects.random.random() ** 2, arrive)

    async def _lose(self, name: str) -> None:
        """Nobody hears an answer."""
        await asyncio.sleep(self._objects.random.uniform(0, _PATIENCE_S))
        raise ArchiveUnavailable(f"{self.url}: {name}: no answer")

    async def _travel(self, *, back: bool = False) -> None:
        """One way of a round trip."""
        if self._closed:
            raise ArchiveUnavailable(f"{self.url}: closed")
        objects = self._objects
        if objects.network is not None:
            way = (ARCHIVE_HOST, self._host) if back else (self._host, ARCHIVE_HOST)
            await asyncio.sleep(2 * objects.network.delay(*way))
        if self.dead or not objects.reaches(self._host, back=back):
            await asyncio.sleep(_PATIENCE_S)
            raise ArchiveUnavailable(f"{self.url}: it does not answer")

    def _get(self, key: str) -> bytes:
        found = self._objects.objects.get(key)
        if found is None:
            raise ObjectNotFound(f"there is no {key}", key=key)
        return found.data

    def _received(self, data: bytes) -> bytes:
        objects = self._objects
        if data and objects.damage_reads and objects.random.random() < objects.damage_reads:
            objects.trace.add(f"archive {self._host} reads a flipped bit")
            return objects.flipped(data)
        return data
