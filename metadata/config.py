"""Settings of the embedded metadata store."""

from __future__ import annotations

from dataclasses import dataclass

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
