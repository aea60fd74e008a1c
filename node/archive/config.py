"""When logs are offloaded, trimmed and purged by themselves."""

from __future__ import annotations

from dataclasses import dataclass

from sharedlog.errors import InvalidArgument
from sharedlog.limits import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadConfig:
    """Settings of the archivist; those of where the archive is are `ArchiveConfig`'s."""

    object_bytes: int = 32 * MIB
    """Batches are archived as soon as there are about so many bytes of them, in one object."""

    offload_after_s: float = 300.0
    """Batches are archived after this time if they are fewer."""

    offloads_max: int = 2
    """Logs that this node archives, trims or purges at the same time."""

    retention_every_s: float = 60.0
    """How often a log's retention is looked at, besides after each offload."""

    block_cache_bytes: int = 24 * MIB
    """Blocks of archived objects that are kept in memory for readers."""

    def validate(self) -> None:
        """Raises `InvalidArgument` if the settings can't be right."""
        if not MIB // 16 <= self.object_bytes <= 1024 * MIB:
            raise InvalidArgument("object_bytes must be from 64 KiB to 1 GiB")
        if min(self.offload_after_s, self.retention_every_s) <= 0:
            raise InvalidArgument("offload_after_s and retention_every_s must be above 0")
        if self.offloads_max < 1:
            raise InvalidArgument("offloads_max must be at least 1")
        if self.block_cache_bytes < 0:
            raise InvalidArgument("block_cache_bytes must not be below 0")
