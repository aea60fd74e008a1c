"""A metadata store in memory: a dictionary with compare-and-swap, and faults on command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from metadata.store import ABSENT, Entry, Version, WatchEvent
from sharedlog.errors import MetadataUnavailable, VersionMismatch


class MemoryMetadata:
    """A `MetadataStore` without watches."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.puts = 0
        self.lost_answers = 0  # so many changes are made, and their callers hear of no answer
        self.refused_puts = 0  # so many are not made, likewise
        self._version = 0

    async def get(self, key: str) -> Entry | None:
        return self.entries.get(key)

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        self.puts += 1
        if self.refused_puts:
            self.refused_puts -= 1
            raise MetadataUnavailable("the store did not answer")
        self._check(key, expected)
        self._version += 1
        self.entries[key] = Entry(key, value, Version(self._version))
        self._lose_answer()
        return Version(self._version)

    async def delete(self, key: str, *, expected: Version) -> None:
        self._check(key, expected)
        del self.entries[key]
        self._lose_answer()

    async def list(self, prefix: str) -> Sequence[Entry]:
        return [self.entries[key] for key in sorted(self.entries) if key.startswith(prefix)]

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        raise AssertionError(f"nobody whom this store serves watches, but {prefix!r} was asked for")

    async def close(self) -> None:
        """Nothing is held."""

    def _check(self, key: str, expected: Version) -> None:
        found = self.entries.get(key)
        actual = ABSENT if found is None else found.version
        if actual != expected:
            raise VersionMismatch(key=key, expected=expected or None, actual=actual or None)

    def _lose_answer(self) -> None:
        if self.lost_answers:
            self.lost_answers -= 1
            raise MetadataUnavailable("the store did not answer")
