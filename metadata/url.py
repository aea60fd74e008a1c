"""Which metadata store, as one line of configuration.

    embedded://HOST:PORT                      that of another process, at its gRPC port
    etcd://HOST:PORT,HOST:PORT,.../PREFIX     etcd, below a prefix; its members' client addresses
    s3://BUCKET/PREFIX                        a bucket, below a prefix

What else a store needs to be reached (certificates, names of users) is in `MetadataSettings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

from metadata.config import MetadataSettings
from metadata.errors import MetadataUnsuitable
from metadata.s3.bucket import BucketUrl, parse_bucket
from metadata.s3.config import MetadataS3Config
from metadata.store import MetadataStore
from sharedlog.clock import Clock
from sharedlog.errors import InvalidArgument
from sharedlog.rpc.transport import Transport

EMBEDDED: Final = "embedded"
ETCD: Final = "etcd"
S3: Final = "s3"

PREFIX_CHARS_MAX: Final = 255

_FORMS: Final = {
    EMBEDDED: "embedded://HOST:PORT",
    ETCD: "etcd://HOST:PORT,HOST:PORT/PREFIX",
    S3: "s3://BUCKET/PREFIX",
}


@dataclass(frozen=True, slots=True)
class MetadataUrl:
    """A parsed URL."""

    scheme: str
    address: str
    """What stands after the slashes: host:port, several of those with commas between; a bucket."""
    prefix: str = ""
    """Path in a store that others use too, without slashes at its ends."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each host:port."""
        return tuple(self.address.split(","))

    def describe(self) -> str:
        """For `status`: the URL, and what an operator should know about it."""
        return f"{self} (a single point of failure)" if self.scheme == EMBEDDED else str(self)


def parse_metadata_url(url: str) -> MetadataUrl:
    """Raises `InvalidArgument`."""
    scheme, slashes, rest = url.partition("://")
    parse = _PARSERS.get(scheme)
    if not slashes or parse is None:
        forms = ", ".join(_FORMS.values())
        raise InvalidArgument(f"metadata URL {_shown(url)!r}: the forms are {forms}")
    return parse(url, rest)


def open_metadata_store(
    url: str,
    transport: Transport,
    *,
    clock: Clock,
    new_id: Callable[[], str],
    settings: MetadataSettings | None = None,
) -> MetadataStore:
    """The store that `url` names. Connects when it is used; `transport` stays the caller's.

    Raises:
        InvalidArgument: no URL of a metadata store, or a file that `settings` name can't be read.
        MetadataUnsuitable: a library that is needed for it is not installed.
    """
    parsed = parse_metadata_url(url)
    settings = settings or MetadataSettings()
    # Imported late, as each of them loads what only it needs.
    if parsed.scheme == ETCD:
        from metadata.etcd import open_etcd

        return open_etcd(parsed, settings.etcd, clock=clock, new_id=new_id)
    if parsed.scheme == S3:
        return _open_s3(parsed, settings.s3, clock=clock, new_id=new_id)
    from metadata.remote import RemoteMetadataStore

    return RemoteMetadataStore(transport, parsed.address, clock, new_id)


def _parse_embedded(url: str, rest: str) -> MetadataUrl:
    if not _is_address(rest):
        raise _unlike(url, EMBEDDED)
    return MetadataUrl(EMBEDDED, rest)


def _parse_etcd(url: str, rest: str) -> MetadataUrl:
    addresses, _, path = rest.partition("/")
    prefix = path.strip("/")
    if not all(_is_address(it) for it in addresses.split(",")) or not _is_prefix(prefix):
        raise _unlike(url, ETCD)
    return MetadataUrl(ETCD, addresses, prefix)


def _parse_s3(url: str, rest: str) -> MetadataUrl:
    """As an archive's. What is wrong is not repeated if it may hold a secret."""
    try:
        parts = urlsplit(f"{S3}://{rest}")
    except ValueError as error:
        raise _unlike(url, S3) from error
    if "@" in parts.netloc:
        raise InvalidArgument(
            f"metadata URL {_shown(url)!r}: the form is {_FORMS[S3]}; credentials are taken "
            "from the environment"
        )
    if parts.query or parts.fragment:
        raise _unlike(url, S3)
    bucket = parse_bucket(parts, f"metadata URL {url!r}: the form is {_FORMS[S3]}")
    return MetadataUrl(S3, bucket.bucket, bucket.prefix)


def _open_s3(
    url: MetadataUrl, settings: MetadataS3Config, *, clock: Clock, new_id: Callable[[], str]
) -> MetadataStore:
    if find_spec("aiobotocore") is None:
        raise MetadataUnsuitable(f"{url} needs a library: pip install 'sharedlog[s3]'")
    from metadata.s3.store import S3MetadataStore

    return S3MetadataStore(BucketUrl(url.address, url.prefix), settings, clock=clock, new_id=new_id)


_PARSERS: Final[Mapping[str, Callable[[str, str], MetadataUrl]]] = {
    EMBEDDED: _parse_embedded,
    ETCD: _parse_etcd,
    S3: _parse_s3,
}
"""By scheme: takes the whole URL, for errors, and what follows the slashes."""


def _unlike(url: str, scheme: str) -> InvalidArgument:
    return InvalidArgument(f"metadata URL {_shown(url)!r}: the form is {_FORMS[scheme]}")


def _shown(url: str) -> str:
    """What of it holds no secret: neither names and passwords before an "@", nor a query."""
    scheme, slashes, rest = url.partition("://")
    _, at, hosts = rest.rpartition("@")
    plain = re.split(r"[?#]", hosts, maxsplit=1)[0]
    return f"{scheme}{slashes}{'***@' if at else ''}{plain}"


def _is_address(text: str) -> bool:
    """host:port, a port above 0, and nothing more."""
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        return False
    return bool(parts.hostname and port) and parts.netloc == text and "@" not in text


def _is_prefix(text: str) -> bool:
    """A path that means the same to everybody, without escapes."""
    return (
        bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)*", text, re.ASCII)) and len(text) <= PREFIX_CHARS_MAX
    )
