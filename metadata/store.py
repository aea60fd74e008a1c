"""What a metadata store is: small values under keys, changed only by compare-and-swap.

One interface, several backends (DESIGN.md §8). The embedded one is `metadata/embedded.py`;
`metadata/remote.py` reaches it over the network. One contract suite, `tests/contracts/`, runs
against every backend.

Keys are "/"-separated paths of printable ASCII, e.g. "nodes/n1", "logs/orders". Values are bytes
of at most `METADATA_VALUE_BYTES_MAX`. Versions are positive and grow over the whole store (in S3,
of different keys, as far as the clocks of who writes them agree): a key deleted and made anew never
shows an old version again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

Version = NewType("Version", int)
"""Of a key's last change. 0 is no version: it stands for "the key does not exist"."""

ABSENT = Version(0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key, its value and the version of its last change."""

    key: str
    value: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class Changed:
    """A key was set; in a watch's first part: it exists."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key is gone; `version` is that of its deletion."""

    key: str
    version: Version


@dataclass(frozen=True, slots=True)
class SnapshotComplete:
    """All that existed when the watch began has been told; what follows are changes.

    Told once per watch: a backend that has to connect anew works out the difference and goes on.
    """


WatchEvent = Changed | Deleted | SnapshotComplete


class MetadataStore(Protocol):
    """See the module's docstring.

    Every method raises `MetadataUnavailable` if the store does not answer; a change may then have
    been made.
    """

    async def get(self, key: str) -> Entry | None:
        """The present value, or None. Linearizable."""
        ...

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        """Set `key` if its version is `expected` (`ABSENT`: if there is none); returns the new one.

        A retry after a lost answer is told from a lost race: the backend marks each put with a
        nonce.

        Raises:
            VersionMismatch: the key has another version; nothing was changed.
            InvalidArgument: key or value outside the limits.
            MetadataUnavailable: the change may or may not have been made.

        **Cancellation:** stops the wait; the change may or may not be made.
        """
        ...

    async def delete(self, key: str, *, expected: Version) -> None:
        """Delete `key` if its version is `expected`. Raises what `put` raises."""
        ...

    async def list(self, prefix: str) -> Sequence[Entry]:
        """All entries whose key starts with `prefix`, in order of their keys."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """A `Changed` for each entry under `prefix`, then `SnapshotComplete`, then every change.

        No gap and no repeat: of a key that changes often, intermediate values may be left out
        after a reconnect, or where the store is polled, but the last one always arrives, and
        versions of a key only grow. Goes on over failures of the store for ever, until it is
        cancelled or closed.
        """
        ...

    async def close(self) -> None:
        """Give back the connections or files of this handle, which is not used again. Idempotent.

        What another owner handed in, e.g. a `Transport`, stays open.
        """
        ...
