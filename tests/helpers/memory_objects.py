"""An object store in memory, and one that fails on purpose: at a given call, in a given way."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from loglet.archive.object_store import ObjectInfo, Versioned
from sharedlog.errors import ArchiveUnavailable, ObjectNotFound, SwapConflict

T = TypeVar("T")

Fault = Literal["before", "after", "twice", "crash before", "crash after"]
"""The call is not made; is made, and its answer lost; is made again when it was answered; or the
process ends on either side of it."""

FAULTS: tuple[Fault, ...] = ("before", "after", "twice", "crash before", "crash after")


class Crash(BaseException):
    """The process ends here."""


class FaultPlan:
    """Counts calls, and spoils one of them."""

    def __init__(self, at: int = -1, fault: Fault = "before") -> None:
        self.at = at
        self.fault = fault
        self.calls = 0
        self.spoiled = ""  # the name of the call that was

    async def run(self, name: str, call: Callable[[], Awaitable[T]], error: Exception) -> T:
        """Make the call, unless this is the one that is not to be made."""
        number, self.calls = self.calls, self.calls + 1
        if number != self.at:
            return await call()
        self.spoiled = name
        if self.fault == "before":
            raise error
        if self.fault == "crash before":
            raise Crash
        await call()
        if self.fault == "twice":
            return await call()
        if self.fault == "after":
            raise error
        raise Crash


class MemoryObjects:
    """See `ObjectStore`. `on_change` is told of each change when it is made."""

    def __init__(self, plan: FaultPlan | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.plan = plan or FaultPlan()
        self.on_change: Callable[[str], None] = lambda _key: None

    @property
    def url(self) -> str:
        """See `ObjectStore.url`."""
        return "memory:///"

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        async def call() -> bytes:
            return self._get(key)[start:end]

        return await self._run("read", call)

    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        async def call() -> tuple[bytes, int]:
            return self._get(key)[-size:], len(self._get(key))

        return await self._run("read_tail", call)

    async def read_versioned(self, key: str) -> Versioned | None:
        async def call() -> Versioned | None:
            data = self.objects.get(key)
            return None if data is None else Versioned(data, _version(data))

        return await self._run("read_versioned", call)

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        data = b"".join([part async for part in parts])

        async def call() -> int:
            self._put(key, data)
            return len(data)

        return await self._run("upload", call)

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        async def call() -> str:
            now = self.objects.get(key)
            if (None if now is None else _version(now)) != expected:
                raise SwapConflict("another value", key=key, actual=None)
            self._put(key, data)
            return _version(data)

        return await self._run("swap", call)

    async def stat(self, key: str) -> ObjectInfo | None:
        async def call() -> ObjectInfo | None:
            data = self.objects.get(key)
            return None if data is None else ObjectInfo(key, len(data), 0)

        return await self._run("stat", call)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]), 0)

    async def delete(self, keys: Sequence[str]) -> None:
        async def call() -> None:
            for key in keys:
                self.objects.pop(key, None)
                self.on_change(key)

        await self._run("delete", call)

    async def close(self) -> None:
        pass

    async def _run(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        return await self.plan.run(name, call, ArchiveUnavailable(f"{name} was spoiled"))

    def _get(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectNotFound(key, key=key)
        return self.objects[key]

    def _put(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.on_change(key)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
