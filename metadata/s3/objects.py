"""Reading the objects of the metadata store: in bounded time, several at once, not twice.

A listing names each object's ETag. What was read under the same name and ETag is not read again as
long as it is kept; how much is kept is bounded in bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from metadata.errors import MetadataCorrupt, MetadataUnsuitable
from metadata.s3.config import MetadataS3Config
from metadata.s3.names import key_of, name_of, prefix_of
from metadata.s3.records import Record, decode
from metadata.s3.settings import Purpose
from metadata.s3.values import Listed, Page, S3Values
from metadata.store import Entry
from sharedlog.errors import MetadataUnavailable
from sharedlog.tasks import first_error

_OVERHEAD: Final = 1_024
"""Of a value that is kept: names, numbers and past changes, roughly."""

METADATA: Final = Purpose("a metadata store", MetadataUnavailable, MetadataUnsuitable)
"""What errors of S3 are here."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damaged:
    """An object whose bytes are not what was written."""

    key: str
    data: bytes
    error: str


@dataclass(frozen=True, slots=True)
class Removed:
    """There is no object."""

    key: str


Finding = Record | Damaged | Removed


class Found(NamedTuple):
    """What lies under a name, and its ETag; None: nothing does."""

    name: str
    etag: str | None
    finding: Finding

    @property
    def record(self) -> Record | None:
        """What was written there; None if there is nothing. Raises `MetadataCorrupt`."""
        match self.finding:
            case Record():
                return self.finding
            case Damaged(key, _, error):
                raise MetadataCorrupt(error, key=key)
            case Removed():
                return None

    @property
    def entry(self) -> Entry | None:
        """What `MetadataStore` tells of it. Raises `MetadataCorrupt`."""
        record = self.record
        return None if record is None else record.entry()


class Objects:
    """See the module's docstring. Every method may raise what `METADATA` names.

    `page_keys`: names in a page of a listing; 0: as many as the server gives.
    """

    def __init__(self, values: S3Values, config: MetadataS3Config, *, page_keys: int = 0) -> None:
        self._values = values
        self._config = config
        self._page_keys = page_keys
        self._kept: OrderedDict[str, Found] = OrderedDict()  # the one used last is the last
        self._kept_bytes = 0

    def kept(self, key: str) -> Found | None:
        """What was found there last, if it is kept; there may be something newer."""
        return self._kept.get(name_of(key))

    def keep(self, found: Found) -> None:
        """This was found, or written."""
        self._drop(found.name)
        if found.etag is None:
            return
        self._kept[found.name] = found
        self._kept_bytes += _size(found)
        while self._kept_bytes > self._config.cache_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    async def read(self, key: str) -> Found:
        """What is there now.

        **Cancellation:** ends the wait.
        """
        found = await self._bounded(
            f"read {key}", lambda: self._values.read_versioned(name_of(key))
        )
        if found is None:
            return Found(name_of(key), None, Removed(key))
        finding: Finding
        try:
            finding = decode(key, found.data)
        except MetadataCorrupt as error:
            finding = Damaged(key, found.data, str(error).removeprefix(f"{key}: "))
        return Found(name_of(key), found.version, finding)

    async def read_all(self, names: Iterable[str]) -> list[Found]:
        """What is there now, in any order; several are read at once.

        **Cancellation:** ends all reads.
        """
        found: list[Found] = []
        waiting = iter(names)

        async def work() -> None:
            for name in waiting:
                key = key_of(name)
                assert key is not None
                found.append(await self.read(key))
                self.keep(found[-1])

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._config.fetches_max):
                    group.create_task(work(), name=f"metadata-read-{index}")
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors
        return found

    async def listing(self, prefix: str) -> list[Found]:
        """All that is there under keys that begin with `prefix`, in the order of the keys.

        Each as it was at some moment after the call; they need not be of the same moment.

        **Cancellation:** ends it.
        """
        found: list[Found] = []
        missing: list[str] = []
        async for listed in self._pages(prefix_of(prefix)):
            for it in listed:
                kept = self._kept.get(it.key)
                if kept is not None and kept.etag == it.version:
                    self._kept.move_to_end(it.key)
                    found.append(kept)
                elif key_of(it.key) is not None:
                    missing.append(it.key)
        found += await self.read_all(missing)
        return sorted(found, key=lambda it: it.finding.key)

    async def spanned(self, prefixes: Collection[str]) -> dict[str, str]:
        """Name and ETag of all objects whose names begin as those of such keys do.

        Some may be no keys' names. One walk from the least to the greatest: what lies before and
        behind costs nothing.

        **Cancellation:** ends it.
        """
        begins = tuple(sorted(map(prefix_of, prefixes)))
        first, last = begins[0], begins[-1]
        found: dict[str, str] = {}
        # Every name is longer than how it begins, so "greater than" leaves none out.
        pages = self._pages(first) if first == last else self._pages("", after=first)
        async with aclosing(pages):
            async for listed in pages:
                found |= {it.key: it.version for it in listed if it.key.startswith(begins)}
                # One of them may span others, so that its keys come after the last one's.
                if listed and listed[-1].key > last and not listed[-1].key.startswith(begins):
                    break
        return found

    async def _pages(
        self, begin: str, *, after: str = ""
    ) -> AsyncGenerator[Sequence[Listed], None]:
        token = ""
        while True:
            page = await self._page(begin, token, after)
            yield page.listed
            token = page.token
            if not token:
                return

    async def _page(self, begin: str, token: str, after: str) -> Page:
        return await self._bounded(
            "list the keys",
            lambda: self._values.list_page(begin, token=token, after=after, keys=self._page_keys),
        )

    async def _bounded(self, doing: str, call: Callable[[], Awaitable[T]]) -> T:
        timeout_s = self._config.timeout_s
        await self._values.open()  # the first time it loads the library, which may take its time
        try:
            async with asyncio.timeout(timeout_s):
                return await call()
        except TimeoutError as error:
            raise MetadataUnavailable(
                f"{self._values.url}: can't {doing}: no answer in {timeout_s:g} s"
            ) from error

    def _drop(self, name: str) -> None:
        found = self._kept.pop(name, None)
        if found is not None:
            self._kept_bytes -= _size(found)


def _size(found: Found) -> int:
    match found.finding:
        case Record(value=value):
            return len(found.name) + len(value or b"") + _OVERHEAD
        case Damaged(data=data):
            return len(found.name) + len(data) + _OVERHEAD
        case Removed():
            return len(found.name)
