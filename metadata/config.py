"""Settings of the metadata stores."""

from __future__ import annotations

from dataclasses import dataclass, field

from metadata.s3.config import MetadataS3Config
from sharedlog.errors import InvalidArgument
from sharedlog.limits import KIB, METADATA_VALUE_BYTES_MAX, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig:
    """Limits of one embedded store. Bytes are bytes of keys and values."""

    map_bytes: int = 4096 * MIB
    """Size that the store's file can reach; address space, not disk or memory. Default 4 GiB, some
    two million logs. It may be raised between two starts, and lowered to what is used."""

    pending_changes_max: int = 1_000
    """Changes that wait for the writer; one more is refused as `Overloaded`."""

    pending_bytes_max: int = 16 * MIB
    """Bytes of the changes that wait for the writer. At least one value's."""

    watch_events_max: int = 1_000
    """Changes that a watcher may lag behind; one that lags more is told the difference instead."""

    watch_bytes_max: int = 4 * MIB
    """Bytes that a watcher may lag behind, likewise."""

    def validate(self) -> None:
        """Raises `InvalidArgument` if the limits don't fit together."""
        if self.map_bytes < 1 * MIB or self.map_bytes % (4 * KIB):
            raise InvalidArgument("map_bytes must be at least 1 MiB and a multiple of 4 KiB")
        if self.pending_bytes_max < METADATA_VALUE_BYTES_MAX:
            raise InvalidArgument(f"pending_bytes_max is below {METADATA_VALUE_BYTES_MAX:,}")
        if min(self.pending_changes_max, self.watch_events_max, self.watch_bytes_max) < 1:
            raise InvalidArgument("the limits of pending changes and of watchers must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """How etcd is spoken to, if the metadata is kept there. Times are seconds."""

    tls: bool = False
    """Speak TLS, and trust the authorities that the system trusts. `ca_file` and `cert_file` imply
    it."""

    ca_file: str = ""
    """PEM file with the certificates of the authorities that may vouch for etcd's members, instead
    of the system's."""

    cert_file: str = ""
    """PEM file with the certificate that this node shows etcd, and those between it and an
    authority. With `key_file`."""

    key_file: str = ""
    """PEM file with the private key of `cert_file`."""

    user: str = ""
    """Name of the user, if etcd asks for one; it needs to read and write all below the URL's
    prefix. "": none."""

    password_file: str = ""
    """File that holds the user's password, and nothing else."""

    timeout_s: float = 5.0
    """A call is tried for so long, at one member after the other, before it fails as unavailable.
    At least `try_timeout_s`."""

    try_timeout_s: float = 0.5
    """The first try of a call gets so long to be answered, each further one twice as long. Shorter:
    a member that hangs is left sooner; longer: slow disks cause no needless tries."""

    @property
    def uses_tls(self) -> bool:
        """Connections are encrypted."""
        return bool(self.tls or self.ca_file or self.cert_file)

    def validate(self) -> None:
        """Raises `InvalidArgument` if the settings don't fit together."""
        if bool(self.cert_file) != bool(self.key_file):
            raise InvalidArgument("cert_file and key_file belong together")
        if bool(self.user) != bool(self.password_file):
            raise InvalidArgument("user and password_file belong together")
        if not 0 < self.try_timeout_s <= self.timeout_s:
            raise InvalidArgument("try_timeout_s must be above 0, and at most timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataSettings:
    """What the stores that a URL can name need beside it; each looks at its own part."""

    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    s3: MetadataS3Config = field(default_factory=MetadataS3Config)
