"""Settings of the archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loglet.archive.url import parse_archive_url
from metadata.s3.settings import Addressing, Encryption, check_s3_settings
from sharedlog.errors import InvalidArgument
from sharedlog.limits import MIB

S3_PART_BYTES_MIN: Final = 5 * MIB
"""Smaller parts are refused by S3, but for the last."""
S3_PART_BYTES_MAX: Final = 5 * 1024 * MIB
_NOT_READABLE_AT_ONCE: Final = ("GLACIER", "DEEP_ARCHIVE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveConfig:
    """Where logs' history goes, and how. All nodes of a cluster have the same.

    Credentials are no settings: they are found as by every tool for S3, in the environment
    (`AWS_ACCESS_KEY_ID`, ...), in `~/.aws`, or from the machine's role.
    """

    url: str = ""
    """Where the archive is: `s3://BUCKET/PREFIX`, or `file:///FOLDER` for development on one
    machine. "": no archive; logs are kept on log servers alone."""

    region: str = ""
    """The bucket's region. "": as the environment says, else us-east-1."""

    endpoint: str = ""
    """http:// or https:// URL of a server that speaks S3, e.g. `https://minio.internal:9000`. "":
    Amazon's, of the region."""

    addressing: Addressing = "auto"
    """Where the bucket's name stands in requests: in the `path`, or in the host's name (`virtual`).
    `auto`: in the path if an `endpoint` is set."""

    storage_class: str = ""
    """Storage class of objects, e.g. `STANDARD_IA`; manifests are always of the default one, as
    they change often. One whose objects must be restored before they can be read is refused. "":
    the bucket's default."""

    sse: Encryption = ""
    """Encryption by the server: `AES256`, `aws:kms` or `aws:kms:dsse`. "": the bucket's default."""

    sse_kms_key_id: str = ""
    """Key for `aws:kms` and `aws:kms:dsse`. "": the account's default key."""

    part_bytes: int = 5 * MIB
    """A large object is uploaded in parts of so many bytes, one after the other. Two of them, at
    most, are in memory for each upload. From 5 MiB to 5 GiB; an object has at most 10,000 parts."""

    multipart_bytes: int = 8 * MIB
    """An object of up to so many bytes is uploaded by one request, and held in memory until then.
    At least `part_bytes`."""

    connect_timeout_s: float = 5.0
    """Longest wait for a connection."""

    read_timeout_s: float = 20.0
    """Longest wait for an answer, and for more of one; an upload has as long on top of what its
    bytes take."""

    attempts_max: int = 6
    """How often a request is sent that fails for a reason that may pass, e.g. throttling. What
    replaces a manifest is never sent again by itself."""

    backoff_min_s: float = 0.1
    """Mean wait before the second attempt; doubles for each further one."""

    backoff_max_s: float = 5.0
    """Longest mean wait between two attempts. At least `backoff_min_s`."""

    connections_max: int = 32
    """Connections to S3 of this process, and so requests at once; further ones wait."""

    def validate(self) -> None:
        """Raises `InvalidArgument` if the settings can't be right, or don't fit together."""
        if self.url:
            parse_archive_url(self.url)
        check_s3_settings(self)
        if self.storage_class.upper() in _NOT_READABLE_AT_ONCE:
            raise InvalidArgument(
                f"storage_class is {self.storage_class}: what is archived must be readable at once"
            )
        if not S3_PART_BYTES_MIN <= self.part_bytes <= S3_PART_BYTES_MAX:
            raise InvalidArgument("part_bytes must be from 5 MiB to 5 GiB")
        if not self.part_bytes <= self.multipart_bytes <= S3_PART_BYTES_MAX:
            raise InvalidArgument("multipart_bytes must be from part_bytes to 5 GiB")
