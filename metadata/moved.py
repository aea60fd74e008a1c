"""Values of a cluster that is being moved from one metadata store to another. Pure.

    moved to s3://bucket/prefix          in the store that it leaves; then the value as it was
    moving from embedded://host:port     in the store that it goes to, of the key `cluster` alone

That line stands before the value, so no node can decode what follows: a node that runs keeps the
last good value and changes nothing more, and one that starts says where to go (`check_moved`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sharedlog.errors import InvalidArgument, WrongCluster
from sharedlog.limits import METADATA_VALUE_BYTES_MAX

_MOVED: Final = b"moved to "
_MOVING: Final = b"moving from "


class Marked(NamedTuple):
    """A value with a line before it."""

    url: str  # of the other store
    value: bytes


def moved_to(url: str, value: bytes) -> bytes:
    """The value, in the store that it leaves for `url`.

    Raises:
        InvalidArgument: it would be too large. Nodes leave more room than that.
    """
    return _mark(_MOVED, url, value)


def moving_from(url: str, value: bytes) -> bytes:
    """The value of `cluster`, in the store that is being filled from `url`."""
    return _mark(_MOVING, url, value)


def where_moved(value: bytes) -> Marked | None:
    """What `moved_to` was given; None: the value was not moved."""
    return _marked(_MOVED, value)


def where_moving(value: bytes) -> Marked | None:
    """What `moving_from` was given; None: nothing is being moved here."""
    return _marked(_MOVING, value)


def check_moved(value: bytes) -> None:
    """Raises `WrongCluster` if this value of `cluster` says that nobody is to start here."""
    if marked := where_moved(value):
        raise WrongCluster(
            f"the cluster's metadata was moved to {marked.url}: start the node with "
            f"metadata = {marked.url!r}"
        )
    if marked := where_moving(value):
        raise WrongCluster(
            f"the cluster's metadata is being moved here from {marked.url}, and not all of it is "
            "here yet: `sharedlog metadata migrate` goes on where it was when it is run again"
        )


def _mark(kind: bytes, url: str, value: bytes) -> bytes:
    marked = b"%s%s\n%s" % (kind, url.encode(), value)
    if len(marked) > METADATA_VALUE_BYTES_MAX:
        raise InvalidArgument(f"a value of {len(value):,} bytes has no room for where it moves")
    return marked


def _marked(kind: bytes, value: bytes) -> Marked | None:
    if not value.startswith(kind):
        return None
    line, _, rest = value.partition(b"\n")
    return Marked(line[len(kind) :].decode(), rest)
