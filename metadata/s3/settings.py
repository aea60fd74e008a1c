"""How a server that speaks S3 is spoken to: what the settings of all who do have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

from sharedlog.errors import InvalidArgument, SharedLogError

Addressing = Literal["auto", "path", "virtual"]
Encryption = Literal["", "AES256", "aws:kms", "aws:kms:dsse"]


@dataclass(frozen=True, slots=True)
class Purpose:
    """What S3 is used for, and how errors of requests are called there."""

    noun: str  # as in "it can't be an archive"
    unavailable: type[SharedLogError]  # it may pass; a change may have been made
    unsuitable: type[SharedLogError]  # a person must act


class S3Settings(Protocol):
    """`ArchiveConfig` says what each one does; the metadata store's has the same."""

    @property
    def region(self) -> str:
        """Of the bucket; "": as the environment says."""
        ...

    @property
    def endpoint(self) -> str:
        """URL of the server; "": Amazon's."""
        ...

    @property
    def addressing(self) -> Addressing:
        """Where the bucket's name stands in a request."""
        ...

    @property
    def sse(self) -> Encryption:
        """Encryption by the server."""
        ...

    @property
    def sse_kms_key_id(self) -> str:
        """Its key."""
        ...

    @property
    def connect_timeout_s(self) -> float:
        """Longest wait for a connection."""
        ...

    @property
    def read_timeout_s(self) -> float:
        """Longest wait for an answer, and for more of one."""
        ...

    @property
    def attempts_max(self) -> int:
        """How often a request is sent that fails for a reason that may pass."""
        ...

    @property
    def backoff_min_s(self) -> float:
        """Mean wait before the second attempt."""
        ...

    @property
    def backoff_max_s(self) -> float:
        """Longest mean wait."""
        ...

    @property
    def connections_max(self) -> int:
        """Requests at once."""
        ...


def check_s3_settings(settings: S3Settings) -> None:
    """Raises `InvalidArgument` if the settings can't be right, or don't fit together."""
    if settings.endpoint:
        _check_endpoint(settings.endpoint)
    if settings.sse_kms_key_id and not settings.sse.startswith("aws:kms"):
        raise InvalidArgument("sse_kms_key_id is set: sse must be aws:kms or aws:kms:dsse")
    if min(settings.connect_timeout_s, settings.read_timeout_s, settings.backoff_min_s) <= 0:
        raise InvalidArgument("the time-outs and backoff_min_s must be above 0")
    if settings.backoff_max_s < settings.backoff_min_s:
        raise InvalidArgument("backoff_max_s is below backoff_min_s")
    if min(settings.attempts_max, settings.connections_max) < 1:
        raise InvalidArgument("attempts_max and connections_max must be at least 1")


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise InvalidArgument("endpoint is no URL") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument("endpoint holds credentials; they are taken from the environment")
    if not usable or parts.query or parts.fragment:
        raise InvalidArgument(
            f"endpoint is {endpoint!r}: http://HOST:PORT or https://HOST:PORT is needed"
        )
