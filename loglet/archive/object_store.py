"""Where archived objects lie: the interface, and which store a URL names.

An object store keeps bytes under keys. Two kinds of keys are used (docs/archive-format.md): objects
that are written once under a fresh name and never change, by `upload`; and one small value for each
log, changed by compare-and-swap alone, by `swap`.

Keys are below the root that the store was opened with; `check_key` says what a key is. No key is
the folder of another: where there is `a/b` there is no object `a`. A key that begins with a dot is
no log's: the probe's, or the store's own.

Implementations know nothing of logs, and import nothing of `node`. Every method may raise

    ArchiveUnavailable   no answer, or an answer that may be another one later. What is safe to
                         repeat was repeated, with pauses, before it was raised; a change may have
                         been made
    ArchiveUnsuitable    denied, or there is no such bucket or folder: trying again does not help
    InvalidArgument      no key

and what its docstring says besides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from importlib.util import find_spec
from random import Random
from typing import Final, NamedTuple, Protocol

from loglet.archive.config import ArchiveConfig
from loglet.archive.url import FolderUrl, check_key, parse_archive_url
from metadata.s3.settings import Purpose
from metadata.s3.values import Versioned
from sharedlog.clock import Clock
from sharedlog.errors import ArchiveUnavailable, ArchiveUnsuitable

__all__ = ["ARCHIVE", "ObjectInfo", "ObjectStore", "Versioned", "check_key", "open_object_store"]

ARCHIVE: Final = Purpose("an archive", ArchiveUnavailable, ArchiveUnsuitable)
"""What errors of S3 are here."""


class ObjectInfo(NamedTuple):
    """What is known of an object without reading it."""

    key: str
    size: int
    modified_ms: int  # Unix time, by the store's clock; of the last write


class ObjectStore(Protocol):
    """See the module's docstring."""

    @property
    def url(self) -> str:
        """The root, for people; holds no secret."""
        ...

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes [start, end); `end` None: to the object's end.

        What lies beyond the object's end is left out, so the answer may be shorter than asked for,
        or empty.

        Raises:
            ObjectNotFound: there is no such object.

        **Cancellation:** ends the wait.
        """
        ...

    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """The last `size` bytes, or all of a smaller object, and the object's size.

        Raises:
            ObjectNotFound: there is no such object.

        **Cancellation:** ends the wait.
        """
        ...

    async def read_versioned(self, key: str) -> Versioned | None:
        """The whole value and its version; None if there is none.

        What it tells is durable, and no older than what any `swap` that ended before wrote.

        **Cancellation:** ends the wait.
        """
        ...

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        """Make a new object of these bytes under a key that nobody else uses; returns its size.

        All of it becomes visible at once and durably, or nothing. Memory is bounded, whatever the
        object's size. Safe to repeat, with the parts from the begin: a repetition writes the same
        key anew.

        What `parts` raises is raised here, and there is no object then.

        **Cancellation:** there may be the object, or none.
        """
        ...

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace the value if it has the version `expected`, None: if there is none.

        Returns the new version. Of several that expect the same version one succeeds at most, as
        long as no two of them, and no two values of a key in time, have the same `data`: **callers
        put random bytes into it.** Nothing is repeated here. If the answer was lost, the value is
        read, and if it is `data` the swap has succeeded.

        Raises:
            SwapConflict: the value is another one, or there is one or none against expectation, and
                `data` will not appear any more. It may have been there and been replaced by
                somebody who saw it: read what is there before concluding that it never was.
            ArchiveUnavailable: unknown, `data` may be the value now or later.

        **Cancellation:** unknown likewise.
        """
        ...

    async def stat(self, key: str) -> ObjectInfo | None:
        """Size and time of an object; None if there is none.

        **Cancellation:** ends the wait.
        """
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """All objects whose keys begin with `prefix`, in the order of the keys' bytes.

        An object that is there all the while is told once; of one that comes or goes meanwhile
        nothing is known. `prefix` need not end at a slash; "" is every object.

        **Cancellation:** ends it; closing the iterator does too.
        """
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, durably; those that are missing are fine. Safe to repeat.

        **Cancellation:** some may be deleted.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads; the store can't be used afterwards."""
        ...


def open_object_store(
    url: str, settings: ArchiveConfig, *, clock: Clock, rng: Random, new_id: Callable[[], str]
) -> ObjectStore:
    """The store that `url` names. It connects when it is first used; see `probe` too.

    Args:
        url: The root, of `file:///FOLDER` or `s3://BUCKET/PREFIX`.
        settings: How; its own `url` is not looked at.
        clock: For the pauses between attempts.
        rng: For their jitter.
        new_id: Random hex digits, for names of what is being written.

    Raises:
        InvalidArgument: no URL of an archive, or settings that can't be right.
        ArchiveUnsuitable: a library that is needed for it is not installed.
    """
    parsed = parse_archive_url(url)
    settings.validate()
    # Late: each brings libraries along that the other does not need.
    if isinstance(parsed, FolderUrl):
        from loglet.archive.file_store import FileStore

        return FileStore(parsed, clock=clock, rng=rng, new_id=new_id)
    if find_spec("aiobotocore") is None:
        raise ArchiveUnsuitable(f"{parsed} needs a library: pip install 'sharedlog[s3]'")
    from loglet.archive.s3_store import S3Store

    return S3Store(parsed, settings, clock=clock, rng=rng)
