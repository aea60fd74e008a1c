"""A metadata store of which some answers get lost."""

from __future__ import annotations

from metadata.embedded import EmbeddedMetadataStore
from metadata.store import Entry, MetadataStore, Version
from sharedlog.errors import MetadataUnavailable


class Unsure:
    """Passes on to a store; `puts` says of each next put what becomes of it, then all is well.

    "made" and "not made" raise `MetadataUnavailable`; "late" does, and is made before the next
    operation; "ok" is a put like any other.
    """

    def __init__(self, store: EmbeddedMetadataStore, *puts: str) -> None:
        self._store = store
        self._puts = list(puts)
        self._late: tuple[str, bytes, Version] | None = None
        self.gets_fail = 0
        self.gets = 0

    async def get(self, key: str) -> Entry | None:
        self.gets += 1
        if self.gets_fail:
            self.gets_fail -= 1
            raise MetadataUnavailable("no answer")
        return await self._store.get(key)

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        await self._deliver_late()
        fate = self._puts.pop(0) if self._puts else "ok"
        if fate == "late":
            self._late = key, value, expected
        elif fate != "not made":
            version = await self._store.put(key, value, expected=expected)
            if fate == "ok":
                return version
        raise MetadataUnavailable("no answer")

    async def _deliver_late(self) -> None:
        if self._late is not None:
            key, value, expected = self._late
            self._late = None
            await self._store.put(key, value, expected=expected)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def unsure(found: Unsure) -> MetadataStore:
    passed_on: object = found
    return passed_on  # type: ignore[return-value]  # __getattr__ passes on the rest
