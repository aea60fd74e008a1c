"""A place in a bucket, as one line of configuration: `s3://BUCKET/PREFIX`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult

from sharedlog.errors import InvalidArgument

S3: Final = "s3"
PREFIX_BYTES_MAX: Final = 400
_PART_BYTES_MAX: Final = 200
PART: Final = re.compile(r"[A-Za-z0-9._=-]+", re.ASCII)
"""What stands between two slashes."""
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """`s3://BUCKET/PREFIX`."""

    bucket: str
    prefix: str  # without slashes round it; "" for none

    def __str__(self) -> str:
        return f"{S3}://{self.bucket}/{self.prefix}".rstrip("/")


def parse_bucket(parts: SplitResult, said: str) -> BucketUrl:
    """What a URL of the scheme s3 names; whether it has more than bucket and path is not looked at.

    `said`: how a message begins, e.g. "archive URL 's3://...'", without what may be secret in it.

    Raises:
        InvalidArgument: no bucket, or no prefix.
    """
    if not _BUCKET.fullmatch(parts.netloc):
        raise InvalidArgument(f"{said}: {parts.netloc!r} is no name of a bucket")
    prefix = parts.path.strip("/")
    if prefix and not is_path(prefix):
        raise InvalidArgument(f"{said}: a prefix is of a-z A-Z 0-9 . _ = -, with single slashes")
    if len(prefix) > PREFIX_BYTES_MAX:
        raise InvalidArgument(f"{said}: the prefix is longer than {PREFIX_BYTES_MAX} bytes")
    return BucketUrl(parts.netloc, prefix)


def shown_url(parts: SplitResult) -> str:
    """A URL without what may be secret in it."""
    host = parts.netloc.rpartition("@")[2]
    slashes = "//" if parts.netloc or parts.scheme else ""
    return f"{parts.scheme}{':' if parts.scheme else ''}{slashes}{host}{parts.path}"


def is_path(text: str) -> bool:
    """Parts of a-z A-Z 0-9 . _ = and -, with slashes between, that lead nowhere else."""
    return all(
        PART.fullmatch(part) and part not in (".", "..") and len(part) <= _PART_BYTES_MAX
        for part in text.split("/")
    )
