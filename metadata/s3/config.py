"""Settings of a metadata store in S3."""

from __future__ import annotations

from dataclasses import dataclass

from metadata.s3.settings import Addressing, Encryption, check_s3_settings
from sharedlog.errors import InvalidArgument
from sharedlog.limits import METADATA_VALUE_BYTES_MAX, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataS3Config:
    """How a bucket is used as metadata store; looked at if the metadata URL begins with `s3://`.

    All nodes of a cluster have the same. Credentials are no settings: they are found as by every
    tool for S3, in the environment (`AWS_ACCESS_KEY_ID`, ...), in `~/.aws`, or from the machine's
    role.
    """

    region: str = ""
    """The bucket's region. "": as the environment says, else us-east-1."""

    endpoint: str = ""
    """http:// or https:// URL of a server that speaks S3, e.g. `https://minio.internal:9000`. "":
    Amazon's, of the region."""

    addressing: Addressing = "auto"
    """Where the bucket's name stands in requests: in the `path`, or in the host's name (`virtual`).
    `auto`: in the path if an `endpoint` is set."""

    sse: Encryption = ""
    """Encryption by the server: `AES256`, `aws:kms` or `aws:kms:dsse`. "": the bucket's default."""

    sse_kms_key_id: str = ""
    """Key for `aws:kms` and `aws:kms:dsse`. "": the account's default key."""

    poll_interval_s: float = 0.5
    """How often a process looks for what others have changed: one listing of a page for each 1,000
    nodes and logs. What the process itself changes it knows at once. 0.5 is 172,800 listings a day
    for each node. A poll that takes long is followed by a pause of at least four times that."""

    timeout_s: float = 5.0
    """A call is tried for so long."""

    connect_timeout_s: float = 1.0
    """Longest wait for a connection."""

    read_timeout_s: float = 2.0
    """Longest wait for an answer, and for more of one. A request that takes longer is sent anew."""

    attempts_max: int = 6
    """How often a request is sent, within `timeout_s`, that fails for a reason that may pass."""

    backoff_min_s: float = 0.05
    """Mean wait before the second attempt; doubles for each further one."""

    backoff_max_s: float = 1.0
    """Longest mean wait between two attempts. At least `backoff_min_s`."""

    connections_max: int = 32
    """Connections to S3 of this process, and so requests at once; further ones wait."""

    fetches_max: int = 16
    """Objects that are read at once when many have changed. At most `connections_max`."""

    cache_bytes: int = 16 * MIB
    """Values that are kept so that they need not be read again as long as a listing names the same
    version. At least one."""

    watch_events_max: int = 1_000
    """Keys whose change a watcher may lag behind; one that lags more is told the difference
    instead."""

    watch_bytes_max: int = 4 * MIB
    """Bytes that a watcher may lag behind, likewise."""

    def validate(self) -> None:
        """Raises `InvalidArgument` if the settings can't be right, or don't fit together."""
        check_s3_settings(self)
        if min(self.poll_interval_s, self.timeout_s) <= 0:
            raise InvalidArgument("poll_interval_s and timeout_s must be above 0")
        if not 1 <= self.fetches_max <= self.connections_max:
            raise InvalidArgument("fetches_max must be from 1 to connections_max")
        if self.cache_bytes < METADATA_VALUE_BYTES_MAX:
            raise InvalidArgument(f"cache_bytes is below {METADATA_VALUE_BYTES_MAX:,}")
        if min(self.watch_events_max, self.watch_bytes_max) < 1:
            raise InvalidArgument("the limits of watchers must be positive")
