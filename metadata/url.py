"""Which metadata store, as one line of configuration: `embedded://HOST:PORT`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from metadata.remote import RemoteMetadataStore
from metadata.store import MetadataStore
from sharedlog.clock import Clock
from sharedlog.errors import InvalidArgument
from sharedlog.rpc.transport import Transport

EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True)
class MetadataUrl:
    """A parsed URL."""

    scheme: str
    address: str  # host:port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"

    def describe(self) -> str:
        """For `status`: the URL, and what an operator should know about it."""
        return f"{self} (a single point of failure)"


def parse_metadata_url(url: str) -> MetadataUrl:
    """Raises `InvalidArgument`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"metadata URL {url!r}: {error}") from error
    if parts.scheme != EMBEDDED:
        raise InvalidArgument(f"metadata URL {url!r}: the form is {EMBEDDED}://HOST:PORT")
    if not parts.hostname or not port or parts.path or parts.query or parts.username:
        raise InvalidArgument(f"metadata URL {url!r}: the form is {EMBEDDED}://HOST:PORT")
    return MetadataUrl(parts.scheme, parts.netloc)


def open_metadata_store(
    url: str, transport: Transport, *, clock: Clock, new_id: Callable[[], str]
) -> MetadataStore:
    """The store that `url` names. Connects when it is used; `transport` stays the caller's.

    Raises:
        InvalidArgument: no URL of a metadata store.
    """
    return RemoteMetadataStore(transport, parse_metadata_url(url).address, clock, new_id)
